"""The curves of a study's trainings, and the gap between training and validation."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pandas as pd
from matplotlib.ticker import MaxNLocator

from reports import canvas
from reports.content import Picture, Section, Table
from reports.prose import accuracy_text
from reports.results import accuracy_pictures, by_cell
from reports.sections import Source
from reports.study_data import StudyData, TrialData

PLACE = 30
_SMOOTHING = 25  # a running mean covers a line's points divided by this
_SMOOTHED = "Faint: as logged; strong: running mean."
_BEST = "The dot marks the best epoch."
_TRAIN = {  # x axis of a training curve -> its caption
    "step": _SMOOTHED,
    "examples": f"{_SMOOTHED} At equal examples a larger batch has taken fewer steps.",
    "epoch": "",
}
_X_LABELS = {"step": "optimizer steps (log scale)", "examples": "training examples seen", "epoch": "epoch"}
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)))
_GAP_NOTE = (
    "At the best epoch, of the same weights, with dropout off. train_eval_acc is that of a random part "
    "of the training split, as large as the val split (or all of it) and the same for all trials. "
    "val_acc was the highest of several, which makes it a little too high and the gap too small."
)


class Curve(NamedTuple):
    """A line chart: a column of the evaluations or steps over ``step``, ``examples`` or ``epoch``."""

    name: str
    column: str
    over: str
    title: str
    label: str
    caption: str = ""
    alt: str = "Line chart of {label} over {x} for {model}; lines: {names}."
    is_logarithmic: bool = False
    is_dotted: bool = False


_LEARNING_RATE = Curve(
    "learning_rate",
    "learning_rate_per_step",
    "step",
    "learning rate",
    "learning rate (log scale)",
    is_logarithmic=True,
)


def section(source: Source) -> Section:
    """The curves; folded among them the accuracies at the best and last epochs."""
    first, rest = curve_pictures(source.study)
    return Section(
        tables={"generalisation_gap": generalisation_gap_table(source.study)},
        heading="Training curves",
        pictures=first,
        folded=[*accuracy_pictures(source.study), *rest],
    )


def generalisation_gap_table(study: StudyData) -> Table:
    """Accuracies at the best epoch, means over the seeds that have been evaluated."""

    def at_best(name: str) -> pd.Series:
        return study.of_trials(
            lambda trial: trial.evaluations.get(name, {}).get(trial.best_evaluation, math.nan)
        )

    both = {name: at_best(name) for name in ("train_eval_acc", "val_acc")}
    means = by_cell(study, **both).mean()
    means["gap"] = means["train_eval_acc"] - means["val_acc"]
    frame = means.dropna(subset="gap").map(accuracy_text).reset_index()
    return Table.of_frame("Generalisation gap: train_eval_acc − val_acc", frame, _GAP_NOTE)


def curve_pictures(study: StudyData) -> tuple[list[Picture], list[Picture]]:
    """The curves of all models: those to read first, and the rest; only what some trial has logged."""
    first, rest = (
        [
            picture
            for curve, model in itertools.product(curves, study.axis_values("model"))
            for picture in draw_curve(study, model, curve)
        ]
        for curves in _curves(study.plan.metrics)
    )
    return first, rest


def _curves(metrics: Mapping[str, str]) -> tuple[list[Curve], list[Curve]]:
    """The curves of all metrics (name -> axis label): val and train loss, accuracy first; then the rest."""
    train, val = [], []
    for metric, label in sorted(metrics.items(), key=lambda named: named[0] != "acc"):
        word = "accuracy" if metric == "acc" else metric
        for over, caption in _TRAIN.items():
            column = f"train_{metric}" if over == "epoch" else f"train_{metric}_per_step"
            title = f"train {word} by {'examples seen' if over == 'examples' else over}"
            train.append(Curve(f"train_{metric}_by_{over}", column, over, title, label, caption))
        val.append(Curve(f"val_{metric}", f"val_{metric}", "epoch", f"val {word}", label, _BEST))
    first = [*val, *(curve for curve in train if curve.name == "train_loss_by_epoch")]
    return first, [*(curve for curve in train if curve not in first), _LEARNING_RATE]


def _lines(study: StudyData, model: str, curve: Curve) -> list[tuple[TrialData, pd.Series]]:
    """The curve of each trial that has logged it; on a logarithmic axis only if a value can be drawn."""
    lines, examples = [], study.plan.dataset.sizes["train"]
    for trial in study.trials_of(model):
        if curve.over == "epoch":
            line = trial.by_epoch(curve.column)
        else:
            line = trial.steps.get(curve.column, pd.Series(dtype=float)).dropna()
        if curve.over == "examples":
            line = line.set_axis([trial.config.examples_seen(step, examples) for step in line.index])
        shown = line[(line > 0) & (line < math.inf)] if curve.is_logarithmic else line
        if not shown.empty:
            lines.append((trial, line))
    return lines


def draw_curve(study: StudyData, model: str, curve: Curve) -> Iterator[Picture]:
    """One picture, or none if no trial of the model has logged the curve."""
    if not (lines := _lines(study, model, curve)):
        return
    (drawn, axes), batches = canvas.model_figure(), study.axis_values("target_batch_size")
    for trial, logged in lines:
        line, colour = logged, canvas.batch_colour(trial.config.target_batch_size, batches)
        dashes = _DASHES[place_of_rule(study, trial) % len(_DASHES)]
        marker = "." if curve.is_dotted or len(line) == 1 else None
        style = {"label": trial.label, "color": colour, "linestyle": dashes, "marker": marker}
        if curve.caption.startswith(_SMOOTHED):
            axes.plot(line.index, line, color=colour, alpha=0.18, linewidth=0.8)
            line = line.rolling(max(1, len(line) // _SMOOTHING), center=True, min_periods=1).mean()
        axes.plot(line.index, line, linewidth=1.7, **style)
        best = trial.best_epoch
        if curve.caption == _BEST and best in line.index:
            axes.plot([best], [line[best]], "o", color=colour, markersize=6)
    axes.set_xlabel(_X_LABELS[curve.over])
    axes.set_ylabel(curve.label)
    if curve.over == "epoch" and all(line.index[-1] >= 1 for _, line in lines):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if curve.over == "step":
        axes.set_xscale("log")
    if curve.is_logarithmic:
        axes.set_yscale("log")
    names = ", ".join(dict.fromkeys(trial.label for trial, _ in lines))  # one label for all seeds
    alt = curve.alt.format(label=curve.label, x=_X_LABELS[curve.over], model=model, names=names)
    yield canvas.model_picture(drawn, model, curve.name, curve.title, caption=curve.caption, alt=alt)


def place_of_rule(study: StudyData, trial: TrialData) -> int:
    """The place of a trial's first scaling rule among the study's: it decides the dashes and the marker."""
    return study.axis_values("scaling_rule").index(trial.scaling_rules[0])
