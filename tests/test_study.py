"""The whole command, for real: Ray, MLflow, models, tables; small enough for two cores."""

import contextlib
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
import torch
from mlflow.tracking import MlflowClient
from transformers import AutoModel, AutoTokenizer

from reports.study_data import read_study
from sweep.options import SweepOptions, parse_options
from sweep.plan import make_plan
from tests.faults import processes
from tests.faults.study import Command
from tests.hostile.models import write_encoder
from tracking import StudyStore
from trainables.evaluation import evaluate
from trainables.exported_model import load_exported_model

STUDY = "small"
SMALL = "--demo --train-size 320 --eval-size 60 --max-length 32".split()
COMMAND = [
    *f"--space batch_lr_grid --name {STUDY} --epochs 2 --models bert-tiny --precision bf16".split(),
    *SMALL,
]
ASSUMED = ["--assume-disagreement", "0.2"]


def run(folder, *arguments):
    command = Command(folder, study=arguments)
    return command.run(), command.said()


def output(folder):
    return Command(folder).output()


def client(folder):
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def runs(folder, study=STUDY):
    store = client(folder)
    experiment = store.get_experiment_by_name(study)
    found = store.search_runs([experiment.experiment_id]) if experiment else []
    trials = [run for run in found if "trial_hash" in run.data.tags]
    return trials, [run for run in found if run.data.tags.get("role") == "invocation"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One finished study of nine cells and seven trials."""
    folder = tmp_path_factory.mktemp("study")
    code, text = run(folder, *COMMAND, *ASSUMED)
    assert code == 0, text
    return folder


def test_nine_cells_are_seven_trials_under_one_parent(study):
    trials, parents = runs(study)
    assert len(trials) == 7  # three rules at three batch sizes, of which the reference one is shared
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parents[0].info.run_id}
    assert {run.info.status for run in trials + parents} == {"FINISHED"}
    assert sum(len(json.loads(run.data.tags["cells"])) for run in trials) == 9


def test_every_trial_has_every_metric(study):
    for trial in runs(study)[0]:
        metrics = trial.data.metrics
        for name in "best_val_acc best_epoch test_acc test_loss last_test_acc last_test_loss".split():
            assert name in metrics
        for name in "train_loss train_acc val_loss val_acc examples_per_second".split():
            history = client(study).get_metric_history(trial.info.run_id, name)
            assert [metric.step for metric in history] == [1, 2]
        steps = client(study).get_metric_history(trial.info.run_id, "train_loss_per_step")
        windows = -(-320 // int(trial.data.params["target_batch_size"]))
        assert [metric.step for metric in steps] == list(range(1, 2 * windows + 1))


def test_test_accuracy_is_that_of_the_stored_predictions(study):
    data = read_study(StudyStore(f"sqlite:///{study}/mlflow.db", STUDY).read_runs())
    for trial in data.trials.values():
        for which, name in {"best": "test_acc", "last": "last_test_acc"}.items():
            assert len(trial.predictions[which]) == 60
            assert trial.metrics[name] == pytest.approx(trial.correct(which).mean(), abs=1e-12)


def test_the_card_of_a_model_has_the_epoch_and_the_val_acc_of_its_own_evaluation(study):
    last_is_best = set()
    for trial in runs(study)[0]:
        history = client(study).get_metric_history(trial.info.run_id, "val_acc")
        val_accs = {metric.step: metric.value for metric in history}
        best = max(val_accs, key=lambda epoch: (val_accs[epoch], -epoch))
        last_is_best.add(val_accs[best] == val_accs[2])
        for which, epoch in {"best_model": best, "last_model": 2}.items():
            model_id = trial.data.tags[which].removeprefix("models:/")
            (file,) = (study / "mlruns").rglob(f"{model_id}/artifacts/**/classifier.json")
            card = json.loads(file.read_text())
            assert (card["epoch"], card["val_acc"]) == (epoch, val_accs[epoch])
    assert False in last_is_best  # else a mix-up of the two could not be seen


def test_bf16_trials_are_tested_in_bf16(study, tmp_path):
    """Models that are loaded anew come to their stored losses in bf16, and not all of them in fp32."""
    found = StudyStore(f"sqlite:///{study}/mlflow.db", STUDY).read_runs()
    split, losses = found.invocations[0].test_split(), {"stored": [], "bf16": [], "fp32": []}
    labels = split["label"].to_numpy()
    for trial_hash, run in found.trials.items():
        with contextlib.chdir(study):  # where its artifacts lie
            (tmp_path / trial_hash).mkdir()
            exported = load_exported_model(run.download_model("best", tmp_path / trial_hash))
        texts = exported.token_tensors(split["text"].tolist())
        losses["stored"].append(run.metrics["test_loss"])
        for precision in ("bf16", "fp32"):
            probabilities = evaluate(exported.model, texts, precision).probabilities
            losses[precision].append(-np.log(probabilities[range(len(labels)), labels]).mean())
    assert losses["stored"] == pytest.approx(losses["bf16"], rel=1e-6)
    assert losses["stored"] != pytest.approx(losses["fp32"], rel=1e-6)


def test_tables_are_printed_and_written_and_logged(study, tmp_path):
    text = output(study)
    assert text.count("val_acc@best epoch") == 3
    frame = pd.read_csv(study / "results" / STUDY / "results.csv")
    assert len(frame) == 9
    assert frame["trial_hash"].nunique() == 7
    by_hash = {run.data.tags["trial_hash"]: run for run in runs(study)[0]}
    for row in frame.itertuples():
        assert row.test_acc == by_hash[row.trial_hash].data.metrics["test_acc"]
    markdown = (study / "results" / STUDY / "report.md").read_text()
    assert markdown.count("scaling rule: ") == 3
    assert (study / "results" / STUDY / "report.html").stat().st_size > 100_000
    assert re.search(r"probability of 80 %.* points \(\d+\.\d points expected\)", markdown)
    assert "one seed says nothing about another training" in " ".join(text.split())
    parent = runs(study)[1][0]
    logged = client(study).download_artifacts(parent.info.run_id, "report.md", str(tmp_path))
    assert Path(logged).read_text() == markdown


def test_nothing_but_the_table_reaches_the_user(study):
    noise = [
        line for line in output(study).splitlines() if "warning" in line.lower() or "Traceback" in line
    ]
    assert not noise
    assert "Ray dashboard  http://127.0.0.1:" in output(study)
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in output(study)


def test_checkpoints_are_gone_when_the_study_is_finished(study):
    assert not (study / "ray_results" / STUDY).exists()


def test_the_model_answers_in_a_process_that_never_saw_the_project(study, tmp_path):
    trial = runs(study)[0][0]
    code = (
        "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]);"
        "m = mlflow.pyfunc.load_model(sys.argv[2]);"
        "print(m.metadata.signature.inputs, m.predict(['a fine film', 'dull']).to_json(orient='records'))"
    )
    for uri in (trial.data.tags["best_model"], f"runs:/{trial.info.run_id}/best_model"):
        arguments = [sys.executable, "-c", code, f"sqlite:///{study}/mlflow.db", uri]
        answer = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True)
        rows = json.loads(answer.stdout.strip().splitlines()[-1].split("] ", 1)[1])
        assert [row["label"] in {"positive", "negative"} for row in rows] == [True, True]
        assert all(0.5 <= row["score"] <= 1 for row in rows)


def test_a_second_run_trains_nothing_and_says_so(study):
    before = {run.info.run_id for run in runs(study)[0]}
    code, text = run(study, *COMMAND)
    assert code == 0
    assert "all 7 trials are already trained and tested" in text
    assert {run.info.run_id for run in runs(study)[0]} == before


def test_the_report_needs_mlflow_alone(study):
    wanted = (study / "results" / STUDY / "results.csv").read_text()
    code, text = run(study, "report", "--name", STUDY, "--results-path", "elsewhere")
    assert code == 0
    assert (study / "elsewhere" / STUDY / "results.csv").read_text() == wanted
    assert text.count("scaling rule:") == 3


def test_more_cores_than_there_are_is_one_line_and_leaves_no_run(tmp_path):
    code, text = run(tmp_path, *COMMAND, "--cpus-per-trial", "640")
    assert code == 2
    assert text.count("error: ") == 1
    assert "error: --cpus-per-trial 640 is more than the" in text
    assert runs(tmp_path) == ([], [])


def broken_model(folder):
    """A local encoder folder with one word that is no number; every review has it, the look has not."""
    encoder = AutoModel.from_pretrained(write_encoder(folder))
    word = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("the")
    torch.nn.init.constant_(encoder.get_input_embeddings().weight[word], math.nan)
    encoder.save_pretrained(folder)


HARMED = (
    "--space fixed_lr --name harmed --epochs 2 --target-batch-sizes 64 128 256 --precision fp32 "
    "--max-failures 1 --store-patience 60"
).split() + SMALL
WAITS = "waiting for the tracking store to take what is left"
HOPELESS = "(failure 2)"  # one attempt more than is allowed


def take_store(folder):
    """Take the store's tables away; returns what brings them back."""
    tables = ("experiments", "runs")

    def execute(command):
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
            for table in tables:
                database.execute(command.format(table=table))
            database.commit()

    execute("ALTER TABLE {table} RENAME TO {table}_taken")
    return lambda: execute("ALTER TABLE {table}_taken RENAME TO {table}")


@pytest.fixture(scope="module")
def harmed(tmp_path_factory):
    """A command in which only the trial of bert-tiny at 64 could come to its end.

    The other model diverges. At 128 a file stands where a checkpoint would go, so every attempt fails. At
    256 the last checkpoint is damaged before the upload. MLflow is away until all training has ended.
    """
    folder = tmp_path_factory.mktemp("harmed")
    plan = make_plan(
        parse_options(SweepOptions, [*HARMED, "--models", "bert-tiny"]), bf16_available=False
    ).plan
    by_size = {config.target_batch_size: trial_hash for trial_hash, config in plan.configs.items()}
    trials = folder / "ray_results" / "harmed" / "trials"
    (trials / by_size[128]).mkdir(parents=True)
    (trials / by_size[128] / "evaluation-000001").touch()
    (trials.parent / ".batchscale").touch()  # the folder is the program's
    broken_model(folder / "broken")
    with Command(folder, study=[*HARMED, "--models", "bert-tiny", "./broken"]) as command:
        assert command.start().wait_for("Ray dashboard"), command.output()
        bring_back = take_store(folder)
        command.wait_until(lambda: WAITS in command.said() or HOPELESS in command.said(), 400, WAITS)
        for file in (trials / by_size[256] / "evaluation-000002").glob("*"):
            file.write_bytes(file.read_bytes()[:-1])
        bring_back()
        command.wait_until(lambda: HOPELESS in command.said(), 400, "the end")
    return command


def by_trial(folder):
    """The runs of the trials by model and target batch size."""
    found = {}
    for run in runs(folder, "harmed")[0]:
        params = run.data.params
        found[Path(params["model"]).name, int(params["target_batch_size"])] = run
    return found


def test_a_diverged_trial_fails_alone_and_is_named(harmed):
    assert harmed.process.returncode == 1
    trials = by_trial(harmed.folder)
    assert trials["bert-tiny", 64].info.status == "FINISHED"
    assert "test_acc" in trials["bert-tiny", 64].data.metrics
    for size in (64, 128, 256):
        broken = trials["broken", size]
        assert broken.info.status == "FAILED"
        assert broken.data.tags["failure"].startswith("train_loss is nan at step 1 (epoch 1)")
    assert "failed: broken · 64 · fixed: train_loss is nan at step 1" in harmed.said()
    assert runs(harmed.folder, "harmed")[1][0].info.status == "FAILED"
    assert "scaling rule: fixed" in harmed.said()  # the tables are printed all the same


def test_the_command_waits_until_all_that_was_trained_is_in_mlflow(harmed):
    assert WAITS in harmed.said()
    run = by_trial(harmed.folder)["bert-tiny", 64]
    history = client(harmed.folder).get_metric_history(run.info.run_id, "val_acc")
    assert [metric.step for metric in history] == [1, 2]
    assert run.data.tags["trained"] == "true"


def test_a_trial_that_cannot_be_trained_is_tried_again_as_often_as_was_allowed(harmed):
    again = [line for line in harmed.said().splitlines() if "(failure " in line]
    assert len(again) == 1
    assert again[0].startswith("bert-tiny · 128 · fixed: ")
    assert again[0].endswith("(failure 1)")
    run = by_trial(harmed.folder)["bert-tiny", 128]
    assert run.info.status == "FAILED"
    assert "Not a directory" in run.data.tags["failure"]


def test_a_checkpoint_that_is_not_the_last_is_no_trained_model(harmed):
    run = by_trial(harmed.folder)["bert-tiny", 256]
    assert run.info.status == "FAILED"
    assert "the last checkpoint is missing or damaged" in run.data.tags["failure"]
    assert "trained" not in run.data.tags
    assert not run.outputs or not run.outputs.model_outputs


def is_up(server):
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{server}/health", timeout=60).ok
    return False


@pytest.mark.slow
def test_the_registered_model_answers_over_http(study, tmp_path):
    highest = max(run.data.metrics["best_val_acc"] for run in runs(study)[0])
    version = client(study).get_model_version_by_alias(STUDY, "best")
    assert client(study).get_run(version.run_id).data.metrics["best_val_acc"] == highest
    assert f"models:/{STUDY}@best" in output(study)
    port, tools = processes.free_port(), Path(sys.executable).parent
    server = f"http://127.0.0.1:{port}"
    serve = f"models serve -m models:/{STUDY}@best --env-manager local -h 127.0.0.1 -p {port}"
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{study}/mlflow.db",
        "PATH": f"{tools}:{os.environ['PATH']}",  # as in an activated environment
    }
    processes.start(tmp_path, [f"{tools}/mlflow", *serve.split()], environment)
    try:
        processes.wait_until(lambda: is_up(server), 120, "the server of the model")
        body = {"inputs": ["a fine film", "two hours of my life"]}
        reply = requests.post(f"{server}/invocations", json=body, timeout=60)
    finally:
        processes.kill(tmp_path)
    assert reply.status_code == 200
    for answer in reply.json()["predictions"]:
        assert answer["label"] in {"positive", "negative"}
        assert 0.5 <= answer["score"] <= 1
