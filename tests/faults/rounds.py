"""A round: a study, faults at their moments, the command again until it is done, and the comparison."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.faults.bench import Bench, Moment, moment
from tests.faults.catalog import BrokenPromiseError, Fault, no_orphans
from tests.faults.study import differences, facts

_RUNS = 12  # of the command, after the last fault
# Ray's agents notice that their raylet is gone, and then try to report it to a server that is gone too
_ORPHANS_END_WITHIN = 120.0  # seconds
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\)", re.MULTILINE)


@dataclass
class Round:
    """What was done to one study, and what is wrong with it now."""

    injected: list[tuple[Fault, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    runs: int = 0


def play(bench: Bench, faults: Sequence[Fault], rng: random.Random, wanted: dict) -> Round:
    """Inject the faults one after the other; those that found nothing to be done to are left out."""
    played = Round()
    _start(bench, played)
    for fault in faults:
        when = moment(rng)
        if not _reach(bench, played, when):
            break
        try:
            done = fault.inject(bench, rng)
        except BrokenPromiseError as broken:
            done = f"BROKEN: {broken}"
            played.problems.append(f"{fault.name}: {broken}")
        if done is not None:
            played.injected.append((fault, f"{when}: {done}" if done else str(when)))
    _finish(bench, played)
    try:
        no_orphans(bench, _ORPHANS_END_WITHIN)
    except BrokenPromiseError as broken:
        played.problems.append(str(broken))
    if shown := _TRACEBACK.search(bench.command.output()):
        around = slice(max(0, shown.start() - 500), shown.start() + 3000)
        played.problems.append(f"a traceback was shown: {bench.command.output()[around]}")
    played.problems += differences(wanted, facts(bench.tracking_uri, bench.command.folder))
    if (bench.storage / "trials").exists():
        played.problems.append("checkpoints of finished trials are left")
    return played


def _reach(bench: Bench, played: Round, when: Moment) -> bool:
    """Get the command to this moment; False where the study is finished before."""
    while True:
        if not bench.command.is_running:
            if bench.command.process.returncode == 0:
                return False
            _start(bench, played)
        if when.come(bench.command):
            return True
        when = Moment("", 0, when.seconds)  # it may not come again


def _finish(bench: Bench, played: Round) -> None:
    for _ in range(_RUNS):
        if bench.command.is_running:
            bench.command.wait()
        if bench.command.process.returncode == 0:
            return
        _start(bench, played)
    played.problems.append(f"not finished after {_RUNS} runs: exit code {bench.command.wait()}")


def _start(bench: Bench, played: Round) -> None:
    played.runs += 1
    bench.command.start()
