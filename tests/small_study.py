"""A study in a real MLflow store, trained as a sweep does but without Ray: quick to make."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

from sweep.options import SweepOptions
from sweep.plan import colour_coordinates, make_plan
from tests.helpers import CPU, export, trained
from tracking import ModelFiles, StudyStore, colour_tag
from trainables.assets import prepare_assets
from trainables.batches import TokenTensors
from trainables.evaluation import evaluate
from trainables.exported_model import load_exported_model
from trainables.trial import best_evaluation

STUDY = "films"
UNTRAINED = ("modernbert-tiny", 32)  # so that the study has a gap


def add_trial(plan, run, config, assets, folder):
    """Train, upload and test one trial as a sweep does, without Ray."""
    trial = trained(config, assets.trial)
    run.log_evaluations(trial.history)
    exported = export(trial, assets.trial, plan.dataset.label_names, folder)
    best = best_evaluation(trial.history)
    position = config.position(best, len(trial.train))._asdict()
    results = {f"best_{name}": value for name, value in position.items()}
    results["best_val_acc"] = trial.history[best - 1]["val_acc"]
    run.log_models(ModelFiles(exported, "trainables.exported_model", ()), None, results)
    model = load_exported_model(exported)
    result = evaluate(model.model, TokenTensors(assets.test, model.pad_token, CPU), "fp32")
    run.log_test({"best": result, "last": result}, assets.test.labels, assets.test.row_ids)


OPTIONS = {
    "space": "batch_lr_grid",
    "demo": True,
    "name": STUDY,
    "target_batch_sizes": [32, 64],
    "scaling_rules": ["fixed", "sqrt"],
    "physical_batch_size": "16",
    "epochs": 2,
    "train_size": 192,
    "eval_size": 60,
    "max_length": 40,
}


def write_small_study(folder, **other_options):
    """Four trials on SQLite: six of the eight cells, both encoders. Returns the tracking URI."""
    with contextlib.chdir(folder):
        options = SweepOptions(**OPTIONS | other_options)
        planned = make_plan(options, bf16_available=False)
        plan = planned.plan
        store = StudyStore(f"sqlite:///{folder}/mlflow.db", STUDY)
        invocation = store.start_invocation("title", plan.model_dump(mode="json"), {})
        store.save_views(plan.space.varied)
        test = planned.splits.test
        invocation.log_test_split(test.row_ids, test.labels, test.texts)
        assets = {}
        for trial_hash, config in plan.configs.items():
            if (config.model_name, config.target_batch_size) == UNTRAINED:
                continue
            if config.model not in assets:
                assets[config.model] = prepare_assets(config, planned.splits)
            tags = {"assets_digest": assets[config.model].trial.digest}
            tags |= colour_tag(*colour_coordinates(plan.space, config))
            cells = plan.trials[trial_hash]
            run = store.open_trial(cells, plan.name(trial_hash), plan.dataset, invocation, tags)
            add_trial(plan, run, config, assets[config.model], folder / trial_hash)
        return store.tracking_uri


def copy_study(tracking_uri, folder):
    """Copy a study on SQLite with its artifacts into a folder. Returns the copy's tracking URI."""
    old = Path(tracking_uri.removeprefix("sqlite:///")).parent
    shutil.copytree(old, folder, dirs_exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
        for place in (
            "experiments.artifact_location",
            "runs.artifact_uri",
            "logged_models.artifact_location",
        ):
            table, column = place.split(".")
            store.execute(f"update {table} set {column} = replace({column}, '{old}', '{folder}')")
    return f"sqlite:///{folder}/mlflow.db"
