"""A smaller invocation of a finished study takes nothing away from what the study has found."""

import contextlib
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from reports import write_report
from sweep.options import SweepOptions
from sweep.plan import make_plan
from sweep.testing import register_best
from tests.small_study import OPTIONS, STUDY, add_trial, write_small_study
from tracking import StudyStore
from trainables.assets import prepare_assets

ONE_TRIAL = {"models": ["bert-tiny"], "target_batch_sizes": [32], "scaling_rules": ["fixed"], "epochs": 1}


@pytest.fixture
def store(tmp_path):
    """Of a study that has finished, been reported and registered its best model."""
    uri = write_small_study(tmp_path)
    store = StudyStore(uri, STUDY)
    plan = make_plan(SweepOptions(**OPTIONS), bf16_available=False).plan
    register_best(plan, store.read_runs().trials, store, meets_others=True)
    write_report(uri, STUDY, str(tmp_path / "results"))
    return store


def invoke(store, folder, **options):
    """A further invocation, without Ray."""
    with contextlib.chdir(folder):
        planned = make_plan(SweepOptions(**OPTIONS | options), bf16_available=False)
        plan = planned.plan
        invocation = store.start_invocation("title", plan.model_dump(mode="json"), {})
        for trial_hash, config in plan.configs.items():
            run = store.open_trial(
                plan.trials[trial_hash], plan.name(trial_hash), plan.dataset, invocation, {}
            )
            add_trial(plan, run, config, prepare_assets(config, planned.splits), folder / trial_hash)
    register_best(plan, store.read_runs().trials, store, meets_others=True)


def best(store):
    version = store.client.get_model_version_by_alias(STUDY, "best")
    return store.client.get_run(version.run_id)


def val_acc(run):
    return run.data.metrics["best_val_acc"]


def test_the_alias_stays_with_the_best_and_both_are_said(store, tmp_path, capsys):
    before = best(store)
    capsys.readouterr()
    invoke(store, tmp_path, **ONE_TRIAL, base_lr=1e-6)
    own = next(run for run in store.read_runs().trials.values() if run.params["base_lr"] == "1e-06")
    assert own.metrics["best_val_acc"] < val_acc(before)
    assert best(store).info.run_id == before.info.run_id
    name = before.info.run_name
    assert capsys.readouterr().out.splitlines() == [
        f"best model     models:/{STUDY}@best  ({name}, val_acc {val_acc(before):.4f}, outside this plan: "
        "base_lr 0.0005, epochs 2)",
        f"best of plan   {own.name}, val_acc {own.metrics['best_val_acc']:.4f}",
    ]


def test_the_best_of_other_splits_does_not_count(store, tmp_path, capsys):
    before = best(store)
    capsys.readouterr()
    invoke(store, tmp_path, **ONE_TRIAL, base_lr=1e-6, eval_size=50)
    assert val_acc(best(store)) < val_acc(before)
    assert "plan" not in capsys.readouterr().out


def test_trials_outside_the_plan_are_counted_and_their_report_is_where_it_says(store, tmp_path):
    (first,) = store.read_runs().invocations
    page = (tmp_path / "results" / STUDY / "report.html").read_text()
    assert "Outside this plan" not in page
    invoke(store, tmp_path, **ONE_TRIAL)
    report = write_report(store.tracking_uri, STUDY, str(tmp_path / "results"))
    address = store.run_url(first.run_id, "/artifacts/report.html")
    assert report.outside == f"4 finished trials of this study; their report: {address}"
    assert report.outside in report.page.read_text()
    kept = MlflowClient(store.tracking_uri).download_artifacts(first.run_id, "report.html", str(tmp_path))
    assert Path(kept).read_text() == page
