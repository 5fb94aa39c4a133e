"""The fault campaign: ``python -m tests.faults.campaign``, or ``make faults``.

Breaks real studies in random, seeded, reported ways and compares each with an uninterrupted one: every
metric of every epoch and step, best epochs, predictions and the bytes of the models. Prints a table.
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
from functools import partial
from pathlib import Path

import torch

from tests.faults import bench, catalog, in_process, scripted
from tests.faults.catalog import Fault
from tests.faults.networks import namespaces_missing
from tests.faults.rounds import play
from tests.faults.study import Command, facts, sqlite_uri
from tests.helpers import tiny_config
from trainables.assets import prepare_assets
from trainables.reviews import load_splits

_FAULTS_PER_ROUND = 5
_IDLE_ROUNDS = 5  # in which no fault found anything to do; then those that are left never will
PARTS = ("bytes", "damage", "memory", "scripted", "disk", "cluster", "network", "served", "local")


@dataclass
class Row:
    """A line of the table."""

    line: int
    injected: int = 0
    survived: int = 0
    differences: int = 0


@dataclass
class Campaign:
    """What was injected so far, and what it did."""

    scratch: Path
    rng: random.Random
    log: Path
    rows: dict[str, Row] = field(default_factory=dict)

    def note(self, name: str, line: int, what: str, problems: Iterable[str]) -> None:
        """Count one fault, and write down what was done and what was wrong afterwards."""
        problems = list(problems)
        row = self.rows.setdefault(name, Row(line))
        row.injected += 1
        row.survived += not problems
        row.differences += len(problems)
        with self.log.open("a") as file:
            file.write(json.dumps({"fault": name, "what": what, "problems": problems}) + "\n")
        if problems:
            print(f"PROBLEM {name} ({what}): {problems[:5]}", flush=True)

    def folder(self) -> Path:
        """A new, empty folder."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def table(self) -> str:
        """Markdown."""
        lines = ["| promise | fault | injected | survived | differences |", "|---:|---|---:|---:|---:|"]
        rows = sorted(self.rows.items(), key=lambda item: (item[1].line, item[0]))
        lines += [f"| {r.line} | {n} | {r.injected} | {r.survived} | {r.differences} |" for n, r in rows]
        total = [sum(getattr(r, k) for _, r in rows) for k in ("injected", "survived", "differences")]
        return "\n".join([*lines, f"| | **together** | {total[0]} | {total[1]} | {total[2]} |"])


def studies(
    campaign: Campaign,
    place: Callable[[Path], AbstractContextManager[bench.Bench]],
    faults: Iterable[Fault],
    count: int,
    wanted: dict,
) -> None:
    """Inject each fault ``count`` times, a few to a study."""
    left, idle = [fault for fault in faults for _ in range(count)], 0
    while left and idle < _IDLE_ROUNDS:
        campaign.rng.shuffle(left)
        started = time.monotonic()
        with place(campaign.folder()) as where:
            played = play(where, left[:_FAULTS_PER_ROUND], campaign.rng, wanted)
        idle = 0 if played.injected else idle + 1
        if not played.injected and played.problems:
            campaign.note("a round whose faults found nothing to do", 0, "", played.problems)
        for fault, what in played.injected:
            left.remove(fault)
            campaign.note(fault.name, fault.line, what, played.problems)
        seconds = time.monotonic() - started
        print(
            f"{len(played.injected)} faults, {played.runs} runs, {seconds:.0f} s, "
            f"{len(played.problems)} problems; {len(left)} left of this kind",
            flush=True,
        )
    for fault in left:
        campaign.note(fault.name, fault.line, "", ["found nothing to do in any round"])


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


def uninterrupted(campaign: Campaign) -> dict:
    """What every study must come to."""
    command = Command(campaign.folder() / "study")
    code = command.run()
    assert code == 0, command.output()
    return facts(sqlite_uri(command.folder), command.folder)


def run(campaign: Campaign, scale: float, only: set[str]) -> None:
    """All parts, or those that are named."""

    def times(count: int) -> int:
        return max(1, round(count * scale))

    torch.set_num_threads(1)
    splits = load_splits(tiny_config())
    assets = prepare_assets(tiny_config(), splits).trial
    wanted: dict = {}

    def in_process_part(name: str, line: int, results: Iterable[tuple[str, str]]) -> None:
        for what, problem in results:
            campaign.note(name, line, what, [problem] if problem else [])

    def needs_study(part: Callable[[], None]) -> Callable[[], None]:
        def prepared() -> None:
            wanted.update(wanted or uninterrupted(campaign))
            part()

        return prepared

    faults = partial(studies, campaign, wanted=wanted)
    parts: dict[str, Callable[[], None]] = {
        "bytes": lambda: in_process_part(
            "a byte range of a checkpoint changed",
            5,
            in_process.every_byte_range(assets, campaign.folder(), times(40)),
        ),
        "damage": lambda: in_process_part(
            "newest checkpoint damaged, trial resumed",
            5,
            in_process.damaged_checkpoints(assets, campaign.folder(), times(100), campaign.rng),
        ),
        "memory": lambda: in_process_part(
            "out of memory in a pass", 3, in_process.exhausted_memory(assets, times(50), campaign.rng)
        ),
        "scripted": needs_study(lambda: scripted.run(campaign, times(2), wanted)),
        "disk": needs_study(lambda: faults(small_disk, catalog.FULL_DISK, times(5))),
        "cluster": needs_study(lambda: faults(bench.machines, catalog.CLUSTER, times(3))),
        "network": needs_study(
            lambda: faults(partial(bench.machines, over_network=True), catalog.NETWORK, times(2))
        ),
        "served": needs_study(lambda: faults(bench.served, catalog.SERVED, times(4))),
        "local": needs_study(lambda: faults(bench.local, catalog.LOCAL, times(5))),
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
            campaign.note(f"{name}: the bench itself failed", 0, "", ["see the output"])
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
    return int(stopped or any(row.differences for row in campaign.rows.values()))


if __name__ == "__main__":
    sys.exit(main())
