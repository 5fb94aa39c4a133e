"""Flags: what a reader should know before believing a study, and the generalisation gaps beside it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from reports.evidence.comparisons import best_epoch
from reports.prose import accuracy_text, counted, learning_rate_text, listed
from reports.study_data import Cell, StudyData, TrialData

_BETA2 = 0.999  # PyTorch's default for Adam and AdamW, which the trials keep
ADAM_HALF_LIFE = math.log(2) / (1 - _BETA2)  # steps: 693
_GRID_VALUES = 3  # with two values either is an edge


@dataclass(frozen=True)
class Flag:
    """A caution: its kind, what it is about, and the sentence that the reader sees."""

    kind: str
    subject: str
    sentence: str


@dataclass(frozen=True)
class Gap:
    """Accuracies at the best epoch, means over the seeds that have come to it; NaN before that.

    ``train_acc`` is measured while training, with dropout and over the whole epoch, so that the gap to
    ``val_acc`` is smaller than that of the epoch's final weights would be.
    """

    model: str
    target_batch_size: int
    scaling_rule: str
    train_acc: float
    val_acc: float

    @property
    def gap(self) -> float:
        """``train_acc`` less ``val_acc``."""
        return self.train_acc - self.val_acc


def flags(study: StudyData) -> list[Flag]:
    """Every flag of a study; one sentence speaks for all trials of the same kind and subject."""
    return [*edge_flags(study), *short_training_flags(study), *rising_flags(study)]


def edge_flags(study: StudyData) -> list[Flag]:
    """Models whose best cell by val_acc, a mean over seeds, sits at an edge of the grid.

    An edge is the smallest or the largest target batch size or learning rate, where the grid has three
    or more. A tie with a cell inside the grid is not at the edge.
    """
    found = [_edge_flag(study, model) for model in study.axis_values("model")]
    return [flag for flag in found if flag]


def short_training_flags(study: StudyData) -> list[Flag]:
    """Trials of fewer optimizer steps than the half-life of Adam's second-moment average."""
    steps = {
        trial.target_batch_size: total_steps(study, trial)
        for trial in study.trials.values()
        if trial.config["optimizer"] in {"adam", "adamw"}
    }
    short = {batch: count for batch, count in sorted(steps.items()) if count < ADAM_HALF_LIFE}
    if not short:
        return []
    counts = listed([f"{counted(count, 'step')} at {batch}" for batch, count in short.items()])
    return [
        Flag(
            "short training",
            f"target batch size {listed([str(batch) for batch in short])}",
            f"Training takes only {counts}, fewer than the {ADAM_HALF_LIFE:.0f} steps in which Adam "
            "forgets half of its second-moment average: what a larger target batch size loses there may be "
            "lost to too few steps.",
        )
    ]


def rising_flags(study: StudyData) -> list[Flag]:
    """Models with trials that were best at their last epoch, val_acc still rising."""
    found = []
    for model in study.axis_values("model"):
        trials = study.trials_of(model)
        if rising := [trial for trial in trials if is_still_rising(trial)]:
            labels = listed([_label(study, trial) for trial in rising])
            sentence = (
                f"{model}: val_acc was still rising at the last epoch in {len(rising)} of "
                f"{counted(len(trials), 'trial')} ({labels}): more epochs may raise it."
            )
            found.append(Flag("still rising", model, sentence))
    return found


def generalisation_gaps(study: StudyData) -> list[Gap]:
    """A row per model, target batch size and scaling rule, in the study's order."""
    points: dict[tuple[str, int, str], list[TrialData]] = {}
    for cell in study.cells:
        trials = points.setdefault((cell.model, cell.target_batch_size, cell.scaling_rule), [])
        if trial := study.trial(cell):
            trials.append(trial)
    return [
        Gap(*point, train_acc=_at_best(trials, "train_acc"), val_acc=_at_best(trials, "val_acc"))
        for point, trials in points.items()
    ]


def total_steps(study: StudyData, trial: TrialData) -> int:
    """Optimizer steps of a whole training, the short last window of each epoch included."""
    return int(trial.config["epochs"]) * study.steps_per_epoch(trial)


def is_still_rising(trial: TrialData) -> bool:
    """Whether the best epoch is the last of several, and better than the one before it."""
    last = trial.config["epochs"]
    if last < 2 or best_epoch(trial) != last or not {last - 1, last} <= set(trial.epochs.index):
        return False
    val_acc = trial.epochs["val_acc"]
    return bool(val_acc.loc[last] > val_acc.loc[last - 1])


def _edge_flag(study: StudyData, model: str) -> Flag | None:
    cells = [cell for cell in study.cells if cell.model == model]
    best, val_acc = _best_cells(study, cells)
    edges = [
        *_edge(
            "target batch size", [c.target_batch_size for c in cells], [c.target_batch_size for c in best]
        ),
        *_edge("learning rate", [c.learning_rate for c in cells], [c.learning_rate for c in best]),
    ]
    if not edges:
        return None
    sentence = (
        f"{model}: the best val_acc, {accuracy_text(val_acc)}, is at {listed(edges)} of the grid: "
        "beyond it there may be better."
    )
    return Flag("edge of the grid", model, sentence)


def _edge(name: str, grid: Sequence[float], best: Sequence[float]) -> list[str]:
    if len(set(grid)) < _GRID_VALUES:
        return []
    for word, edge in (("smallest", min(grid)), ("largest", max(grid))):
        if best and set(best) == {edge}:
            return [f"the {word} {name} ({learning_rate_text(edge) if isinstance(edge, float) else edge})"]
    return []


def _best_cells(study: StudyData, cells: Sequence[Cell]) -> tuple[list[Cell], float]:
    """The cells of the highest val_acc, a mean over seeds, and that val_acc; none where none is known."""
    accuracies: dict[tuple[int, str], list[float]] = {}
    for cell in cells:
        trial = study.trial(cell)
        value = trial.metrics.get("best_val_acc", math.nan) if trial else math.nan
        if not math.isnan(value):
            accuracies.setdefault((cell.target_batch_size, cell.scaling_rule), []).append(value)
    means = {point: fmean(values) for point, values in accuracies.items()}
    highest = max(means.values(), default=math.nan)
    best = [c for c in cells if means.get((c.target_batch_size, c.scaling_rule)) == highest]
    return best, highest


def _at_best(trials: Iterable[TrialData], name: str) -> float:
    """The mean of a metric at each trial's best epoch; NaN where no trial has come to it."""
    values = [
        float(trial.epochs[name].loc[best_epoch(trial)])
        for trial in trials
        if name in trial.epochs and best_epoch(trial) in trial.epochs.index
    ]
    return fmean(values) if values else math.nan


def _label(study: StudyData, trial: TrialData) -> str:
    seeds = len(study.axis_values("seed"))
    return trial.label + (f" · seed {trial.seed}" if seeds > 1 else "")
