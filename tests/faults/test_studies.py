"""A short selection of the campaign, at fixed moments: ``make faults`` is the long one."""

import random
import signal

import pytest

from tests.faults import bench, catalog
from tests.faults.bench import Moment
from tests.faults.rounds import outcome
from tests.faults.scripted import SCRIPTS
from tests.faults.servers import postgres_missing
from tests.faults.study import differences

pytestmark = pytest.mark.slow


def test_a_killed_worker_and_a_killed_command_change_nothing(uninterrupted, tmp_path):
    with bench.local(tmp_path) as where:
        where.command.start()
        assert Moment("epoch ", 2, 0.2).come(where.command)
        where.processes("ray::")[0].kill()
        assert where.command.wait_for("(failure 1)")
        assert Moment("epoch ", 4, 0.2).come(where.command)
        catalog.damage_checkpoint(where, random.Random(1))  # which kills the command first
        where.command.run()
        assert outcome(where, uninterrupted) == []


def test_a_trial_that_fails_for_good_and_ctrl_c_are_made_up_for_by_the_next_run(uninterrupted, tmp_path):
    with bench.local(tmp_path) as where:
        where.command.start("--max-failures", "0")
        assert Moment("epoch ", 1, 0.2).come(where.command)
        where.processes("ray::")[0].kill()
        assert where.command.wait() == 1, where.command.output()
        (failed,) = [line for line in where.command.said().splitlines() if line.startswith("failed: ")]
        assert failed.endswith("its worker died")
        assert where.command.said().count("epoch 3/3") == len(uninterrupted) - 1
        where.command.start()
        assert Moment("epoch ", 1, 0.1).come(where.command)
        assert "stopped after" in catalog.stop(signal.SIGINT)(where, random.Random(1))
        where.command.run()
        assert outcome(where, uninterrupted) == []


@pytest.mark.parametrize("name", ["the study grows by cells", "--fresh", "MLflow away until the end"])
def test_a_script_of_the_campaign_ends_where_an_uninterrupted_study_does(uninterrupted, tmp_path, name):
    script = next(script for script in SCRIPTS if script.name == name)
    if script.place is bench.served and postgres_missing():
        pytest.skip(postgres_missing())
    assert script.play(tmp_path, uninterrupted) == []


def test_a_difference_would_be_seen(uninterrupted):
    changed = {h: dict(values) for h, values in uninterrupted.items()}
    first = sorted(changed)[0]
    changed[first]["metric val_acc"] = changed[first]["metric val_acc"].replace("1, 0.", "1, 9.")
    assert len(differences(uninterrupted, changed)) == 1
    del changed[first]
    assert differences(uninterrupted, changed) == [f"{first}: no such trial"]
