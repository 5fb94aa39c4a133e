"""A real MLflow store on SQLite: what is written, once, and what is found again."""

import json
import threading
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from errors import UserError
from search_spaces import TrialConfig, trial_name
from tracking import (
    ChangedModelError,
    DatasetFacts,
    ModelFiles,
    OtherTrainingError,
    StudyStore,
    register_best,
)
from tracking.study_store import check_study_name
from trainables.evaluation import Evaluation

DATASET = DatasetFacts(
    "films", "/data/films", "abc123", {"train": 8, "val": 1, "test": 2}, ("no", "yes"), 3
)


def config(**changes):
    values = {"model": "bert-tiny", "target_batch_size": 64, "scaling_rule": "fixed"}
    return TrialConfig(**values | changes)


def report(epoch, val_acc=0.5, val_loss=0.6):
    return {
        "epoch": epoch,
        "train_loss": 0.7,
        "train_acc": 0.5,
        "val_loss": val_loss,
        "val_acc": val_acc,
        "examples_per_second": 10.0,
        "epoch_seconds": 20.0,
        "step_curve": [(2 * epoch - 1, 0.8, 0.4, 1e-3), (2 * epoch, 0.6, 0.6, 1e-3)],
    }


@pytest.fixture
def uri(empty_store):
    return empty_store


@pytest.fixture
def store(uri):
    return StudyStore(uri, "films-study")


def open_trial(store, cells):
    invocation = store.start_invocation("title", {"cells": []}, {})
    return store.open_trial(cells, 1, DATASET, invocation)


def test_curves_are_read_back_as_they_were_reported(store):
    run = open_trial(store, [config()])
    noise = {"noise_scale": 300.0, "gradient_variance": 6.0, "gradient_norm_squared": 0.02}
    run.log_epochs([report(1, 0.5), report(2, 0.75) | noise])
    again = store.trial_runs()[config().trial_hash]
    epochs, steps = again.epochs(), again.steps()
    assert epochs["val_acc"].to_dict() == {1: 0.5, 2: 0.75}
    assert epochs["epoch_seconds"].to_list() == [20.0, 20.0]
    assert epochs["noise_scale"].dropna().to_dict() == {2: 300.0}  # absent where it was not measured
    assert steps["train_loss_per_step"].to_dict() == {1: 0.8, 2: 0.6, 3: 0.8, 4: 0.6}
    assert set(steps["learning_rate_per_step"]) == {1e-3}


def test_the_physical_batch_size_is_logged_and_may_be_absent(store):
    run = open_trial(store, [config()])
    run.log_epochs(
        [report(1), report(2) | {"physical_batch_size": 64}, report(3) | {"physical_batch_size": 32}]
    )
    epochs = store.trial_runs()[config().trial_hash].epochs()
    assert epochs["physical_batch_size"].dropna().to_dict() == {2: 64, 3: 32}
    assert epochs["val_acc"].to_dict() == {1: 0.5, 2: 0.5, 3: 0.5}


def test_a_run_without_epochs_reads_as_empty(store):
    open_trial(store, [config()])
    run = store.trial_runs()[config().trial_hash]
    assert len(run.epochs()) == len(run.steps()) == 0


def test_nothing_is_created_before_an_invocation_starts(store, uri):
    assert store.trial_runs() == {}
    assert [e.name for e in MlflowClient(uri).search_experiments()] == ["Default"]


def test_a_trial_has_params_tags_parent_name_and_data_set(store):
    cells = [config(scaling_rule=rule) for rule in ("fixed", "sqrt", "linear")]
    run = open_trial(store, cells)
    data = store.client.get_run(run.run_id)
    for name, value in cells[0].to_dict().items():
        assert data.data.params[name] == str(value)
    assert data.data.params["learning_rate"] == "5e-05"
    assert data.data.params["accumulation_steps"] == "1"
    assert data.data.tags["trial_hash"] == cells[0].trial_hash
    assert [c["scaling_rule"] for c in json.loads(data.data.tags["cells"])] == ["fixed", "sqrt", "linear"]
    assert data.info.run_name == "bert-tiny · 64 · fixed=sqrt=linear"
    assert data.data.tags["mlflow.parentRunId"] == store.latest_invocation().run_id
    dataset = data.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("films", "abc123")
    assert json.loads(dataset.profile)["duplicates_dropped"] == 3


def test_epochs_are_written_at_step_epoch_and_curves_at_their_steps(store):
    run = open_trial(store, [config()])
    run.log_epochs([report(1, 0.5), report(2, 0.75)])
    history = store.client.get_metric_history(run.run_id, "val_acc")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.75)]
    curve = store.client.get_metric_history(run.run_id, "train_loss_per_step")
    assert [(m.step, m.value) for m in curve] == [(1, 0.8), (2, 0.6), (3, 0.8), (4, 0.6)]


def test_a_resumed_trial_keeps_its_run_and_repeats_no_epoch(store, uri):
    first = open_trial(store, [config()])
    first.log_epochs([report(1)])
    again = open_trial(StudyStore(uri, "films-study"), [config()])
    assert again.run_id == first.run_id
    again.log_epochs([report(1), report(2)])
    steps = [m.step for m in store.client.get_metric_history(first.run_id, "val_acc")]
    assert steps == [1, 2]


def test_a_failed_trial_carries_its_reason_and_a_new_try_clears_it(store):
    run = open_trial(store, [config()])
    run.fail("train_loss is nan at step 3")
    failed = store.client.get_run(run.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["failure"] == "train_loss is nan at step 3"
    open_trial(store, [config()])
    again = store.client.get_run(run.run_id)
    assert again.info.status == "RUNNING"
    assert again.data.tags["failure"] == ""


def test_test_results_finish_the_run_and_predictions_are_stored_by_row(store, tmp_path):
    run = open_trial(store, [config()])
    best = Evaluation(0.3, 0.5, np.array([1, 1]), np.array([[0.2, 0.8], [0.4, 0.6]]))
    last = Evaluation(0.4, 1.0, np.array([1, 0]), np.array([[0.1, 0.9], [0.7, 0.3]]))
    run.log_test(best, last, labels=np.array([1, 0]), rows=np.array([17, 4]))
    data = store.client.get_run(run.run_id)
    assert data.info.status == "FINISHED"
    assert {
        k: data.data.metrics[k] for k in ("test_acc", "test_loss", "last_test_acc", "last_test_loss")
    } == {
        "test_acc": 0.5,
        "test_loss": 0.3,
        "last_test_acc": 1.0,
        "last_test_loss": 0.4,
    }
    path = store.client.download_artifacts(run.run_id, "test_predictions.parquet", str(tmp_path))
    frame = pd.read_parquet(path)
    assert frame.pop("margin").tolist() == pytest.approx([0.6, 0.2])
    store.client.set_tag(run.run_id, "trained", "true")
    assert [again.is_tested for again in store.trial_runs().values()] == [True]
    store.client.update_run(run.run_id, "RUNNING")  # as if a kill had come before the run's end was written
    assert [again.is_tested for again in store.trial_runs().values()] == [False]
    assert frame.to_dict("list") == {
        "row_id": [17, 4],
        "label": [1, 0],
        "prediction": [1, 1],
        "probability": [0.8, 0.6],
    }


def test_the_newest_invocation_is_the_studys_plan(store):
    store.start_invocation("first", {"cells": ["old"]}, {})
    store.start_invocation("second", {"cells": ["new"]}, {})
    assert store.latest_invocation().plan() == {"cells": ["new"]}


def test_the_test_split_comes_back_as_it_was_stored(store):
    invocation = store.start_invocation("title", {"cells": []}, {})
    with pytest.raises(UserError, match="run the study's command again"):
        invocation.test_split()
    invocation.log_test_split(np.array([17, 4]), np.array([1, 0]), ["a fine film", "two hours — “lost”"])
    assert store.latest_invocation().test_split().to_dict("list") == {
        "row_id": [17, 4],
        "label": [1, 0],
        "text": ["a fine film", "two hours — “lost”"],
    }


def test_a_folder_of_files_comes_back(store, tmp_path):
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "note.txt").write_text("hello")
    invocation = store.start_invocation("title", {"cells": []}, {})
    assert invocation.download_folder("inside", tmp_path) is None
    invocation.log_folder(tmp_path / "sent", "inside")
    assert (invocation.download_folder("inside", tmp_path) / "note.txt").read_text() == "hello"


def test_a_deleted_study_is_explained(store, uri):
    open_trial(store, [config()])
    experiment = store.client.get_experiment_by_name("films-study")
    store.client.delete_experiment(experiment.experiment_id)
    with pytest.raises(UserError, match=r"was deleted in MLflow.*restore"):
        StudyStore(uri, "films-study")


def test_an_unknown_study_suggests_the_near_miss(store, uri):
    open_trial(store, [config()])
    with pytest.raises(UserError, match="did you mean films-study"):
        StudyStore(uri, "film-study").latest_invocation()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b", "x" * 101, "a\n"])
def test_study_names_cannot_escape_their_folder(name):
    with pytest.raises(UserError, match="study name"):
        check_study_name(name)


def test_run_names_tell_seeds_apart_only_where_there_are_several():
    cells = [config(scaling_rule="sqrt", target_batch_size=256)]
    assert trial_name(cells) == "bert-tiny · 256 · sqrt"
    assert trial_name(cells, seeds=2) == "bert-tiny · 256 · sqrt · seed 42"


def trained_run(store, folder, seed, val_acc):
    """A run with a model in MLflow, whose files are one line."""
    run = open_trial(store, [config(seed=seed)])
    run.log_epochs([report(1, val_acc)])
    files = ModelFiles(folder / f"seed{seed}", "trainables.exported_model", ())
    files.folder.mkdir()
    (files.folder / "classifier.json").write_text(f'{{"seed": {seed}}}')
    run.log_models(files, None, best_epoch=1, best_val_acc=val_acc)
    return run


def test_the_registered_model_is_the_best_one_and_keeps_its_version(store, tmp_path):
    first, better = (trained_run(store, tmp_path, seed, val_acc) for seed, val_acc in ((1, 0.5), (2, 0.75)))
    for run in (first, first, better, better):
        assert register_best(store.client, store.study, run) == "models:/films-study@best"
    best = store.client.get_model_version_by_alias("films-study", "best")
    assert (best.run_id, best.version) == (better.run_id, 2)
    assert "val_acc 0.7500" in best.description
    files = Path(
        mlflow.artifacts.download_artifacts("models:/films-study@best", dst_path=str(tmp_path / "m"))
    )
    assert [path.read_text() for path in files.rglob("classifier.json")] == ['{"seed": 2}']


def test_a_version_that_an_interrupted_attempt_made_is_used(store, tmp_path):
    run = trained_run(store, tmp_path, 1, 0.5)
    store.client.create_registered_model(store.study)
    source = run.tags["best_model"]
    store.client.create_model_version(store.study, source, run_id=run.run_id)  # and then it was killed
    register_best(store.client, store.study, run)
    assert len(store.client.search_model_versions(f"name = '{store.study}'")) == 1
    assert store.client.get_model_version_by_alias(store.study, "best").version == 1


def test_two_invocations_that_begin_a_study_at_once_share_its_experiment(uri):
    stores = [StudyStore(uri, "films-study"), StudyStore(uri, "films-study")]
    for number, store in enumerate(stores):
        store.start_invocation(f"{number}", {"cells": []}, {})
    assert len(stores[0].invocations()) == len(stores[1].invocations()) == 2


def test_starting_anew_leaves_the_earlier_runs_in_mlflow_and_out_of_the_study(store, uri):
    first = open_trial(store, [config()])
    first.log_epochs([report(1)])
    invocation = store.start_invocation("again", {"cells": []}, {})
    store.start_anew(invocation)
    assert store.trial_runs() == {}
    assert store.invocations() == [invocation]
    second = open_trial(store, [config()])
    assert second.run_id != first.run_id
    assert {h: run.run_id for h, run in store.trial_runs().items()} == {config().trial_hash: second.run_id}
    assert MlflowClient(uri).get_run(first.run_id).data.metrics["val_acc"] == 0.5


def test_what_a_killed_invocation_left_running_is_ended_without_counting_its_time(store, uri):
    trial = open_trial(store, [config()])
    killed = store.latest_invocation()
    invocation = store.start_invocation("again", {"cells": []}, {})
    store.end_killed_invocations(invocation)
    runs = [MlflowClient(uri).get_run(r) for r in (trial.run_id, killed.run_id, invocation.run_id)]
    assert [run.info.status for run in runs] == ["KILLED", "KILLED", "RUNNING"]
    assert store.wall_seconds() == 0


def start(store, storage_id):
    tags = {"process": f"process 7 on {storage_id}", "storage_id": storage_id}
    return store.start_invocation("title", {"cells": []}, tags)


def test_an_invocation_with_another_storage_is_seen_at_work(store):
    first, lost = start(store, "here"), threading.Event()
    with first.heartbeat(lost.set, every=0.1):
        second = start(store, "there")
        said = []
        with pytest.raises(UserError, match="run by process 7 on here with another --storage-path"):
            store.check_alone(second, said.append, patience=60)
        assert len(said) == 1
        second.leave_behind()
        assert store.invocations() == [first]  # nobody sees the one that did nothing
    assert not lost.is_set()


def test_an_invocation_with_another_storage_that_was_killed_is_no_longer_waited_for(store):
    start(store, "here")
    second = start(store, "there")
    said = []
    store.check_alone(second, said.append, patience=1)
    assert "waiting up to 1 s" in said[0]


def test_an_invocation_that_was_taken_for_dead_hears_of_it(store):
    first, lost = start(store, "here"), threading.Event()
    second = start(store, "there")
    store.end_killed_invocations(second)
    with first.heartbeat(lost.set, every=0.1):
        assert lost.wait(30)


def test_an_invocation_with_the_same_storage_was_killed_and_is_not_waited_for(store):
    said = []
    with start(store, "here").heartbeat(
        lambda: said.append("lost"), every=0.1
    ):  # its lock is what keeps it alone
        store.check_alone(start(store, "here"), said.append, patience=60)
    assert said == []


def test_of_two_runs_of_one_trial_the_one_with_results_stays(store, uri):
    first = open_trial(store, [config()])
    first.log_epochs([report(1)])
    empty = store._create_run(
        "name", {"trial_hash": config().trial_hash}
    )  # as by a server too slow to say so
    again = open_trial(store, [config()])
    assert again.run_id == first.run_id
    assert MlflowClient(uri).get_run(empty.info.run_id).info.lifecycle_stage == "deleted"


def test_an_epoch_written_twice_with_its_time_stamp_is_there_once(store, uri):
    run = open_trial(store, [config()])
    stamped = report(1) | {"timestamp": 1_800_000_000_000}
    run._log_epoch(stamped)
    run._log_epoch(stamped)  # as after an answer that was lost
    for name in ("val_acc", "train_loss_per_step", "examples_per_second"):
        steps = [m.step for m in MlflowClient(uri).get_metric_history(run.run_id, name)]
        assert steps == sorted(set(steps))


def test_a_run_never_holds_parts_of_two_trainings(store):
    first = open_trial(store, [config()])
    first.log_epochs([report(1), report(2)])
    again = open_trial(store, [config()])
    again.log_epochs([report(1), report(2), report(3)])
    with pytest.raises(OtherTrainingError, match="epoch 2 of bert-tiny · 64 · fixed is there with another"):
        open_trial(store, [config()]).log_epochs([report(1), report(2, val_loss=0.61), report(3)])
    epochs = store.trial_runs()[config().trial_hash].epochs()
    assert epochs["val_loss"].to_dict() == {1: 0.6, 2: 0.6, 3: 0.6}


def model_files(folder, content=b"weights"):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    return ModelFiles(folder, "trainables.exported_model", ())


def test_uploading_again_fills_the_same_model(store, uri, tmp_path):
    run = open_trial(store, [config()])
    run.log_models(model_files(tmp_path / "a", b"half"), None, 1, 0.5)
    first = run.tags["best_model"]
    run.log_models(model_files(tmp_path / "a"), None, 1, 0.5)
    assert run.tags["best_model"] == first
    assert (run.download_model("best", tmp_path / "b") / "model.safetensors").read_bytes() == b"weights"
    history = MlflowClient(uri).get_metric_history(run.run_id, "best_val_acc")
    assert len(history) == 1


def test_a_model_that_changed_in_mlflow_is_not_given_out(store, tmp_path):
    run = open_trial(store, [config()])
    run.log_models(model_files(tmp_path / "a"), None, 1, 0.5)
    (stored,) = [p for p in (tmp_path / "mlruns").rglob("model.safetensors") if p.is_file()]
    stored.write_bytes(b"weighty")
    with pytest.raises(ChangedModelError, match="is not what was uploaded"):
        run.download_model("best", tmp_path / "b")
    run.discard_models()
    assert not store.trial_runs()[config().trial_hash].is_trained


@pytest.mark.parametrize("damage", ["cut", "zeroed", "text"])
def test_a_damaged_database_is_one_line_and_stays_as_it_is(store, uri, tmp_path, damage):
    open_trial(store, [config()])
    file = tmp_path / "mlflow.db"
    whole = file.read_bytes()
    half = len(whole) // 2
    changed = {"cut": whole[:half], "zeroed": whole[:4096] + bytes(half), "text": b"not a database"}[damage]
    file.write_bytes(changed)
    with pytest.raises(UserError) as raised:
        StudyStore(uri, "films-study")
    assert "mlflow.db" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert file.read_bytes() == changed


def test_a_new_database_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    StudyStore("sqlite:///folder/new.db", "films-study")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new.db"]
