"""Flags: sentences that a reader should know before believing a study."""

import math

import pandas as pd

from reports.prose import accuracy_text, counted, learning_rate_text, listed
from reports.study_data import StudyData, TrialData
from search_spaces.optimization import OPTIMIZERS

_GRID_VALUES = 3  # with two values either is an edge


def flags(study: StudyData) -> list[str]:
    """Every flag of a study; one sentence speaks for all trials of the same kind and subject."""
    return [*edge_flags(study), *short_training_flags(study), *rising_flags(study)]


def edge_flags(study: StudyData) -> list[str]:
    """Models whose best cell by val_acc, a mean over seeds, sits at an edge of the grid.

    An edge is the smallest or the largest target batch size or learning rate, where the grid has three
    or more. A tie with a cell inside the grid is not at the edge.
    """
    found = []
    results = study.cells.assign(val_acc=study.metric("best_val_acc"))
    for model, cells in results.groupby("model", sort=False):
        means = cells.groupby(["target_batch_size", "scaling_rule"])["val_acc"].transform("mean")
        best = cells[means == means.max()]
        edges = [
            *_edge("target batch size", cells["target_batch_size"], best["target_batch_size"]),
            *_edge("learning rate", cells["learning_rate"], best["learning_rate"]),
        ]
        if edges:
            found.append(
                f"{model}: the best val_acc, {accuracy_text(means.max())}, is at {listed(edges)} of the "
                "grid: beyond it there may be better."
            )
    return found


def _edge(name: str, grid: pd.Series, best: pd.Series) -> list[str]:
    if grid.nunique() < _GRID_VALUES:
        return []
    edges = {"smallest": grid.min(), "largest": grid.max()}
    return [
        f"the {word} {name} ({learning_rate_text(edge) if isinstance(edge, float) else edge})"
        for word, edge in edges.items()
        if set(best) == {edge}
    ]


def short_training_flags(study: StudyData) -> list[str]:
    """Target batch sizes with fewer steps than the half-life of the optimizer's second-moment average."""
    optimizer = OPTIMIZERS[study.plan.shared.optimizer]  # all cells share it
    if optimizer.beta2 is None:
        return []
    half_life = math.log(2) / (1 - optimizer.beta2)
    examples = study.plan.dataset.sizes["train"]
    configs = [trial.config for trial in study.trials.values()]
    steps = {c.target_batch_size: c.total_steps(examples) for c in configs}
    short = [f"{counted(n, 'step')} at {batch}" for batch, n in sorted(steps.items()) if n < half_life]
    if not short:
        return []
    return [
        f"Training takes only {listed(short)}, fewer than the {half_life:.0f} steps in which "
        f"{optimizer.torch_name} forgets half of its second-moment average: what a larger target batch "
        "size loses there may be lost to too few steps."
    ]


def rising_flags(study: StudyData) -> list[str]:
    """Models with trials that were best at their last epoch, val_acc still rising."""
    found, several = [], len(study.axis_values("seed")) > 1
    for model in study.axis_values("model"):
        trials = study.trials_of(model)
        if rising := [trial for trial in trials if _is_still_rising(trial)]:
            seeds = [f" · seed {trial.config.seed}" if several else "" for trial in rising]
            labels = [trial.label + seed for trial, seed in zip(rising, seeds, strict=True)]
            found.append(
                f"{model}: val_acc was still rising at the last epoch in {len(rising)} of "
                f"{counted(len(trials), 'trial')} ({listed(labels)}): more epochs may raise it."
            )
    return found


def _is_still_rising(trial: TrialData) -> bool:
    """Whether the best evaluation is the last of several, and better than the one before it."""
    last = trial.config.evaluation_count
    if last < 2 or trial.best_evaluation != last or not {last - 1, last} <= set(trial.epochs.index):
        return False
    val_acc = trial.epochs["val_acc"]
    return bool(val_acc.loc[last] > val_acc.loc[last - 1])
