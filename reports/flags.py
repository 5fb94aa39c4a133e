"""Flags: sentences that a reader should know before believing a study."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from reports.comparisons import answers
from reports.prose import accuracy_text, counted, learning_rate_text, listed
from reports.statistics import TrainingsDifference, difference, pooled_seed_variance
from reports.study_data import StudyData, TrialData, seeds_by_point
from reports.verdicts import ALPHA
from search_spaces.update import OPTIMIZERS, half_life

_GRID_VALUES = 3  # of two values both are edges
_NAMED = 6  # trials; the rest are counted
_FEW_WINDOWS = 20  # among more windows a small one weighs little


def flags(study: StudyData) -> list[str]:
    """Every flag of a study; one sentence covers all trials with the same fault and subject."""
    kinds = (
        data_flags,
        learning_flags,
        report_flags,
        edge_flags,
        monotony_flags,
        short_training_flags,
        last_window_flags,
        rising_flags,
    )
    return [flag for kind in kinds for flag in kind(study)]


def data_flags(study: StudyData) -> list[str]:
    """What was found in the data set before it was trained on."""
    return list(study.plan.dataset.warnings)


def learning_flags(study: StudyData) -> list[str]:
    """Models with trials that did not learn: they tell nothing about the batch size."""
    found = []
    for model in study.axis_values("model"):
        tested = [trial for trial in study.trials_of(model) if trial.is_tested]
        if guessing := [trial for trial in tested if not study.has_learned(trial)]:
            found.append(
                f"{model}: {len(guessing)} of {counted(len(tested), 'trial')} did not learn "
                f"({_labels(guessing, study)}): their val_acc is no better than naming the commonest "
                "class, so they say that training failed, not how well a batch size generalises."
            )
    return found


def _labels(trials: Sequence[TrialData], study: StudyData) -> str:
    several = study.has_several_seeds
    names = [each.label + (f" · seed {each.config.seed}" if several else "") for each in trials]
    if len(names) > _NAMED:
        names = [*names[:_NAMED], f"{len(names) - _NAMED} more"]
    return listed(names)


def report_flags(study: StudyData) -> list[str]:
    """Seeds and cells that were added or left out after a report had been written."""
    now = seeds_by_point(study.plan.cells)
    both = study.reported.keys() & now.keys()
    if not both:  # no report, or one of another study of this name
        return []
    added = set().union(*(now[point] - study.reported[point] for point in both))
    dropped = set().union(*(study.reported[point] - now[point] for point in both))
    found = []
    if added or dropped:
        changes = [("added", added), ("left out", dropped)]
        told = [f"{_seeds_were(sorted(seeds))} {what}" for what, seeds in changes if seeds]
        found.append(
            f"{listed(told)} after results of the same cells had been seen: a study that changes until it "
            "finds something finds too much. Plan all seeds at once."
        )
    if gone := study.reported.keys() - now.keys():
        found.append(
            f"{counted(len(gone), 'cell')} of an earlier report {'is' if len(gone) == 1 else 'are'} not in "
            "this grid: its comparisons are adjusted for fewer than were looked at. Run the whole grid for "
            "verdicts that count them all."
        )
    return found


def _seeds_were(seeds: Sequence[int]) -> str:
    numbers = listed(list(map(str, seeds)))
    return f"Seeds {numbers} were" if len(seeds) > 1 else f"Seed {numbers} was"


def edge_flags(study: StudyData) -> list[str]:
    """Models whose best cell by val_acc, a mean over seeds, sits at an edge of the grid.

    An edge is the smallest or the largest of three or more target batch sizes or learning rates. A tie
    with a cell inside the grid is not at the edge. Cells in which a training diverged cannot be the best.
    """
    found = []
    results = study.cells.assign(val_acc=study.metric("best_val_acc"))
    for model, cells in results.groupby("model", sort=False):
        means = cells.groupby(["target_batch_size", "scaling_rule"])["val_acc"].transform("mean")
        means = means.mask(cells["trial_hash"].isin(study.diverged))
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


def monotony_flags(study: StudyData) -> list[str]:
    """Models and rules whose test accuracy both falls and rises with the target batch size.

    A change between neighbours counts if its 95 % interval, simultaneous for the neighbours of a line,
    excludes 0. Cells in which a training diverged, or only one of several is tested, are left out.
    """
    found = []
    batches, needed = sorted(study.axis_values("target_batch_size")), min(2, len(study.axis_values("seed")))
    for name, cells in study.cells.groupby(["model", "scaling_rule"], sort=False):
        whole = cells[~cells["trial_hash"].isin(study.diverged)]
        trials = {batch: whole["trial_hash"][whole["target_batch_size"] == batch] for batch in batches}
        tested = {batch: each for batch in batches if len(each := answers(study, trials[batch])) >= needed}
        if _turns(list(tested.values())):
            shown = [f"{100 * each.mean():.1f} at {batch}" for batch, each in tested.items()]
            luck = "" if needed > 1 else "the luck of one training, or "
            found.append(
                f"{', '.join(map(str, name))}: test accuracy does not change one way with the target batch "
                f"size ({listed(shown)}): {luck}more than the batch size is at work."
            )
    return found


def _turns(cells: Sequence[np.ndarray]) -> bool:
    """Whether the accuracy both rises and falls along a line of cells; answers: (seeds, examples) each."""
    pooled, alpha = pooled_seed_variance(cells), ALPHA / max(1, len(cells) - 1)
    intervals = [difference(after, before, pooled).interval(alpha) for before, after in pairwise(cells)]
    return any(each.low > 0 for each in intervals) and any(each.high < 0 for each in intervals)


def last_window_flags(study: StudyData) -> list[str]:
    """Target batch sizes whose last window of an epoch has less than half of the examples."""
    train, small = study.plan.dataset.sizes["train"], []
    configs = {cell.config.target_batch_size: cell.config for cell in study.plan.cells}
    for batch, config in sorted(configs.items()):
        windows, last = config.steps_per_epoch(train), config.last_window(train)
        if last < batch / 2 and 1 < windows <= _FEW_WINDOWS:
            small.append(f"one of {windows} steps of an epoch at {batch} has {last} examples")
    if not small:
        return []
    return [
        f"The last window is small: {listed(small)}. Such a step is as long as the others, and noisier."
    ]


def short_training_flags(study: StudyData) -> list[str]:
    """Target batch sizes with fewer steps than the half-life of the optimizer's second-moment average."""
    examples, steps, limits = study.plan.dataset.sizes["train"], {}, set()
    for config in (trial.config for trial in study.trials.values()):
        total, limit = config.total_steps(examples), half_life(config.update.beta2 or 0.0)
        if total < limit:
            steps[config.target_batch_size] = total
            limits.add(limit)
    if not steps:
        return []
    short = [f"{counted(n, 'step')} at {batch}" for batch, n in sorted(steps.items())]
    name = OPTIMIZERS[study.plan.shared.optimizer].torch_name
    forgets = " to ".join(f"{limit:.0f}" for limit in sorted({min(limits), max(limits)}))
    equal = study.plan.budget == "steps"
    after = "" if equal else ": what a larger target batch size loses there may be lost to too few steps"
    return [
        f"Training takes only {listed(short)}, fewer than the {forgets} steps in which "
        f"{name} forgets half of its second-moment average{after}."
    ]


def rising_flags(study: StudyData) -> list[str]:
    """Models with trials that were best at their last evaluation, val_acc still rising."""
    found, val_examples = [], study.plan.dataset.sizes["val"]
    for model in study.axis_values("model"):
        trials = study.trials_of(model)
        if rising := [trial for trial in trials if _is_still_rising(trial, val_examples)]:
            found.append(
                f"{model}: val_acc was still rising at the last epoch in {len(rising)} of "
                f"{counted(len(trials), 'trial')} ({_labels(rising, study)}): more epochs may raise it."
            )
    return found


def _is_still_rising(trial: TrialData, val_examples: int) -> bool:
    """Whether the last evaluation is the best, by more than a standard error over the one before.

    The error is paired: it follows from the val examples that only one of the two got right.
    """
    last = trial.config.evaluation_count
    if last < 2 or trial.best_evaluation != last or not {last - 1, last} <= set(trial.evaluations.index):
        return False
    rise = trial.evaluations["val_acc"].loc[last] - trial.evaluations["val_acc"].loc[last - 1]
    net = round(rise * val_examples)
    gained = round((trial.evaluations["val_flips"].loc[last] + net) / 2)
    return rise > TrainingsDifference(gained, gained - net, val_examples).error
