"""A study in a real MLflow store, trained as a sweep does but without Ray: quick to make."""

import contextlib

from sweep.assets import prepare_assets
from sweep.invocation import start_invocation

from sweep.options import SweepOptions
from sweep.plan import make_plan
from tests.helpers import CPU, trained
from tracking import ModelFiles, StudyStore
from trainables.checkpoint import weight_files
from trainables.evaluation import evaluate
from trainables.exported_model import ClassifierCard, export_model, load_exported_model
from trainables.trial import best_epoch
from trainables.windows import TokenTensors

STUDY = "films"
UNTRAINED = ("modernbert-tiny", 32)  # so that the study has a gap


def add_trial(plan, run, cells, assets, folder):
    """Train, upload and test one trial as a sweep does, without Ray."""
    config = cells[0]
    trial = trained(config, assets.trial)
    run.log_epochs(trial.history)
    trial.save(folder)
    best = best_epoch(trial.history)
    val_acc = trial.history[best - 1]["val_acc"]
    card = ClassifierCard(
        config.model_name,
        plan.splits.label_names,
        config.max_length,
        config.head_dropout,
        config.trial_hash,
        best,
        val_acc,
    )
    export_model(folder / "classifier", weight_files(folder)["best"], assets.encoder, card)
    files = ModelFiles(folder / "classifier", "trainables.exported_model", ())
    run.log_models(files, None, best, val_acc)
    model = load_exported_model(folder / "classifier")
    result = evaluate(model.model, TokenTensors(assets.test, model.pad_token, CPU), "fp32")
    run.log_test(result, result, assets.test.labels, assets.test.row_ids)


def write_small_study(folder):
    """Four trials on SQLite: six of the eight cells, both encoders. Returns the tracking URI."""
    with contextlib.chdir(folder):
        options = SweepOptions(
            space="batch_lr_grid",
            demo=True,
            name=STUDY,
            target_batch_sizes=[32, 64],
            scaling_rules=["fixed", "sqrt"],
            precision="fp32",
            physical_batch_size="16",
            settings={"epochs": 2, "train_size": 192, "eval_size": 60, "max_length": 40},
        )
        plan = make_plan(options, bf16_available=False)
        store = StudyStore(f"sqlite:///{folder}/mlflow.db", STUDY)
        invocation = start_invocation(plan, store, {}, lambda call: call())
        assets = {}
        for trial_hash, cells in plan.trials.items():
            config = cells[0]
            if (config.model_name, config.target_batch_size) == UNTRAINED:
                continue
            if config.model not in assets:
                assets[config.model] = prepare_assets(config, plan.splits)
            (folder / trial_hash).mkdir()
            run = store.open_trial(cells, 1, plan.dataset, invocation)
            add_trial(plan, run, cells, assets[config.model], folder / trial_hash)
        return store.tracking_uri
