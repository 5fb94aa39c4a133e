"""A short selection of the campaign, at fixed moments: ``make faults`` is the long one."""

import random

import pytest

from tests.faults import bench, catalog
from tests.faults.bench import Moment
from tests.faults.postgres import postgres_missing
from tests.faults.study import NAME, differences, facts, started_anew
from tracking import StudyStore

pytestmark = pytest.mark.slow


def finished(where, wanted):
    """Run the command until it is done, and compare."""
    for _ in range(4):
        if where.command.wait() == 0:
            break
        where.command.start()
    assert where.command.wait() == 0, where.command.output()
    assert "Traceback" not in where.command.output()
    assert not differences(wanted, facts(where.tracking_uri, where.command.folder))
    assert not (where.storage / "trials").exists()


def test_a_killed_worker_and_a_killed_command_change_nothing(uninterrupted, tmp_path):
    rng = random.Random(1)
    with bench.local(tmp_path) as where:
        where.command.start()
        assert Moment("epoch ", 2, 0.2).come(where.command)
        (worker, *_) = where.processes("ray::")
        worker.kill()
        assert where.command.wait_for("resumed from its last epoch")
        assert Moment("epoch ", 4, 0.2).come(where.command)
        catalog.damage_checkpoint(where, rng)  # which kills the command first
        where.command.start()
        finished(where, uninterrupted)


def test_a_trial_that_has_used_up_its_attempts_fails_and_is_tried_again_by_the_next_run(
    uninterrupted, tmp_path
):
    with bench.local(tmp_path) as where:
        where.command.start("--max-failures", "0")
        assert Moment("epoch ", 1, 0.2).come(where.command)
        (worker, *_) = where.processes("ray::")
        worker.kill()
        assert where.command.wait() == 1, where.command.output()
        (failed,) = [line for line in where.command.said().splitlines() if line.startswith("failed: ")]
        assert failed.endswith("its worker died")
        assert where.command.said().count("epoch 3/3") == len(uninterrupted) - 1
        where.command.start()
        finished(where, uninterrupted)


def test_ctrl_c_stops_within_ten_seconds_and_leaves_no_process(uninterrupted, tmp_path):
    with bench.local(tmp_path) as where:
        where.command.start()
        assert Moment("epoch ", 1, 0.1).come(where.command)
        interrupt = next(fault for fault in catalog.LOCAL if fault.name == "Ctrl-C")
        assert "stopped after" in interrupt.inject(where, random.Random(1))
        where.command.start()
        finished(where, uninterrupted)


def test_a_study_that_grew_trains_only_what_is_new_and_fresh_trains_all_anew(tmp_path):
    small = ("--models", "bert-tiny", "--epochs", "1", "--target-batch-sizes", "64")
    with bench.local(tmp_path) as where:
        assert where.command.run(*small) == 0, where.command.output()
        one = facts(where.tracking_uri, where.command.folder)
        assert where.command.run(*small, "256") == 0, where.command.output()
        assert "1 of 2 trials are finished, 0 lack their test, 1 are to be trained" in where.command.said()
        assert where.command.said().count("epoch 1/1") == 1
        both = facts(where.tracking_uri, where.command.folder)
        assert len(both) == 2
        assert not differences(one, {h: both[h] for h in one})
        assert where.command.run(*small, "256", "--fresh") == 0, where.command.output()
        assert where.command.said().count("epoch 1/1") == 2
        anew = facts(where.tracking_uri, where.command.folder)
        assert {values["left behind"] for values in anew.values()} == {"1"}  # they stay in MLflow
        assert not differences(both, started_anew(anew))
        assert len(StudyStore(where.tracking_uri, NAME).read_runs().invocations) == 1


@pytest.mark.skipif(bool(postgres_missing()), reason=postgres_missing())
def test_a_tracking_server_that_dies_loses_nothing(uninterrupted, tmp_path):
    with bench.served(tmp_path) as where:
        where.command.start("--store-patience", "2")
        where.command.wait_for("epoch 1/")
        where.server.kill()
        assert where.command.wait() == 1
        assert where.command.said().count("epoch 3/3") == len(uninterrupted)  # training went on
        assert "the tracking store lacks" in where.command.said()
        where.server.start()
        where.server.wait_until_healthy()
        where.command.start()
        finished(where, uninterrupted)


def test_a_difference_would_be_seen(uninterrupted):
    changed = {h: dict(values) for h, values in uninterrupted.items()}
    first = sorted(changed)[0]
    changed[first]["metric val_acc"] = changed[first]["metric val_acc"].replace("1, 0.", "1, 9.")
    assert len(differences(uninterrupted, changed)) == 1
    del changed[first]
    assert differences(uninterrupted, changed) == [f"{first}: no such trial"]
