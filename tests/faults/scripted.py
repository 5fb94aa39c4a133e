"""Faults that follow a script: a store that stays away, two invocations at once, a study that grows."""

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.faults import bench, catalog
from tests.faults.bench import Bench
from tests.faults.study import Command, differences, facts, started_anew

if TYPE_CHECKING:
    from tests.faults.campaign import Campaign


def run(campaign: "Campaign", count: int, wanted: dict) -> None:
    """Each script ``count`` times."""
    scripts: dict[tuple[str, int], Callable] = {
        ("MLflow away until the end", 4): away_to_the_end,
        ("a second invocation at once", 1): second_invocation,
        ("Ctrl-C while the MLflow server hangs", 2): interrupted,
        ("another storage, at once and after a kill", 1): elsewhere,
        ("the study grows by cells", 1): growing,
        ("--fresh", 1): fresh,
    }
    for (name, line), script in scripts.items():
        for _ in range(count):
            campaign.note(name, line, "", script(campaign, wanted))


def away_to_the_end(campaign: "Campaign", wanted: dict) -> list[str]:
    """The server stays dead: the command trains to its end, says what is missing; a re-run writes it."""
    with bench.served(campaign.folder()) as where:
        assert where.server is not None
        where.command.start("--store-patience", "2")
        where.command.wait_for("epoch 1/")
        where.server.kill()
        code, said = where.command.wait(), where.command.said()
        problems = [] if code == 1 and "the tracking store lacks" in said else [f"exit code {code}"]
        if said.count("epoch 3/3") != len(wanted):
            problems.append("training did not go on to its end")
        where.server.start()
        where.server.wait_until_healthy()
        return problems + _done(where, where.command.run(), wanted)


def second_invocation(campaign: "Campaign", wanted: dict) -> list[str]:
    """The second one says so and exits 2; the first does not notice."""
    with bench.local(campaign.folder()) as where:
        where.command.start().wait_for("epoch 1/")
        second = Command(where.command.folder)
        code, said = second.run(), second.output()
        refused = code == 2 and "is being run by process" in said
        return ([] if refused else [f"exit code {code}"]) + _done(where, where.command.wait(), wanted)


def elsewhere(campaign: "Campaign", wanted: dict) -> list[str]:
    """A machine that shares only MLflow is refused at once; it can take over after the first is lost."""
    with bench.served(campaign.folder()) as where:
        where.command.start().wait_for("epoch 1/")
        for worker in where.processes("ray::"):
            worker.suspend()  # so that the first one is still at work when the other has started
        other = Command(where.folder / "elsewhere", "--tracking-uri", where.tracking_uri)
        code, said = other.run(), other.output()
        refused = code == 2 and "give --take-over if it was killed" in said
        problems = [] if refused else [f"not refused: exit code {code}"]
        where.command.kill()
        try:
            code = other.run("--take-over")
        finally:
            other.kill()
        problems += ["a traceback was shown"] if "Traceback" in other.output() else []
        return problems + _done(where, code, wanted)


def interrupted(campaign: "Campaign", wanted: dict) -> list[str]:
    """Ctrl-C while the server takes connections and does not answer, with MLflow's own timeouts."""
    with bench.served(campaign.folder()) as where:
        assert where.server is not None
        where.command = Command(where.folder / "study", "--tracking-uri", where.tracking_uri)
        where.command.start().wait_for("epoch 2/")
        where.server.pause()
        try:
            catalog.stop(signal.SIGINT)(where, campaign.rng)
            problems = []
        except catalog.BrokenPromiseError as broken:
            problems = [str(broken)]
        where.server.resume()
        return problems + _done(where, where.command.run(), wanted)


def growing(campaign: "Campaign", wanted: dict) -> list[str]:
    """One model first, then both: the first one's trials are not trained again."""
    with bench.local(campaign.folder()) as where:
        where.command.run("--models", "bert-tiny")
        first = facts(where.tracking_uri, where.command.folder)
        code = where.command.run()
        said = where.command.said()
        again = [] if f"{len(first)} of {len(wanted)} trials are finished" in said else ["trained again"]
        return again + _done(where, code, wanted)


def fresh(campaign: "Campaign", wanted: dict) -> list[str]:
    """Everything is trained anew, to the same end, and the earlier runs stay in MLflow."""
    with bench.local(campaign.folder()) as where:
        where.command.start().wait_for("epoch 2/")
        where.command.kill()
        code = where.command.run("--fresh")
        trained = where.command.said().count("epoch 1/3")
        problems = [] if trained == len(wanted) else [f"{trained} trials began with their first epoch"]
        found = started_anew(facts(where.tracking_uri, where.command.folder))
        return problems + _ended(where, code) + differences(wanted, found)


def _done(where: Bench, code: int, wanted: dict) -> list[str]:
    return _ended(where, code) + differences(wanted, facts(where.tracking_uri, where.command.folder))


def _ended(where: Bench, code: int) -> list[str]:
    problems = [] if code == 0 else [f"exit code {code}"]
    if "Traceback" in where.command.output():
        problems.append("a traceback was shown")
    return problems
