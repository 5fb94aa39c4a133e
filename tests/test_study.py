"""The whole command, for real: Ray, MLflow, models, tables; small enough for two cores."""

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import requests
import torch
from mlflow.tracking import MlflowClient
from transformers import AutoConfig, AutoModel

from trainables.encoders import load_encoder

ROOT = Path(__file__).parents[1]
STUDY = "small"
SMALL = "--demo --train-size 320 --eval-size 60 --max-length 32".split()
COMMAND = [*f"--space batch_lr_grid --name {STUDY} --epochs 2 --models bert-tiny".split(), *SMALL]


def start(folder, *arguments):
    with (folder / "output.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "tune_main.py"), *arguments],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        )


def run(folder, *arguments):
    before = len(output(folder))
    code = start(folder, *arguments).wait(timeout=300)
    return code, output(folder)[before:]


def wait_until(happened, process):
    """Poll; a process that ends before it happened fails the test, and so do two minutes."""
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def output(folder):
    log = folder / "output.log"
    return log.read_text() if log.exists() else ""


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
    code, text = run(folder, *COMMAND)
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


def test_best_epoch_is_the_highest_val_acc_and_the_earliest(study):
    for trial in runs(study)[0]:
        history = client(study).get_metric_history(trial.info.run_id, "val_acc")
        best = max(history, key=lambda metric: (metric.value, -metric.step))
        assert trial.data.metrics["best_epoch"] == best.step
        assert trial.data.metrics["best_val_acc"] == best.value


def test_test_accuracy_is_that_of_the_stored_predictions(study, tmp_path):
    for trial in runs(study)[0]:
        for prefix in ("", "last_"):
            name = f"{prefix}test_predictions.parquet"
            path = client(study).download_artifacts(trial.info.run_id, name, str(tmp_path))
            frame = pd.read_parquet(path)
            assert len(frame) == 60
            accuracy = (frame["label"] == frame["prediction"]).mean()
            assert trial.data.metrics[f"{prefix}test_acc"] == pytest.approx(accuracy, abs=1e-12)


def test_all_trials_are_tested_on_the_same_rows(study, tmp_path):
    rows = set()
    for trial in runs(study)[0]:
        path = client(study).download_artifacts(
            trial.info.run_id, "test_predictions.parquet", str(tmp_path)
        )
        rows.add(tuple(pd.read_parquet(path)["row_id"]))
    assert len(rows) == 1


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
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "--cpus-per-trial 640 is more than the" in errors[0]
    assert runs(tmp_path) == ([], [])


def broken_model(folder):
    """A local encoder folder, complete but for one weight that is NaN."""
    assets = load_encoder("bert-tiny", ["the plot was dull", "a fine film"])
    folder.mkdir()
    assets.write_tokenizer(folder)
    encoder = AutoModel.from_config(AutoConfig.for_model(**assets.config))
    torch.nn.init.constant_(encoder.embeddings.LayerNorm.weight, math.nan)
    encoder.save_pretrained(folder)


def test_a_diverged_trial_fails_alone_and_is_named(tmp_path):
    broken_model(tmp_path / "broken")
    arguments = (
        "--space fixed_lr --name diverging --epochs 1 --target-batch-sizes 64 --models bert-tiny ./broken"
    )
    code, text = run(tmp_path, *arguments.split(), *SMALL)
    trials, parents = runs(tmp_path, "diverging")
    assert code == 1
    by_model = {Path(run.data.params["model"]).name: run for run in trials}
    assert by_model["bert-tiny"].info.status == "FINISHED"
    assert "test_acc" in by_model["bert-tiny"].data.metrics
    assert by_model["broken"].info.status == "FAILED"
    assert by_model["broken"].data.tags["failure"].startswith("train_loss is nan at step 1 (epoch 1)")
    assert "failed: broken · 64 · fixed: train_loss is nan at step 1" in text
    assert parents[0].info.status == "FAILED"
    assert "scaling rule: fixed" in text  # the tables are printed all the same


@contextlib.contextmanager
def background(folder, *command, **environment):
    """A server that runs, with its children, while the block does."""
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):  # it may have ended, which the test will tell
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def accepts_connections(port):
    with socket.socket() as client_socket:
        return client_socket.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_the_registered_model_answers_over_http(study, tmp_path):
    highest = max(run.data.metrics["best_val_acc"] for run in runs(study)[0])
    version = client(study).get_model_version_by_alias(STUDY, "best")
    assert client(study).get_run(version.run_id).data.metrics["best_val_acc"] == highest
    assert f"models:/{STUDY}@best" in output(study)
    port = free_port()
    serve = f"models serve -m models:/{STUDY}@best --env-manager local -h 127.0.0.1 -p {port}"
    tools = Path(sys.executable).parent
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{study}/mlflow.db",
        "PATH": f"{tools}:{os.environ['PATH']}",  # as in an activated environment
    }
    with background(tmp_path, f"{tools}/mlflow", *serve.split(), **environment) as server:
        wait_until(lambda: accepts_connections(port), server)
        body = {"inputs": ["a fine film", "two hours of my life"]}
        reply = requests.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=60)
        assert reply.status_code == 200
        for answer in reply.json()["predictions"]:
            assert answer["label"] in {"positive", "negative"}
            assert 0.5 <= answer["score"] <= 1
