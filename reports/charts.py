"""The pictures of a study's trainings: their curves, and the noise of their gradients."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.ticker import MaxNLocator

from reports.canvas import (
    MARKERS,
    batch_axis,
    batch_colour,
    beside,
    draw_points,
    model_figure,
    model_picture,
)
from reports.content import Picture
from reports.noise import HALVES, NOISE_CAPTION, WHOLE, noise_scales
from reports.study_data import StudyData, TrialData

_SMOOTHING = 25  # a running mean is taken over this fraction of a line's points
_SMOOTHED = "Faint: as logged; strong: running mean."
_BEST = "The dot marks the best epoch."
_TRAIN = {  # over what a training curve is drawn -> its caption
    "step": _SMOOTHED,
    "examples": f"{_SMOOTHED} At equal examples a larger batch has taken fewer steps.",
    "epoch": "",
}
_X_LABELS = {"step": "optimizer steps (log scale)", "examples": "training examples seen", "epoch": "epoch"}
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)))
_FILLS = {HALVES[0]: "white", WHOLE: "", HALVES[1]: "lightgray"}  # "": the marker's own colour


class _Curve(NamedTuple):
    """A line chart: a column of the evaluations or steps over ``step``, ``examples`` or ``epoch``."""

    name: str
    column: str
    over: str
    title: str
    label: str
    caption: str = ""


_LEARNING_RATE = _Curve(
    "learning_rate", "learning_rate_per_step", "step", "learning rate", "learning rate (log scale)"
)
_NOISE = _Curve(
    "noise_scale_by_epoch",
    "noise_scale",
    "epoch",
    "gradient noise scale by epoch",
    "noise scale (examples, log scale)",
    "Few windows are measured in an epoch: read the trend, not the single point.",
)
_LOGARITHMIC = (_LEARNING_RATE, _NOISE)


def curve_pictures(study: StudyData) -> tuple[list[Picture], list[Picture]]:
    """The curves of all models: those to read first, and the rest; what nobody has logged is left out."""
    first, rest = _curves(study.plan.metrics)
    return list(_drawn_curves(study, first)), list(_drawn_curves(study, rest))


def _drawn_curves(study: StudyData, curves: Sequence[_Curve]) -> Iterator[Picture]:
    for curve, model in itertools.product(curves, study.axis_values("model")):
        if lines := _lines(study, model, curve):
            names = ", ".join(dict.fromkeys(trial.label for trial, _ in lines))  # each for all its seeds
            alt = f"Line chart of {curve.label} over {_X_LABELS[curve.over]} for {model}; lines: {names}."
            yield _line_picture(study, model, curve, lines, alt)


def _curves(metrics: Mapping[str, str]) -> tuple[list[_Curve], list[_Curve]]:
    """The curves of all metrics (name -> axis label): val and train loss, accuracy first; then the rest."""
    train, val = [], []
    for metric, label in sorted(metrics.items(), key=lambda named: named[0] != "acc"):
        word = "accuracy" if metric == "acc" else metric
        for over, caption in _TRAIN.items():
            column = f"train_{metric}" if over == "epoch" else f"train_{metric}_per_step"
            title = f"train {word} by {'examples seen' if over == 'examples' else over}"
            train.append(_Curve(f"train_{metric}_by_{over}", column, over, title, label, caption))
        val.append(_Curve(f"val_{metric}", f"val_{metric}", "epoch", f"val {word}", label, _BEST))
    first = [*val, *(curve for curve in train if curve.name == "train_loss_by_epoch")]
    return first, [*(curve for curve in train if curve not in first), _LEARNING_RATE]


def _lines(study: StudyData, model: str, curve: _Curve) -> list[tuple[TrialData, pd.Series]]:
    """The curve of each trial that has logged it, and on a logarithmic axis something that it can show."""
    lines, examples = [], study.plan.dataset.sizes["train"]
    for trial in study.trials_of(model):
        if curve.over == "epoch":
            line = trial.by_epoch(curve.column)
        else:
            line = trial.steps.get(curve.column, pd.Series(dtype=float)).dropna()
        if curve.over == "examples":
            line = line.set_axis([trial.config.examples_seen(step, examples) for step in line.index])
        shown = line[(line > 0) & (line < math.inf)] if curve in _LOGARITHMIC else line
        if not shown.empty:
            lines.append((trial, line))
    return lines


def _line_picture(
    study: StudyData, model: str, curve: _Curve, lines: Sequence[tuple[TrialData, pd.Series]], alt: str
) -> Picture:
    (drawn, axes), batches = model_figure(), study.axis_values("target_batch_size")
    for trial, logged in lines:
        line, colour = logged, batch_colour(trial.config.target_batch_size, batches)
        dashes = _DASHES[_place(study, trial) % len(_DASHES)]
        marker = "." if curve is _NOISE or len(line) == 1 else None
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
    if curve in _LOGARITHMIC:
        axes.set_yscale("log")
    return model_picture(drawn, model, curve.name, curve.title, caption=curve.caption, alt=alt)


def noise_pictures(study: StudyData) -> Iterator[Picture]:
    """Per model: the noise scale of each trial over its training and its halves, and epoch by epoch."""
    for model in study.axis_values("model"):
        if picture := _noise_picture(study, model):
            yield picture
        if lines := _lines(study, model, _NOISE):
            alt = f"Gradient noise scale of each trial of {model} by epoch."
            yield _line_picture(study, model, _NOISE, lines, alt)


def _noise_picture(study: StudyData, model: str) -> Picture | None:
    """None where no trial has a noise scale that means something."""
    (drawn, axes), batches = model_figure(), sorted(study.axis_values("target_batch_size"))
    slots = list(itertools.product(study.axis_values("scaling_rule"), _FILLS))
    points = [
        (trial, part, scale)
        for trial in study.trials_of(model)
        for part, scale in noise_scales(trial).items()
        if not math.isnan(scale.value)
    ]
    if not points:
        return None
    axes.plot(batches, batches, "--", color="dimgray", linewidth=1, label="target batch size")
    for trial, part, scale in points:
        batch, place = trial.config.target_batch_size, slots.index((trial.scaling_rules[0], part))
        x, colour = beside(batch, place, len(slots)), batch_colour(batch, batches)
        style: dict[str, Any] = {"color": colour, "markerfacecolor": _FILLS[part] or colour}
        style |= {"fmt": MARKERS[_place(study, trial) % len(MARKERS)], "markersize": 7, "capsize": 3}
        low, high = scale.interval
        draw_points(axes, [x], [scale.value], [low], [high], label=trial.label, **style)
    for part, fill in _FILLS.items():
        axes.plot([], [], "o", color="dimgray", markerfacecolor=fill or "dimgray", label=part)
    batch_axis(axes, batches)
    axes.set_yscale("log")
    axes.set_ylabel(_NOISE.label)
    alt = f"Gradient noise scale of each trial of {model} against its target batch size."
    return model_picture(
        drawn, model, "noise_scale", "gradient noise scale", caption=NOISE_CAPTION, alt=alt
    )


def _place(study: StudyData, trial: TrialData) -> int:
    """The place of a trial's first scaling rule among the study's: it decides the dashes and the marker."""
    return study.axis_values("scaling_rule").index(trial.scaling_rules[0])
