"""``run_study`` on trained studies: whose they are, what is tested, which model is the best."""

import contextlib
import os
import shutil
import sqlite3
from dataclasses import replace

import pytest
from mlflow.tracking import MlflowClient

from errors import StoreAwayError
from sweep.options import SweepOptions
from sweep.plan import make_plan
from sweep.storage import StudyStorage
from sweep.study import run_study
from tests.faults.study import ROOT
from tests.helpers import refusal
from tests.small_study import OPTIONS, STUDY, write_small_study
from tests.test_tracking import BEST, LABELS, ROWS, model_files
from tracking import StudyStore, connection

THREE_TRIALS = OPTIONS | {
    "models": ["bert-tiny"],
    "epochs": 1,
    "train_size": 64,
    "cpus_per_trial": os.cpu_count(),  # one after the other
    "gpus_per_trial": 0,
    "store_patience": 1.0,
}


def options(uri, **more):
    return SweepOptions(**THREE_TRIALS | {"tracking_uri": uri} | more)


@pytest.fixture
def plan(empty_store):
    return make_plan(options(empty_store), bf16_available=False).plan


def open_trials(plan, uri, owner):
    """The store, and a run of the command that has opened every trial, in the plan's order."""
    store = StudyStore(uri, STUDY)
    invocation = store.start_invocation("title", plan.model_dump(mode="json"), owner)
    runs = [
        store.open_trial(cells, plan.name(trial_hash), plan.dataset, invocation, {})
        for trial_hash, cells in plan.trials.items()
    ]
    return store, runs


# -- the best model --------------------------------------------------------------------------------


def registered(plan, uri, folder, val_accs, test_accs):
    """Which trial's model is registered, by its place in a plan whose trials have come to these."""
    with (storage := StudyStorage("ray_results", STUDY)).owned():
        store, runs = open_trials(plan, uri, storage.owner)
    for run, val_acc, test_acc in zip(runs, val_accs, test_accs, strict=True):
        model = model_files(folder / run.run_id, run.run_id)
        run.log_models(model, None, {"best_epoch": 1, "best_val_acc": val_acc})
        tested = replace(BEST, metrics={"loss": 0.3, "acc": test_acc})
        run.log_test({"best": tested, "last": tested}, LABELS, ROWS)
    assert run_study(options(uri)).failures == {}
    best = store.client.get_model_version_by_alias(STUDY, "best").run_id
    return [run.run_id for run in runs].index(best)


def test_the_registered_model_is_the_best_by_val_acc_and_not_by_test_acc(plan, empty_store, tmp_path):
    assert registered(plan, empty_store, tmp_path, [0.5, 0.75, 0.625], [0.9, 0.5, 1.0]) == 1


def test_of_equally_good_models_the_earliest_in_the_plan_is_registered(plan, empty_store, tmp_path):
    assert registered(plan, empty_store, tmp_path, [0.5, 0.75, 0.75], [0.25, 0.5, 0.5]) == 1


# -- whose study it is -----------------------------------------------------------------------------


def test_fresh_does_not_take_a_study_over_that_another_machine_is_at_work_on(plan, empty_store, tmp_path):
    with (elsewhere := StudyStorage(str(tmp_path / "elsewhere"), STUDY)).owned():
        store, runs = open_trials(plan, empty_store, elsewhere.owner)
        reason = refusal(run_study, options(empty_store, fresh=True))
    assert f"is being run by {elsewhere.owner['process']} with another --storage-path" in reason
    found = store.read_runs()
    assert {run.run_id for run in found.trials.values()} == {run.run_id for run in runs}
    assert all(run.is_running for run in (*found.invocations, *found.trials.values()))


# -- the test --------------------------------------------------------------------------------------


class Untested:
    """Three trials that lack their test; a checkpoint of each is on disk."""

    def __init__(self, folder):
        self.uri = write_small_study(folder, **THREE_TRIALS)
        store = StudyStore(self.uri, STUDY)
        plan = make_plan(options(self.uri), bf16_available=False).plan
        found = store.read_runs()
        runs = [found.trials[trial_hash] for trial_hash in plan.trials]
        for run in (*found.invocations, *runs):
            store.client.set_terminated(run.run_id, "KILLED")  # as if a kill had come before the test
        self.checkpoints = [folder / "ray_results" / STUDY / "trials" / h for h in plan.trials]
        for checkpoint in self.checkpoints:
            (checkpoint / "evaluation-000001").mkdir(parents=True)
        (folder / "ray_results" / STUDY / ".batchscale").touch()  # the folder is the program's
        self.run_ids = [run.run_id for run in runs]
        self.models = [run.tags["best_model"].removeprefix("models:/") for run in runs]
        self.refused, self.asked_for = [], []  # run ids, models

    def lose_store(self):
        with contextlib.closing(sqlite3.connect(self.uri.removeprefix("sqlite:///"))) as database:
            for table in ("experiments", "runs", "logged_models"):
                database.execute(f"ALTER TABLE {table} RENAME TO {table}_taken")
            database.commit()


@pytest.fixture(scope="module")
def stopped(migrated_database, tmp_path_factory):
    """The three, after a run whose store was full for the first one's results and went with the second."""
    folder = tmp_path_factory.mktemp("untested")
    shutil.copyfile(migrated_database, folder / "mlflow.db")
    study = Untested(folder)
    log_artifact, get_model = MlflowClient.log_artifact, MlflowClient.get_logged_model

    def refuse_the_first(client, run_id, *how):
        if run_id == study.run_ids[0]:
            study.refused.append(run_id)
            raise OSError("No space left on device")
        log_artifact(client, run_id, *how)

    def lose_at_the_second(client, model_id):
        study.asked_for.append(model_id)
        if study.asked_for == study.models[:2]:
            study.lose_store()
        return get_model(client, model_id)

    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # for Ray's workers
        patch.setattr(connection, "FIRST_PAUSE", 0.01)
        patch.setattr(connection, "LONGEST_PAUSE", 0.1)
        patch.setattr(MlflowClient, "log_artifact", refuse_the_first)
        patch.setattr(MlflowClient, "get_logged_model", lose_at_the_second)
        with pytest.raises(StoreAwayError, match="does not answer"):
            run_study(options(study.uri))
    return study


def test_a_checkpoint_stays_until_the_test_is_in_mlflow(stopped):
    assert stopped.refused  # so the model was evaluated
    assert stopped.checkpoints[0].exists()


def test_a_store_that_is_away_is_waited_for_once_and_not_once_a_trial(stopped):
    assert set(stopped.asked_for) == set(stopped.models[:2])
