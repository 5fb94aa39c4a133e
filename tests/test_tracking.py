"""A real MLflow store on SQLite: what is written, once, and what is found again."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.tracking import MlflowClient

from errors import UserError
from search_spaces.plan import DatasetFacts
from search_spaces.stages import trial_name
from tests.helpers import make_config, refusal
from tracking import (
    FORMAT,
    ChangedModelError,
    ModelFiles,
    OtherTrainingError,
    StudyStore,
    check_store_exists,
    check_study_name,
    colour_tag,
    connection,
)
from trainables.evaluation import Evaluation

DATASET = DatasetFacts("films", "/data", "abc123", {"train": 8, "val": 1, "test": 2}, ("no", "yes"), 3)
RESULTS = {"best_epoch": 1, "best_val_acc": 0.5}
LABELS, ROWS = np.array([1, 0]), np.array([17, 4])


BEST = Evaluation(
    {"loss": 0.3, "acc": 0.5}, np.array([1, 1]), np.array([True, False]), np.array([[0.2, 0.8], [0.4, 0.6]])
)
LAST = Evaluation(
    {"loss": 0.4, "acc": 1.0}, np.array([1, 0]), np.array([True, True]), np.array([[0.1, 0.9], [0.7, 0.3]])
)


def report(epoch, **changes):
    values = {
        "evaluation": epoch,
        "epoch": epoch,
        "reported_at": 1_800_000_000_000 + epoch,
        "train_loss": 0.7,
        "val_loss": 0.6,
        "val_acc": 0.5,
        "epoch_seconds": 20.0,
        "examples_per_second": 10.0,
        "step_curve": [(2 * epoch - 1, 0.8, 0.4, 1e-3), (2 * epoch, 0.6, 0.6, 1e-3)],
    }
    return values | changes


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_PAUSE", 0.01)


@pytest.fixture
def store(empty_store):
    return StudyStore(empty_store, "films-study")


def start(store, plan=None, **tags):
    return store.start_invocation("title", plan or {"cells": []}, tags)


def open_trial(store, *cells):
    cells = cells or [make_config()]
    return store.open_trial(cells, trial_name(cells), DATASET, start(store))


def found(store, config=None):
    """The trial's run as another process finds it."""
    runs = StudyStore(store.tracking_uri, store.study).read_runs()
    return runs.trials[(config or make_config()).trial_hash]


def only_experiment(store):
    (experiment,) = store.client.search_experiments(filter_string="name = 'films-study'")
    return experiment.experiment_id


def only_file(folder, name):
    """Where MLflow keeps an artifact."""
    (file,) = (folder / "mlruns").rglob(name)
    return file


@pytest.fixture
def model(tmp_path):
    return model_files(tmp_path / "classifier")


def model_files(folder, content="{}"):
    folder.mkdir(exist_ok=True)
    (folder / "classifier.json").write_text(content)
    return ModelFiles(folder, "trainables.exported_model", ())


# -- trials -----------------------------------------------------------------------------------------


def test_a_trial_has_params_tags_parent_name_and_data_set(store):
    cells = [make_config(scaling_rule=rule) for rule in ("fixed", "sqrt", "linear")]
    run = store.open_trial(cells, trial_name(cells, seeds=2), DATASET, start(store))
    data = store.client.get_run(run.run_id)
    assert data.data.params == {key: str(value) for key, value in cells[0].to_dict().items()} | {
        "learning_rate": "5e-05",
        "accumulation_steps": "1",
    }
    assert data.data.tags["trial_hash"] == cells[0].trial_hash
    assert [c["scaling_rule"] for c in json.loads(data.data.tags["cells"])] == ["fixed", "sqrt", "linear"]
    assert data.info.run_name == run.name == "bert-tiny · 64 · fixed=sqrt=linear · seed 42"
    assert data.data.tags["mlflow.parentRunId"] == store.read_runs().invocations[0].run_id
    dataset = data.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("films", "abc123")
    assert json.loads(dataset.profile)["duplicates_dropped"] == 3


def test_a_user_without_a_name_is_no_obstacle(store, monkeypatch):
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 2)  # of whom the system knows no name
    assert store.client.get_run(start(store).run_id).data.tags["mlflow.user"] == "unknown"


def test_curves_come_back_as_they_were_reported_whatever_the_metrics(store):
    run = open_trial(store)
    run.log_evaluations([report(1), report(2, val_acc=0.75, noise_scale=300.0, val_f1=0.25)])
    run.log_evaluations([report(3, physical_batch_size=32)])
    epochs, steps = found(store).evaluations(), found(store).steps()
    assert epochs["val_acc"].to_dict() == {1: 0.5, 2: 0.75, 3: 0.5}
    assert epochs["epoch_seconds"].to_list() == [20.0] * 3
    assert {name: epochs[name].dropna().to_dict() for name in ("noise_scale", "val_f1")} == {
        "noise_scale": {2: 300.0},
        "val_f1": {2: 0.25},
    }
    assert epochs["physical_batch_size"].dropna().to_dict() == {3: 32}
    assert not {"evaluation", "reported_at", "train_loss_per_step"} & set(epochs)
    assert steps["train_loss_per_step"].to_dict() == {1: 0.8, 2: 0.6, 3: 0.8, 4: 0.6, 5: 0.8, 6: 0.6}
    assert set(steps["learning_rate_per_step"]) == {1e-3}


def test_an_epoch_that_a_kill_left_half_written_is_written_again_and_no_other_is(store):
    first = open_trial(store)
    assert len(found(store).evaluations()) == len(found(store).steps()) == 0
    store.client.log_metric(first.run_id, "val_loss", 0.9, step=1)
    assert len(found(store).evaluations()) == 0
    for reports in ([report(1)], [report(1, reported_at=1_900_000_000_000), report(2)]):
        again = open_trial(store)
        again.log_evaluations(reports)
        assert again.run_id == first.run_id
    assert found(store).evaluations()["val_loss"].to_dict() == {1: 0.6, 2: 0.6}
    assert [m.step for m in store.client.get_metric_history(first.run_id, "val_acc")] == [1, 2]


def test_a_run_never_holds_parts_of_two_trainings(store):
    open_trial(store).log_evaluations([report(1), report(2)])
    run = open_trial(store)
    with pytest.raises(
        OtherTrainingError, match="evaluation 2 of bert-tiny · 64 · fixed is there with another"
    ):
        run.log_evaluations([report(1), report(2, val_loss=0.61), report(3)])
    assert found(store).evaluations()["val_loss"].to_dict() == {1: 0.6, 2: 0.6}
    run.supersede()
    assert store.client.get_run(run.run_id).info.status == "KILLED"  # it stays in MLflow
    open_trial(store).log_evaluations([report(1), report(2, val_loss=0.61)])
    assert found(store).evaluations()["val_loss"].to_dict() == {1: 0.6, 2: 0.61}


def test_a_failed_trial_carries_its_reason_and_a_new_try_clears_it(store):
    open_trial(store).fail("train_loss is nan at step 3")
    assert (found(store).status, found(store).tags["failure"]) == ("FAILED", "train_loss is nan at step 3")
    open_trial(store)
    assert (found(store).status, found(store).tags["failure"]) == ("RUNNING", "")


def test_a_second_run_that_a_slow_server_made_goes_and_the_one_with_results_stays(store):
    run = open_trial(store)
    run.log_evaluations([report(1)])
    tags = {"trial_hash": make_config().trial_hash, "format": str(FORMAT)}
    second = store.client.create_run(store.client.get_run(run.run_id).info.experiment_id, tags=tags)
    assert found(store).run_id == run.run_id
    assert open_trial(store).run_id == run.run_id
    assert store.client.get_run(second.info.run_id).info.lifecycle_stage == "deleted"


def test_of_two_runs_of_a_trial_that_hold_results_both_stay_and_the_fuller_one_goes_on(store):
    fuller = open_trial(store)
    fuller.log_evaluations([report(1), report(2)])
    tags = {"trial_hash": make_config().trial_hash, "format": str(FORMAT)}
    other = store.client.create_run(store.client.get_run(fuller.run_id).info.experiment_id, tags=tags)
    store.client.log_metric(other.info.run_id, "val_acc", 0.5, step=1)
    assert open_trial(store).run_id == fuller.run_id
    assert store.client.get_run(other.info.run_id).info.lifecycle_stage == "active"


def test_a_test_finishes_the_run_and_its_predictions_come_back_by_row(store, model):
    run = open_trial(store)
    run.log_evaluations([report(1), report(2)])
    run.log_models(model, None, RESULTS)
    assert (run.is_trained, run.is_tested) == (True, False)
    run.log_test({"best": BEST, "last": LAST}, LABELS, ROWS)
    results = {"test_acc": 0.5, "test_loss": 0.3, "last_test_acc": 1.0, "last_test_loss": 0.4}
    results |= RESULTS
    for handle in (run, found(store)):  # the handle follows what is written through it
        assert handle.is_tested
        assert {name: handle.metrics[name] for name in results} == results
        assert not results.keys() & set(handle.evaluations())
    predictions = found(store).predictions("best")
    assert predictions.pop("margin").to_list() == pytest.approx([0.6, 0.2])
    assert predictions.to_dict("list") == {
        "row_id": [17, 4],
        "label": [1, 0],
        "prediction": [1, 1],
        "probability": [0.8, 0.6],
    }
    assert found(store).predictions("last")["prediction"].to_list() == [1, 0]
    store.client.update_run(run.run_id, "RUNNING")  # as if a kill had come before the end was written
    assert not found(store).is_tested


BROKEN_PREDICTIONS = [
    Path.unlink,
    lambda path: path.write_bytes(b"PAR1 and nothing of the kind PAR1"),
    lambda path: pd.read_parquet(path).drop(columns="label").to_parquet(path),
    lambda path: pd.read_parquet(path).assign(label="a").to_parquet(path),
]


@pytest.mark.parametrize("harm", BROKEN_PREDICTIONS, ids=["missing", "garbage", "no labels", "texts"])
def test_predictions_that_cannot_be_read_are_one_line(store, tmp_path, harm):
    run = open_trial(store)
    run.log_test({"best": BEST, "last": BEST}, LABELS, ROWS)
    harm(only_file(tmp_path, "last_test_predictions.parquet"))
    assert len(run.predictions("best")) == 2
    assert "last_test_predictions" in refusal(run.predictions, "last")


# -- models -----------------------------------------------------------------------------------------


def by_mlflow(uri, folder):
    """A model and its requirements as the README tells users to load it."""
    model = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder / "by_mlflow")))
    (card,) = model.rglob("classifier.json")
    return card.read_text(), (model / "requirements.txt").read_text()


def test_models_of_the_best_and_the_last_epoch_come_back(store, tmp_path):
    run, last = open_trial(store), model_files(tmp_path / "last", "last")
    run.log_models(model_files(tmp_path / "best", "half"), last, RESULTS)
    first, best = run.tags["best_model"], model_files(tmp_path / "best", "best")
    run.log_models(best, last, RESULTS)  # again, as after a kill: there is one model of a name
    assert run.tags["best_model"] == first
    for which in ("best", "last"):
        folder = found(store).download_model(which, tmp_path / "back" / which)
        assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("classifier.json", which)]
    content, requirements = by_mlflow(f"runs:/{run.run_id}/last_model", tmp_path)
    assert content == "last"
    assert "torch==" in requirements
    assert mlflow.active_run() is None


HARM = [
    lambda stored: stored.write_text("[]"),
    lambda stored: (stored.parent / "stray.json").write_text("{}"),
    Path.unlink,
]


@pytest.mark.parametrize("harm", HARM, ids=["changed", "more", "less"])
def test_a_model_that_was_harmed_in_mlflow_is_not_given_out_and_is_made_anew(store, model, tmp_path, harm):
    run = open_trial(store)
    run.log_models(model, None, RESULTS)
    harm(only_file(tmp_path, "classifier.json"))
    with pytest.raises(ChangedModelError, match="is not what was uploaded"):
        run.download_model("best", tmp_path / "harmed")
    run.discard_models()
    run.discard_models()  # as after a kill
    again = found(store)
    assert not again.is_trained
    again.log_models(model, None, RESULTS)
    assert (again.download_model("best", tmp_path / "back") / "classifier.json").is_file()
    assert len(store.client.search_logged_models([only_experiment(store)])) == 1


def test_a_model_is_taken_from_this_store_alone(store, tmp_path):
    run = open_trial(store)
    for uri in ("file:///etc", "/etc", "http://127.0.0.1:1/x", "models:/../x", ""):
        store.client.set_tag(run.run_id, "best_model", uri)
        reason = refusal(found(store).download_model, "best", tmp_path / "model")
        assert "no model of this MLflow store" in reason


def test_the_registered_model_is_the_best_one_and_keeps_its_version(store, tmp_path):
    for seed, val_acc in ((1, 0.5), (2, 0.75)):
        run = open_trial(store, make_config(seed=seed))
        run.log_models(
            model_files(tmp_path / f"{seed}", f"{seed}"), None, RESULTS | {"best_val_acc": val_acc}
        )
        for _ in range(2):
            assert store.register_best(run) == "models:/films-study@best"
    best = store.client.get_model_version_by_alias("films-study", "best")
    assert (best.run_id, best.version) == (run.run_id, 2)
    assert best.description == "bert-tiny · 64 · fixed, epoch 1: val_acc 0.7500"
    assert by_mlflow("models:/films-study@best", tmp_path)[0] == "2"


# -- invocations and studies ------------------------------------------------------------------------


def test_an_unknown_study_suggests_the_near_miss_is_not_made_by_that_and_a_deleted_one_is_explained(store):
    assert "unknown study" in refusal(store.read_runs)
    assert [e.name for e in store.client.search_experiments()] == ["Default"]
    start(store)
    assert "did you mean films-study" in refusal(StudyStore(store.tracking_uri, "film-study").read_runs)
    store.client.delete_experiment(only_experiment(store))
    assert "mlflow experiments restore" in refusal(StudyStore, store.tracking_uri, "films-study")


def test_two_invocations_that_begin_a_study_at_once_share_its_experiment(empty_store):
    stores = [StudyStore(empty_store, "films-study") for _ in range(2)]
    started = [start(store, {"number": number}).run_id for number, store in enumerate(stores)]
    for store in stores:
        newest, oldest = store.read_runs().invocations
        assert [oldest.run_id, newest.run_id] == started
        assert (oldest.plan(), newest.plan()) == ({"number": 0}, {"number": 1})


def test_a_plan_that_is_none_is_one_line(store, tmp_path):
    invocation = start(store)
    path = only_file(tmp_path, "plan.json")
    for harm in (lambda: path.write_text("[]"), lambda: path.write_text("{"), path.unlink):
        harm()
        assert "plan.json" in refusal(invocation.plan)


def test_the_test_split_and_folders_come_back_as_they_were_stored(store, tmp_path):
    invocation = start(store)
    assert "run the study's command again" in refusal(invocation.test_split)
    assert invocation.download_folder("inside", tmp_path) is None
    split = {"row_id": [17, 4], "label": [1, 0], "text": ["a fine film", "two hours — “lost”"]}
    invocation.log_test_split(ROWS, LABELS, split["text"])
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "note.txt").write_text("hello")
    invocation.log_folder(tmp_path / "sent", "inside")
    (again,) = store.read_runs().invocations
    assert again.test_split().to_dict("list") == split
    assert (again.download_folder("inside", tmp_path) / "note.txt").read_text() == "hello"


def test_what_a_killed_invocation_left_running_is_ended_without_counting_its_time(store):
    start(store, process="process 7 on here", storage_id="a1").finish("FINISHED")
    start(store).discard()  # refused: nobody sees it again
    trial = open_trial(store)
    runs = store.read_runs()
    killed, finished = runs.invocations
    assert (killed.is_running, finished.is_running) == (True, False)
    assert (finished.process, finished.storage_id, killed.storage_id) == ("process 7 on here", "a1", "")
    for run in (killed, *runs.trials.values()):
        run.end_killed()
    runs = store.read_runs()
    assert [run.status for run in (*runs.invocations, found(store))] == ["KILLED", "FINISHED", "KILLED"]
    assert runs.invocations[0].seconds == 0 < runs.invocations[1].seconds
    assert open_trial(store).run_id == trial.run_id


def test_study_names_cannot_escape_their_folder():
    for name in ("", "../x", "a/b", ".hidden", "-x", "a b", "x" * 101, "a\n"):
        with pytest.raises(UserError, match="study name"):
            check_study_name(name)


# -- answers that are lost --------------------------------------------------------------------------

WRITES = (
    "create_experiment create_run log_dict log_batch log_inputs update_run create_logged_model log_outputs "
    "log_artifact set_terminated create_registered_model create_model_version set_registered_model_alias"
).split()


@pytest.mark.parametrize("write", WRITES)
def test_a_write_whose_answer_was_lost_is_not_made_twice(store, model, monkeypatch, write):
    call, calls = getattr(MlflowClient, write), []

    def lose_every_third_answer(*args, **kwargs):
        calls.append(args)
        answer = call(*args, **kwargs)
        if len(calls) % 3 == 1:
            raise requests.ConnectionError("connection reset by peer")
        return answer

    monkeypatch.setattr(MlflowClient, write, lose_every_third_answer)
    run = open_trial(store)
    run.log_evaluations([report(1), report(2)])
    run.log_models(model, None, RESULTS)
    run.log_test({"best": BEST, "last": LAST}, LABELS, ROWS)
    store.register_best(run)
    assert calls
    runs = store.read_runs()
    assert (len(runs.invocations), len(runs.trials)) == (1, 1)
    assert found(store).is_tested
    client, experiments = MlflowClient(), [only_experiment(store)]
    assert len(client.search_runs(experiments)) == 2
    assert len(client.search_logged_models(experiments)) == 1
    assert len(client.get_run(run.run_id).outputs.model_outputs) == 1
    assert len(client.search_model_versions("name = 'films-study'")) == 1
    for name in run.metrics:
        steps = [metric.step for metric in client.get_metric_history(run.run_id, name)]
        assert steps == sorted(set(steps))


# -- places -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri", ["file:///tmp/mlruns", "mlruns", "ftp://host", "http://127.0.0.1:1", "http://[::1"]
)
def test_a_place_that_cannot_work_is_one_line(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reason = refusal(StudyStore, uri, "films-study")
    assert uri in reason
    assert "is not a tracking URI" in reason or "does not answer" in reason
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # a new database takes seconds
def test_a_new_database_is_made_whole_and_none_by_looking_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reason = refusal(check_store_exists, f"sqlite:///{tmp_path}/mlflow.db")
    assert "run this where the study ran" in reason
    assert not list(tmp_path.iterdir())
    StudyStore("sqlite:///folder/new.db", "films-study")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new.db"]


def test_a_damaged_database_is_one_line_and_stays_as_it_is(store, tmp_path):
    open_trial(store)
    file = tmp_path / "mlflow.db"
    whole = file.read_bytes()
    half = len(whole) // 2
    for changed in (whole[:half], whole[:4096] + bytes(half), b"not a database"):
        file.write_bytes(changed)
        assert "mlflow.db is damaged" in refusal(StudyStore, store.tracking_uri, "films-study")
        assert file.read_bytes() == changed


def test_the_views_of_a_study_have_addresses(store):
    start(store)
    store.save_views(["model", "learning_rate"])
    pages = store.pages()
    assert pages["MLflow"] == f"mlflow ui --backend-store-uri {store.tracking_uri}"
    experiment = f"http://127.0.0.1:5000/#/experiments/{only_experiment(store)}/runs?"
    assert pages["  trials"].startswith(experiment)
    assert pages["  curves"].endswith("&viewStateShareKey=curves&compareRunsMode=CHART")
    assert StudyStore(store.tracking_uri, store.study).pages() == pages


def test_a_view_that_somebody_has_saved_is_left_alone(store):
    start(store)
    experiment = only_experiment(store)
    store.client.set_experiment_tag(experiment, "mlflow.sharedViewState.mine", "what I looked at")
    for parameters in (["model"], ["learning_rate"]):
        store.save_views(parameters)
    tags = store.client.get_experiment(experiment).tags
    assert tags["mlflow.sharedViewState.mine"] == "what I looked at"
    assert "params.`learning_rate`" in tags["mlflow.sharedViewState.trials"]
    assert "params.`model`" not in tags["mlflow.sharedViewState.trials"]


def test_trials_differ_in_colour_by_model_and_rule_and_are_darker_the_smaller_their_batch():
    def colour(*place):
        (value,) = colour_tag(*place).values()
        return [int(value[i : i + 2], 16) for i in (1, 3, 5)]

    found = [colour(model, rule, size) for model in range(4) for rule in range(3) for size in (0, 0.5, 1)]
    assert len(set(map(tuple, found))) == 36
    for model in range(4):
        brightness = [sum(colour(model, 0, size)) for size in (0, 0.5, 1)]
        assert brightness == sorted(brightness)


def test_a_trial_is_described_in_a_line(store):
    run = open_trial(store, make_config(target_batch_size=256, scaling_rule="sqrt", base_lr=1e-3))
    assert (
        "256 examples per optimizer step, learning rate 0.002 (scaling rule sqrt)"
        in run.tags["mlflow.note.content"]
    )
