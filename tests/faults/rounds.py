"""A round: a study, faults at their moments, the command again until it is done, and the comparison."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.faults.bench import Bench, Moment, moment
from tests.faults.catalog import BrokenPromiseError, Fault, no_orphans
from tests.faults.study import Command, differences, facts

_LAST_LINES = 15
_RUNS = 12  # of the command, after the last fault
# Ray's agents notice that their raylet is gone, and then try to report it to a server that is gone too
_ORPHANS_END_WITHIN = 120.0  # seconds
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\)", re.MULTILINE)


def ended(command: Command) -> list[str]:
    """Wait for the end of the latest run: nothing, or its exit code and the last lines that it said."""
    if (code := command.wait()) == 0:
        return []
    last = command.said().splitlines()[-_LAST_LINES:]
    return ["\n".join([f"exit code {code} after it said:", *last])]


def outcome(bench: Bench, wanted: dict, starts_anew: bool = False) -> list[str]:
    """What is wrong with a study whose last run ends now; with ``--fresh`` there are earlier trainings."""
    problems, output = ended(bench.command), bench.command.output()
    if shown := _TRACEBACK.search(output):
        problems.append(f"a traceback was shown: {output[max(0, shown.start() - 500) :][:3500]}")
    found = facts(bench.tracking_uri, bench.command.folder)
    if starts_anew:
        found = {trial: values | {"left behind": "0"} for trial, values in found.items()}
    if (bench.storage / "trials").exists():
        problems.append("checkpoints of finished trials are left")
    return problems + differences(wanted, found)


@dataclass
class Round:
    """What was done to one study, and what is wrong with it now."""

    bench: Bench
    injected: list[tuple[Fault, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    runs: int = 0

    def play(self, faults: Sequence[Fault], rng: random.Random, wanted: dict) -> None:
        """Inject the faults one after the other; those that found nothing to be done to are left out."""
        self._start()
        for fault in faults:
            when = moment(rng)
            if not self._reach(when):
                break
            try:
                done = fault.inject(self.bench, rng)
            except BrokenPromiseError as broken:
                done = f"BROKEN: {broken}"
                self.problems.append(f"{fault.name}: {broken}")
            if done is not None:
                self.injected.append((fault, f"{when}: {done}"))
        for _ in range(_RUNS):
            if self.bench.command.wait() == 0:
                break
            self._start()
        try:
            no_orphans(self.bench, _ORPHANS_END_WITHIN)
        except BrokenPromiseError as broken:
            self.problems.append(str(broken))
        self.problems += outcome(self.bench, wanted)

    def _reach(self, when: Moment) -> bool:
        """Get the command to this moment; False where the study is finished before."""
        while True:
            if not self.bench.command.is_running:
                if self.bench.command.wait() == 0:
                    return False
                self._start()
            if when.come(self.bench.command):
                return True
            when = Moment("", 0, when.seconds)  # it may not come again

    def _start(self) -> None:
        self.runs += 1
        self.bench.command.start()
