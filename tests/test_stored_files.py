"""A real MLflow store that damages what it takes: noticed at once, repeated, never taken for stored."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from tests.helpers import make_config
from tracking import ChangedModelError, DatasetFacts, ModelFiles, Patience, StudyStore
from tracking.stored_files import ChangedFileError
from trainables.evaluation import Evaluation

DATASET = DatasetFacts("films", "/data", "abc123", {"train": 8, "val": 1, "test": 2}, ("no", "yes"), 0)
RESULT = Evaluation(0.3, 0.5, np.array([1, 1]), np.array([[0.2, 0.8], [0.4, 0.6]]))


@pytest.fixture
def store(empty_store):
    return StudyStore(empty_store, "films-study")


@pytest.fixture
def run(store):
    return store.open_trial([make_config()], 1, DATASET, store.start_invocation("title", {}, {}))


@pytest.fixture
def model(tmp_path):
    files = ModelFiles(tmp_path / "classifier", "trainables.exported_model", ())
    files.folder.mkdir()
    (files.folder / "classifier.json").write_text('{"labels": ["no", "yes"]}')
    return files


def damage(folder, name):
    """Cut the last byte off what the store holds under this name."""
    (file,) = Path(folder).rglob(name)
    file.write_bytes(file.read_bytes()[:-1])


@pytest.fixture
def bad_disk(tmp_path, monkeypatch):
    """Damages the next so many uploads, each after it was answered with success."""
    left = []

    def after(method, name_of):
        upload = getattr(LocalArtifactRepository, method)

        def uploaded(repository, *arguments):
            upload(repository, *arguments)
            if left:
                left.pop()
                damage(tmp_path / "mlruns", name_of(arguments))

        monkeypatch.setattr(LocalArtifactRepository, method, uploaded)

    after("log_artifact", lambda arguments: Path(arguments[0]).name)
    after("log_artifacts", lambda arguments: "classifier.json")
    return lambda times: left.extend([True] * times)


def patiently(store, call):
    return Patience(store.answers, print).call(call, seconds=60)


def test_predictions_that_the_store_damages_are_stored_again(store, run, bad_disk):
    bad_disk(1)
    patiently(store, lambda: run.log_test(RESULT, RESULT, np.array([1, 0]), np.array([17, 4])))
    for which in ("best", "last"):
        assert run.predictions(which)["row_id"].to_list() == [17, 4]
    assert store.client.get_run(run.run_id).info.status == "FINISHED"


def test_predictions_that_cannot_be_read_back_at_first_are_stored_again(store, run, monkeypatch):
    download, failures = LocalArtifactRepository.download_artifacts, ["Failed to download artifacts"]

    def fail_once(repository, *arguments):
        if failures:
            raise MlflowException(failures.pop(), RESOURCE_DOES_NOT_EXIST)
        return download(repository, *arguments)

    monkeypatch.setattr(LocalArtifactRepository, "download_artifacts", fail_once)
    patiently(store, lambda: run.log_test(RESULT, RESULT, np.array([1, 0]), np.array([17, 4])))
    assert store.client.get_run(run.run_id).info.status == "FINISHED"


def test_a_trial_whose_predictions_cannot_be_stored_is_not_finished(store, run, bad_disk):
    bad_disk(100)
    with pytest.raises(ChangedFileError, match=r"test_predictions\.parquet"):
        patiently(store, lambda: run.log_test(RESULT, RESULT, np.array([1, 0]), np.array([17, 4])))
    assert store.client.get_run(run.run_id).info.status == "RUNNING"


def test_a_model_that_the_store_damages_is_stored_again(store, run, model, bad_disk, tmp_path):
    bad_disk(1)
    patiently(store, lambda: run.log_models(model, None, best_epoch=1, best_val_acc=0.5))
    assert store.trial_runs()[make_config().trial_hash].is_trained
    assert (run.download_model("best", tmp_path / "back") / "classifier.json").read_text() == (
        model.folder / "classifier.json"
    ).read_text()


def test_a_trial_whose_model_cannot_be_stored_is_not_trained(store, run, model, bad_disk):
    bad_disk(100)
    with pytest.raises(ChangedModelError):
        run.log_models(model, None, best_epoch=1, best_val_acc=0.5)
    assert not store.trial_runs()[make_config().trial_hash].is_trained


def test_a_test_split_that_the_store_damages_is_noticed(store, bad_disk):
    invocation = store.start_invocation("title", {}, {})
    bad_disk(1)
    with pytest.raises(ChangedFileError, match="test_split"):
        invocation.log_test_split(np.array([17, 4]), np.array([1, 0]), ["a", "b"])


def add_a_file(stored):
    (stored.parent / "stray.json").write_text("{}")


def damage_its_description(stored):
    (stored.parents[2] / "MLmodel").write_text("{")


@pytest.mark.parametrize("harm", [add_a_file, damage_its_description])
def test_a_model_that_was_harmed_in_mlflow_is_made_anew(store, run, model, harm, tmp_path):
    run.log_models(model, None, best_epoch=1, best_val_acc=0.5)
    (stored,) = (tmp_path / "mlruns").rglob("classifier.json")
    harm(stored)
    with pytest.raises(ChangedModelError):
        run.download_model("best", tmp_path / "harmed")
    run.discard_models()
    run.discard_models()  # as after a kill
    (again,) = store.trial_runs().values()
    assert not again.is_trained
    again.log_models(model, None, best_epoch=1, best_val_acc=0.5)
    assert (again.download_model("best", tmp_path / "back") / "classifier.json").is_file()
    assert len(store.client.search_logged_models([run.run.info.experiment_id])) == 1


@pytest.fixture
def uncollected():
    """Python's garbage stays."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
def test_files_that_come_and_go_leave_no_thread_behind(run, model, tmp_path):
    before = set(threading.enumerate())
    run.log_models(model, None, best_epoch=1, best_val_acc=0.5)
    run.download_model("best", tmp_path / "back")
    run.log_test(RESULT, RESULT, np.array([1, 0]), np.array([17, 4]))
    run.predictions("best")
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(timeout=10)
    assert not [thread for thread in left if thread.is_alive()]
