"""Real trainings whose truth is known: cells that differ by seeds alone, and labels that mean nothing.

    python -m benchmarks.aa_study [--cells N] [--seeds N] [--epochs N]

The tiny BERT is trained on the demo's reviews, cells × seeds times at one target batch size; the cells are
then called by different batch sizes and judged. Any claim is false. Then the same with the labels of the
training split shuffled: every trial must be flagged as one that did not learn, and nothing be claimed.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from benchmarks.null_studies import simulated_plan
from reports.flags import learning_flags
from reports.sections.differences import headline
from reports.study_data import StudyData, TrialData
from reports.verdicts import compare_cells
from search_spaces import TrialConfig
from trainables.assets import ModelAssets, prepare_assets
from trainables.batches import TokenTensors
from trainables.checkpoint import Checkpoint
from trainables.evaluation import evaluate
from trainables.review_splits import load_splits
from trainables.trial import Trial, best_evaluation

CPU = torch.device("cpu")
BATCH = 64


def trained(config: TrialConfig, assets: ModelAssets) -> TrialData:
    """Train a trial and test its best evaluation's model."""
    trial = Trial(config, assets.trial, CPU)
    while not trial.is_finished:
        trial.run_to_evaluation()
    best = trial.history[best_evaluation(trial.history) - 1]
    with TemporaryDirectory() as folder:
        trial.save(Path(folder))
        checkpoint = Checkpoint.load(Path(folder))
        trial.model.load_state_dict(checkpoint.best_weights or checkpoint.weights)
    found = evaluate(trial.model, TokenTensors(assets.test, assets.trial.pad_token, CPU), config.precision)
    predictions = pd.DataFrame(
        {"row_id": assets.test.row_ids, "label": assets.test.labels, "prediction": found.predictions}
    )
    return TrialData(
        run_id="",
        name=f"{config.model_name} · {config.seed}",
        config=config,
        scaling_rules=(config.scaling_rule,),
        metrics={f"best_{name}": float(best[name]) for name in ("evaluation", "epoch", "val_acc")},
        evaluations=pd.DataFrame(),
        steps=pd.DataFrame(),
        predictions={"best": predictions, "last": predictions},
    )


def study(config: TrialConfig, assets: ModelAssets, cells: int, seeds: int) -> StudyData:
    """``cells`` × ``seeds`` trainings at one batch size, no seed twice, called by 64, 128, 256, …"""
    labelled, trials = [], {}
    for number in range(cells * seeds):
        trial = trained(config.replace(seed=number), assets)
        label = config.replace(target_batch_size=BATCH * 2 ** (number // seeds), seed=number % seeds)
        labelled.append(label)
        trials[label.trial_hash] = replace(trial, config=label)
    plan = simulated_plan(labelled, {"target_batch_size": BATCH})
    sizes = {"train": len(assets.trial.train), "val": len(assets.trial.val), "test": len(assets.test)}
    return StudyData(plan.replace(dataset=replace(plan.dataset, sizes=sizes)), trials)


def shuffled(assets: ModelAssets) -> ModelAssets:
    """The same texts with the training labels in another order."""
    train = assets.trial.train
    labels = np.random.default_rng(0).permutation(train.labels)
    return replace(assets, trial=replace(assets.trial, train=replace(train, labels=labels)))


def main() -> None:
    """Print what would be reported of both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    config = TrialConfig(
        model="bert-tiny",
        target_batch_size=BATCH,
        scaling_rule="fixed",
        dataset="demo-reviews",
        base_lr=5e-4,
        epochs=options.epochs,
        noise_every=0,
    )
    assets = prepare_assets(config, load_splits(config))
    for name, data in {"nothing differs": assets, "shuffled labels": shuffled(assets)}.items():
        found = study(config, data, options.cells, options.seeds)
        family = compare_cells(found)
        print(f"{name}: {dict(family.frame['outcome'].value_counts())}")
        for line in (*headline(family), *learning_flags(found)):
            print(f"  {line}")


if __name__ == "__main__":
    main()
