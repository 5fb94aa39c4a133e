"""A study in a real MLflow store, trained as a sweep does but without Ray: quick to make."""

import contextlib

from sweep.options import SweepOptions
from sweep.plan import make_plan
from tests.helpers import CPU, trained
from tracking import ModelFiles, StudyStore
from trainables.assets import prepare_assets
from trainables.batches import TokenTensors
from trainables.checkpoint import weight_files
from trainables.evaluation import evaluate
from trainables.exported_model import ClassifierCard, export_model, load_exported_model
from trainables.trial import best_evaluation

STUDY = "films"
UNTRAINED = ("modernbert-tiny", 32)  # so that the study has a gap


def add_trial(plan, run, config, assets, folder):
    """Train, upload and test one trial as a sweep does, without Ray."""
    trial = trained(config, assets.trial)
    run.log_evaluations(trial.history)
    folder.mkdir()
    trial.save(folder)
    best = best_evaluation(trial.history)
    val_acc = trial.history[best - 1]["val_acc"]
    card = ClassifierCard(
        model=config.model_name,
        label_names=plan.splits.label_names,
        max_length=config.max_length,
        dropout=config.head_dropout,
        trial_hash=config.trial_hash,
        epoch=trial.history[best - 1]["epoch"],
        val_acc=val_acc,
    )
    export_model(folder / "classifier", weight_files(folder)["best"], assets.trial.encoder, card)
    files = ModelFiles(folder / "classifier", "trainables.exported_model", ())
    results = {
        f"best_{name}": value for name, value in config.position(best, len(trial.train))._asdict().items()
    }
    run.log_models(files, None, results | {"best_val_acc": val_acc})
    model = load_exported_model(folder / "classifier")
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
        plan = make_plan(options, bf16_available=False)
        store = StudyStore(f"sqlite:///{folder}/mlflow.db", STUDY)
        invocation = store.start_invocation("title", plan.to_dict(), {})
        store.save_views(plan.varied)
        test = plan.splits.test
        invocation.log_test_split(test.row_ids, test.labels, test.texts)
        assets = {}
        for trial_hash, config in plan.configs.items():
            if (config.model_name, config.target_batch_size) == UNTRAINED:
                continue
            if config.model not in assets:
                assets[config.model] = prepare_assets(config, plan.splits)
            digest = assets[config.model].trial.digest
            cells, tags = plan.trials[trial_hash], {"assets_digest": digest, **plan.colour_tag(config)}
            run = store.open_trial(cells, plan.name(trial_hash), plan.dataset, invocation, tags)
            add_trial(plan, run, config, assets[config.model], folder / trial_hash)
        return store.tracking_uri
