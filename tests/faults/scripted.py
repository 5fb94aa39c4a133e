"""Faults that follow a script: a store that stays away, two invocations at once, a study that grows."""

import random
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.faults import bench, catalog
from tests.faults.bench import Bench
from tests.faults.rounds import outcome
from tests.faults.study import Command, facts


@dataclass(frozen=True)
class Script:
    """What happens to a study, in which place, and the line of the promise that it tries."""

    name: str
    line: int
    place: Callable[[Path], AbstractContextManager[Bench]]
    act: Callable[[Bench, dict], list[str]]
    starts_anew: bool = False

    def play(self, folder: Path, wanted: dict) -> list[str]:
        """What is wrong at the end, where the latest command must have finished the study."""
        with self.place(folder) as where:
            return self.act(where, wanted) + outcome(where, wanted, self.starts_anew)


def away_to_the_end(where: Bench, wanted: dict) -> list[str]:
    """The server stays dead: the command trains to its end, says what is missing; a re-run writes it."""
    where.command.start("--store-patience", "2").wait_for("epoch 1/")
    where.server.kill()
    code, said = where.command.wait(), where.command.said()
    problems = [] if code == 1 and "the tracking store lacks" in said else [f"exit code {code}"]
    if said.count("epoch 3/3") != len(wanted):
        problems.append("training did not go on to its end")
    where.server.start()
    where.command.run()
    return problems


def second_invocation(where: Bench, wanted: dict) -> list[str]:
    """The second one says so and exits 2; the first does not notice."""
    where.command.start().wait_for("epoch 1/")
    second = Command(where.command.folder)
    code = second.run()
    return [] if code == 2 and "is being run by process" in second.output() else [f"exit code {code}"]


def elsewhere(where: Bench, wanted: dict) -> list[str]:
    """A machine that shares only MLflow is refused at once; it can take over after the first is lost."""
    where.command.start().wait_for("epoch 1/")
    for worker in where.processes("ray::"):
        worker.suspend()  # so that the first one is still at work when the other has started
    with Command(where.folder / "elsewhere", "--tracking-uri", where.tracking_uri) as other:
        code = other.run()
        refused = code == 2 and "give --take-over if it was killed" in other.output()
        where.command.kill()
        where.command = other
        other.run("--take-over")
    return [] if refused else [f"not refused: exit code {code}"]


def interrupted(where: Bench, wanted: dict) -> list[str]:
    """Ctrl-C while the server takes connections and does not answer, with MLflow's own timeouts."""
    where.command = Command(where.folder / "study", "--tracking-uri", where.tracking_uri)
    where.command.start().wait_for("epoch 2/")
    where.server.pause()
    try:
        catalog.stop(signal.SIGINT)(where, random.Random())
        problems = []
    except catalog.BrokenPromiseError as broken:
        problems = [str(broken)]
    where.server.resume()
    where.command.run()
    return problems


def growing(where: Bench, wanted: dict) -> list[str]:
    """One model first, then both: the first one's trials are not trained again."""
    where.command.run("--models", "bert-tiny")
    first = facts(where.tracking_uri, where.command.folder)
    where.command.run()
    counted = f"{len(first)} of {len(wanted)} trials are finished" in where.command.said()
    trained = where.command.said().count("epoch 1/3")
    return [] if counted and trained == len(wanted) - len(first) else [f"{trained} were trained"]


def fresh(where: Bench, wanted: dict) -> list[str]:
    """Everything is trained anew, to the same end, and the earlier runs stay in MLflow."""
    where.command.start().wait_for("epoch 2/")
    where.command.kill()
    where.command.run("--fresh")
    trained = where.command.said().count("epoch 1/3")
    found = facts(where.tracking_uri, where.command.folder)
    stay = any(values["left behind"] == "1" for values in found.values())
    return [] if trained == len(wanted) and stay else [f"{trained} trials began with their first epoch"]


SCRIPTS = [
    Script("MLflow away until the end", 4, bench.served, away_to_the_end),
    Script("a second invocation at once", 1, bench.local, second_invocation),
    Script("Ctrl-C while the MLflow server hangs", 2, bench.served, interrupted),
    Script("another storage, at once and after a kill", 1, bench.served, elsewhere),
    Script("the study grows by cells", 1, bench.local, growing),
    Script("--fresh", 1, bench.local, fresh, starts_anew=True),
]
