"""The fault campaign: ``python -m tests.faults.campaign``, or ``make faults``.

Breaks real studies in random, seeded ways, compares each with an uninterrupted one, and prints a table.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
import torch

from tests.faults import bench, catalog, in_process, searches
from tests.faults.catalog import Fault
from tests.faults.networks import namespaces_missing
from tests.faults.rounds import Round
from tests.faults.scripted import SCRIPTS
from tests.faults.study import Command, facts
from tests.helpers import tiny_config
from trainables.assets import prepare_assets
from trainables.review_splits import load_splits

_FAULTS_PER_ROUND = 5
_IDLE_ROUNDS = 5  # in which no fault found anything to do; then those that are left never will
PARTS = "bytes damage memory scripted searches disk cluster network served local".split()


@dataclass
class Campaign:
    """What was injected so far, and what it did; ``noted`` has the promise, the fault and its problems."""

    scratch: Path
    rng: random.Random
    log: Path
    noted: list[tuple[int, str, int]] = field(default_factory=list)

    @cached_property
    def wanted(self) -> dict:
        """What every study must come to."""
        command = Command(self.folder() / "study")
        code = command.run()
        assert code == 0, command.output()
        return facts(command.sqlite_uri, command.folder)

    def folder(self) -> Path:
        """A new, empty folder."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def note(self, line: int, name: str, what: str, problems: list[str]) -> None:
        """Count one fault, and write down what was done and what was wrong afterwards."""
        self.noted.append((line, name, len(problems)))
        with self.log.open("a") as file:
            file.write(json.dumps({"fault": name, "what": what, "problems": problems}) + "\n")
        if problems:
            print(f"PROBLEM {name} ({what}): {problems[:5]}", flush=True)

    def in_process(self, line: int, name: str, results: in_process.Results) -> None:
        for what, problem in results:
            self.note(line, name, what, [problem] if problem else [])

    def scripted(self, count: int) -> None:
        for script in SCRIPTS * count:
            self.note(script.line, script.name, "", script.play(self.folder(), self.wanted))

    def studies(
        self,
        place: Callable[[Path], AbstractContextManager[bench.Bench]],
        faults: Iterable[Fault],
        count: int,
    ) -> None:
        """Inject each fault ``count`` times, a few to a study."""
        left, idle = [fault for fault in faults for _ in range(count)], 0
        while left and idle < _IDLE_ROUNDS:
            self.rng.shuffle(left)
            wanted, started = self.wanted, time.monotonic()
            with place(self.folder()) as where:
                played = Round(where)
                played.play(left[:_FAULTS_PER_ROUND], self.rng, wanted)
            idle = 0 if played.injected else idle + 1
            if not played.injected and played.problems:
                self.note(0, "a round whose faults found nothing to do", "", played.problems)
            for fault, what in played.injected:
                left.remove(fault)
                self.note(fault.line, fault.name, what, played.problems)
            print(
                f"{len(played.injected)} faults, {played.runs} runs, {time.monotonic() - started:.0f} s, "
                f"{len(played.problems)} problems; {len(left)} left of this kind",
                flush=True,
            )
        for fault in left:
            self.note(fault.line, fault.name, "", ["found nothing to do in any round"])

    def table(self) -> str:
        """A line for each fault, by the line of the promise that it tries, and the sum."""
        frame = pd.DataFrame(self.noted, columns=["promise", "fault", "problems"])
        frame["survived"] = frame["problems"] == 0
        groups = frame.groupby(["promise", "fault"])
        table = groups.agg(
            injected=("survived", "size"), survived=("survived", "sum"), differences=("problems", "sum")
        )
        table.loc[("", "together"), :] = table.sum()
        return table.astype(int).to_string()


@contextmanager
def small_disk(folder: Path):
    """The storage on a disk of its own, which is soon full."""
    storage = folder / "study" / "ray_results"
    storage.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150M", "tmpfs", storage], check=True)
    try:
        with bench.local(folder) as where:
            yield where
    finally:
        subprocess.run(["umount", "-l", storage], check=False)


def run(campaign: Campaign, scale: float, only: set[str]) -> None:
    """All parts, or those that are named."""

    def times(count: int) -> int:
        return max(1, round(count * scale))

    torch.set_num_threads(1)
    assets = prepare_assets(tiny_config(), load_splits(tiny_config())).trial
    ranges = in_process.every_byte_range(assets, campaign.folder(), times(40))
    damaged = in_process.damaged_checkpoints(assets, campaign.folder(), times(100), campaign.rng)
    starved = in_process.exhausted_memory(assets, times(50), campaign.rng)
    killed = searches.killed(campaign.folder(), times(20), campaign.rng)
    over_network = partial(bench.machines, over_network=True)
    parts: dict[str, Callable[[], None]] = {
        "bytes": partial(campaign.in_process, 5, "a byte range of a checkpoint changed", ranges),
        "damage": partial(campaign.in_process, 5, "newest checkpoint damaged, trial resumed", damaged),
        "memory": partial(campaign.in_process, 3, "out of memory in a pass", starved),
        "scripted": partial(campaign.scripted, times(2)),
        "searches": partial(campaign.in_process, 2, "search killed", killed),
        "disk": partial(campaign.studies, small_disk, catalog.FULL_DISK, times(5)),
        "cluster": partial(campaign.studies, bench.machines, catalog.CLUSTER, times(3)),
        "network": partial(campaign.studies, over_network, catalog.NETWORK, times(2)),
        "served": partial(campaign.studies, bench.served, catalog.SERVED, times(4)),
        "local": partial(campaign.studies, bench.local, catalog.LOCAL, times(5)),
    }
    if namespaces_missing():
        print(f"no links are cut: {namespaces_missing()}")
        parts.pop("network")
    if os.geteuid() != 0:
        print("no disk is filled: a small one is mounted by root alone")
        parts.pop("disk")
    for name, part in parts.items():
        if name not in only:
            continue
        started = time.monotonic()
        try:
            part()
        except Exception:
            traceback.print_exc()
            campaign.note(0, f"{name}: the bench itself failed", "", ["see the output"])
        print(f"-- {name}: {time.monotonic() - started:.0f} s", flush=True)
        print(campaign.table(), flush=True)


def main() -> int:
    """Exit code 1 where anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer faults of each kind")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of the campaign")
    parser.add_argument("--log", type=Path, default=Path("faults.log"), help="every fault, as JSON lines")
    arguments = parser.parse_args()
    for stop in (signal.SIGINT, signal.SIGTERM):  # what was started must not stay behind
        signal.signal(stop, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as scratch:
        campaign = Campaign(Path(scratch), random.Random(arguments.seed), arguments.log)
        try:
            run(campaign, arguments.scale, set(arguments.only))
            stopped = False
        except KeyboardInterrupt:
            stopped = True
    print(f"seed {arguments.seed}" + (", stopped before its end" if stopped else ""))
    print(campaign.table())
    return int(stopped or any(problems for _, _, problems in campaign.noted))


if __name__ == "__main__":
    sys.exit(main())
