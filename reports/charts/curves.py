"""Training curves of one model, all its trials overlaid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes

from reports.charts.style import Look, epoch_axis, new_figure, trials_picture
from reports.content import Picture
from reports.study_data import StudyData, TrialData

_SMOOTHING = 25  # a curve is averaged over this fraction of its points


@dataclass(frozen=True)
class _Curve:
    """One kind of picture: what is drawn over what."""

    name: str
    column: str
    over: str  # step, examples or epoch
    title: str
    label: str
    caption: str = ""
    mark_best: bool = False


_STEPS = "optimizer steps (log scale)"
_EXAMPLES = "training examples seen"
_X_LABELS = {"step": _STEPS, "examples": _EXAMPLES, "epoch": "epoch"}
_SMOOTHED = "Faint: as logged; strong: running mean."
_BEST = "The dot marks the best epoch."
_LOSS, _ACC = "cross entropy (nats)", "accuracy"

CURVES = (
    _Curve("train_loss_by_step", "train_loss_per_step", "step", "train loss by step", _LOSS, _SMOOTHED),
    _Curve(
        "train_loss_by_examples",
        "train_loss_per_step",
        "examples",
        "train loss by examples seen",
        _LOSS,
        f"{_SMOOTHED} At equal examples a larger batch has taken fewer steps.",
    ),
    _Curve("train_loss_by_epoch", "train_loss", "epoch", "train loss by epoch", _LOSS),
    _Curve("train_acc_by_step", "train_acc_per_step", "step", "train accuracy by step", _ACC, _SMOOTHED),
    _Curve(
        "train_acc_by_examples",
        "train_acc_per_step",
        "examples",
        "train accuracy by examples seen",
        _ACC,
        f"{_SMOOTHED} At equal examples a larger batch has taken fewer steps.",
    ),
    _Curve("train_acc_by_epoch", "train_acc", "epoch", "train accuracy by epoch", _ACC),
    _Curve("val_loss", "val_loss", "epoch", "val loss", _LOSS, _BEST, mark_best=True),
    _Curve("val_acc", "val_acc", "epoch", "val accuracy", _ACC, _BEST, mark_best=True),
    _Curve("learning_rate", "learning_rate_per_step", "step", "learning rate", "learning rate (log scale)"),
)


def curve_pictures(study: StudyData) -> Iterator[Picture]:
    """Every curve of every model; a kind that no trial has logged is left out."""
    look = Look.of(study)
    for model in study.axis_values("model"):
        trials = study.trials_of(model)
        for curve in CURVES:
            lines = [(trial, _line(study, trial, curve)) for trial in trials]
            drawn = [(trial, line) for trial, line in lines if not line.empty]
            if drawn:
                yield _picture(model, curve, drawn, look)


def _line(study: StudyData, trial: TrialData, curve: _Curve) -> pd.Series:
    table = trial.epochs if curve.over == "epoch" else trial.steps
    if curve.column not in table:
        return pd.Series(dtype=float)
    line = table[curve.column].dropna()
    if curve.over == "examples":
        line = line.set_axis(_examples_seen(study, trial, line.index))
    return line


def _examples_seen(study: StudyData, trial: TrialData, steps: pd.Index) -> pd.Index:
    """Examples after a number of optimizer steps: the last window of an epoch may be short."""
    epochs, rest = divmod(steps, study.steps_per_epoch(trial))
    return epochs * study.train_examples + rest * trial.target_batch_size


def _picture(
    model: str, curve: _Curve, lines: Sequence[tuple[TrialData, pd.Series]], look: Look
) -> Picture:
    figure, axes = new_figure()
    for trial, line in lines:
        _draw(axes, curve, trial, line, look)
    axes.set_xlabel(_X_LABELS[curve.over])
    axes.set_ylabel(curve.label)
    if curve.over == "epoch":
        epoch_axis(axes)
    if curve.over == "step":
        axes.set_xscale("log")
    if curve.column == "learning_rate_per_step":
        axes.set_yscale("log")
    names = ", ".join(trial.label for trial, _ in lines)
    return trials_picture(
        figure,
        axes,
        model,
        name=curve.name,
        title=curve.title,
        caption=curve.caption,
        alt=f"Line chart of {curve.label} over {_X_LABELS[curve.over]} for {model}; lines: {names}.",
    )


def _draw(axes: Axes, curve: _Curve, trial: TrialData, line: pd.Series, look: Look) -> None:
    style = look.of_trial(trial)
    smooths = curve.column in {"train_loss_per_step", "train_acc_per_step"}
    if smooths:
        axes.plot(line.index, line, color=style["color"], alpha=0.18, linewidth=0.8)
        line = line.rolling(max(1, len(line) // _SMOOTHING), center=True, min_periods=1).mean()
    marker = "." if len(line) == 1 else None
    axes.plot(line.index, line, label=trial.label, linewidth=1.7, marker=marker, **style)
    best = int(trial.metrics.get("best_epoch", 0))
    if curve.mark_best and best in line.index:
        axes.plot([best], [line[best]], "o", color=style["color"], markersize=6)
