"""A search as a whole command: Ray, MLflow, the confirmation, the report; killed, grown and refused."""

import shlex
import sys
from pathlib import Path

import optuna
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from search_spaces.optuna_trials import empty_study
from sweep.options import SweepOptions, parse_options
from sweep.resolve import resolve_space
from sweep.search import open_storage
from tests.browsing import needs_chromium
from tests.faults.processes import free_port
from tests.faults.servers import Server
from tests.faults.study import Command

STUDY = (
    "--space best_config --name search --demo --generation-size 2 --confirm-seeds 2 --epochs 3 "
    "--target-batch-sizes 32 64 --train-size 320 --eval-size 60 --max-length 32 --precision fp32"
).split()


def command(folder, *more):
    return Command(folder, *more, study=STUDY)


def runs(folder, role):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("search")
    found = client.search_runs([experiment.experiment_id], f"tags.role = '{role}'")
    return sorted(found, key=lambda run: int(run.data.tags.get("number", 0)))


def learnt(folder):
    """What the trials of the search have come to, by number."""
    return [
        (run.data.tags["trial_hash"], run.data.tags["outcome"], run.data.metrics["best_val_acc"])
        for run in runs(folder, "search")
    ]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished search of six trials."""
    folder = tmp_path_factory.mktemp("search")
    with command(folder, "--trials", "6") as finished:
        assert finished.run() == 0, finished.output()
    return folder


def test_mlflow_tells_what_each_trial_is_for(study):
    searched, confirmed = runs(study, "search"), runs(study, "confirm")
    assert [run.data.tags["number"] for run in searched] == list("012345")
    assert [run.data.tags["generation"] for run in searched] == list("001122")
    assert len(confirmed) == 2
    assert {run.data.params["seed"] for run in confirmed} == {"43", "44"}
    assert {run.info.status for run in searched + confirmed} == {"FINISHED"}


def test_only_the_confirmation_keeps_models_and_is_tested(study):
    for run in runs(study, "search"):
        assert "test_acc" not in run.data.metrics
        assert not run.outputs or not run.outputs.model_outputs
    for run in runs(study, "confirm"):
        assert {"test_acc", "last_test_acc"} <= run.data.metrics.keys()
    client = MlflowClient(f"sqlite:///{study}/mlflow.db")
    val_accs = {run.info.run_id: run.data.metrics["best_val_acc"] for run in runs(study, "confirm")}
    assert val_accs[client.get_model_version_by_alias("search", "best").run_id] == max(val_accs.values())


def test_the_best_of_the_search_is_what_is_confirmed(study):
    searched = [run for run in runs(study, "search") if run.data.tags["outcome"] == "complete"]
    best = max(searched, key=lambda run: (run.data.metrics["best_val_acc"], -int(run.data.tags["number"])))
    for run in runs(study, "confirm"):
        for name in ("model", "target_batch_size", "base_lr", "head_dropout"):
            assert run.data.params[name] == best.data.params[name]


def test_the_report_says_what_to_do_and_how_much_to_believe(study):
    page = (study / "results/search/report.html").read_text()
    markdown = (study / "results/search/report.md").read_text()
    assert "The best of 6 trials is trial" in page
    assert "trained again with 2 seeds it has val_acc" in page
    table = pd.read_csv(study / "results/search/best_trials.csv")
    assert table["val_acc"].is_monotonic_decreasing
    for name in ("search_history", "search_slices", "search_parallel_coordinates"):
        assert (study / f"results/search/pictures/{name}.png").exists()
        assert f"pictures/{name}.png" in markdown


def test_the_printed_command_trains_the_best_again(study):
    markdown = (study / "results/search/report.md").read_text()
    (line,) = [line for line in markdown.splitlines() if line.startswith("Train it again: ")]
    arguments = shlex.split(line.partition("tune_main.py ")[2])
    (cell,) = resolve_space(parse_options(SweepOptions, arguments), bf16_available=True).cells()
    confirmed = runs(study, "confirm")[0].data.params
    told = {name: value for name, value in confirmed.items() if name in cell.to_dict()}
    assert told == {name: str(v) for name, v in cell.to_dict().items()} | {
        "seed": confirmed["seed"],
        "dataset_digest": confirmed["dataset_digest"],
        "physical_batch_size": confirmed["physical_batch_size"],
    }


def test_optuna_reads_the_copy(study):
    empty_study()  # quiets Optuna
    copy = optuna.load_study(study_name="search", storage=open_storage(f"sqlite:///{study}/optuna.db"))
    assert [trial.user_attrs["trial_hash"] for trial in copy.trials] == [h for h, _, _ in learnt(study)]


def test_the_same_command_again_trains_nothing(study):
    before = learnt(study)
    with command(study, "--trials", "6") as again:
        assert again.run() == 0
        assert "all 6 trials of the search have ended" in again.said()
        assert "epoch 1/" not in again.said()
    assert learnt(study) == before


def test_another_search_is_refused_in_one_line(study):
    with command(study, "--trials", "6", "--sampler", "random") as other:
        assert other.run() == 2
        assert "another sampler, tpe and not random" in other.said()
    assert {run.info.status for run in runs(study, "invocation")} == {"FINISHED"}


@pytest.mark.slow
def test_a_search_that_is_killed_comes_to_the_same_and_grows(study, tmp_path):
    with command(tmp_path, "--trials", "4") as killed:
        for moment in ("epoch 2/", "#2 "):
            killed.start().wait_for(moment)
            killed.kill()
        assert killed.run() == 0, killed.output()
    with command(tmp_path, "--trials", "6") as grown:
        assert grown.run() == 0, grown.output()
    assert learnt(tmp_path) == learnt(study)


@pytest.mark.slow
@needs_chromium
def test_the_dashboard_of_optuna_opens_the_copy(study, page, tmp_path):
    port, program = free_port(), str(Path(sys.executable).parent / "optuna-dashboard")
    command = [program, f"sqlite:///{study}/optuna.db", "--port", str(port)]
    with Server(tmp_path, command, f"http://127.0.0.1:{port}/dashboard"):
        page.goto(f"http://127.0.0.1:{port}/dashboard/studies/1")
        page.get_by_text("Best Trial").first.wait_for()
        page.get_by_text("target_batch_size").first.wait_for()
        shown = page.inner_text("body")
    assert "search" in shown  # the study's name
    assert "base_lr" in shown
