"""The pictures of a study: training curves, accuracies with their intervals, gradient noise."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.canvas import (
    COLOURS,
    batch_axis,
    batch_colour,
    draw_points,
    figure,
    legend_below,
    plain,
    plain_axes,
    png,
)
from reports.content import Picture
from reports.noise import HALVES, NOISE_CAPTION, WHOLE, noise_scales
from reports.prose import slug
from reports.statistics import wilson_interval
from reports.study_data import StudyData, TrialData

_INTERVALS = (
    "Bars: Wilson 95 % intervals{about}. All trials are tested on the same examples, so overlapping bars "
    "do not mean that a difference is absent: the verdicts compare example by example."
)
_SELECTED = " The epoch was selected on this split: its val_acc is too high, and no interval is right."
_SMOOTHING = 25  # a running mean is taken over this fraction of a line's points
_SMOOTHED = "Faint: as logged; strong: running mean."
_BEST = "The dot marks the best epoch."
_TRAIN = {  # over what a training curve is drawn -> its caption
    "step": _SMOOTHED,
    "examples": f"{_SMOOTHED} At equal examples a larger batch has taken fewer steps.",
    "epoch": "",
}
_X_LABELS = {"step": "optimizer steps (log scale)", "examples": "training examples seen", "epoch": "epoch"}
_SIZE = (5.4, 4.3)  # inches: one picture fills a phone, two stand side by side on a desktop
_PANEL, _BESIDE_PANELS = 2.2, 1.1  # inches of height of the first picture: each panel, axis and legend
_SPREAD = 0.14  # octaves between the markers that stand side by side at one batch size
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)))
_MARKERS = "os^DvP"
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
    """The curve of each trial that has logged it."""
    lines, examples = [], study.plan.dataset.sizes["train"]
    for trial in study.trials_of(model):
        if curve.over == "epoch":
            line = trial.by_epoch(curve.column)
        else:
            line = trial.steps.get(curve.column, pd.Series(dtype=float)).dropna()
        if curve.over == "examples":
            line = line.set_axis([trial.config.examples_seen(step, examples) for step in line.index])
        if not line.empty:
            lines.append((trial, line))
    return lines


def _line_picture(
    study: StudyData, model: str, curve: _Curve, lines: Sequence[tuple[TrialData, pd.Series]], alt: str
) -> Picture:
    (drawn, axes), batches = _new_figure(), study.axis_values("target_batch_size")
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
    if curve in (_LEARNING_RATE, _NOISE):
        axes.set_yscale("log")
    return _finished(drawn, model, curve.name, curve.title, caption=curve.caption, alt=alt)


def answer_picture(study: StudyData) -> Picture | None:
    """Test accuracy by target batch size, a line per rule, a panel per model; None before any test."""
    results = study.cells.assign(test_acc=study.metric("test_acc")).dropna(subset="test_acc")
    models = [model for model in study.axis_values("model") if model in set(results["model"])]
    if not models:
        return None
    drawn = figure(_SIZE[0], _PANEL * len(models) + _BESIDE_PANELS)
    panels = drawn.subplots(len(models), sharex=True, sharey=True, squeeze=False).flat
    for axes, model in zip(panels, models, strict=True):
        _draw_answer(axes, study, results[results["model"] == model])
        axes.set_title(plain(model), fontsize="medium", loc="left")
        axes.set_ylabel("test accuracy")
    batch_axis(axes, sorted(study.axis_values("target_batch_size")))
    legend_below(drawn, axes, 3, title="scaling rule", fontsize="small", title_fontsize="small")
    return Picture(
        name="test_accuracy",
        title="test accuracy by target batch size",
        caption="The best epoch of each trial. " + _intervals(study, "; points: means over seeds"),
        alt=f"Test accuracy of {', '.join(models)} by target batch size, a line per scaling rule, with "
        "95 % intervals; the numbers are in the tables.",
        png=png(drawn),
    )


def _intervals(study: StudyData, points: str) -> str:
    """What a caption says of the bars; ``points`` says what the points are with several seeds."""
    if len(study.axis_values("seed")) < 2:
        return _INTERVALS.format(about="")
    diverged = ", of cells with trainings that diverged over the others" if study.diverged else ""
    return _INTERVALS.format(about=f", of the test examples alone, not of the seeds{points}{diverged}")


def _draw_answer(axes: Axes, study: StudyData, results: pd.DataFrame) -> None:
    rules, examples = study.axis_values("scaling_rule"), study.plan.dataset.sizes["test"]
    for place, rule in enumerate(rules):
        means = results[results["scaling_rule"] == rule].groupby("target_batch_size")["test_acc"].mean()
        intervals = [wilson_interval(min(mean * examples, examples), examples) for mean in means]
        x = means.index * 2 ** (_SPREAD * (place - (len(rules) - 1) / 2))
        low, high = [each.low for each in intervals], [each.high for each in intervals]
        look = {"color": COLOURS[place % len(COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}
        draw_points(axes, x, means, low, high, label=rule, capsize=3, linewidth=1.5, **look)
    plain_axes(axes)


def accuracy_pictures(study: StudyData) -> Iterator[Picture]:
    """Per model: test accuracy of the best and the last epoch, and val_acc at the best epoch."""
    for model in study.axis_values("model"):
        for metrics, name, what in (
            (["test_acc", "last_test_acc"], "test_acc", "test accuracy"),
            (["best_val_acc"], "val_acc_at_best_epoch", "val_acc@best epoch"),
        ):
            results = study.cells.assign(**{metric: study.metric(metric) for metric in metrics})
            results = results[results["model"] == model]
            if results[metrics[0]].notna().any():
                yield _accuracy_picture(study, results, metrics, name, what)


def _accuracy_picture(
    study: StudyData, results: pd.DataFrame, metrics: Sequence[str], name: str, what: str
) -> Picture:
    """The first metric is drawn with filled markers, the second with open ones."""
    (drawn, axes), model = _new_figure(), results["model"].iloc[0]
    batches, rules = sorted(study.axis_values("target_batch_size")), study.axis_values("scaling_rule")
    markers = {rule: _MARKERS[number % len(_MARKERS)] for number, rule in enumerate(rules)}
    examples = study.plan.dataset.sizes["test" if "test_acc" in metrics else "val"]
    slots = list(itertools.product(rules, metrics))
    for place, (rule, metric) in enumerate(slots):
        own = results[results["scaling_rule"] == rule].dropna(subset=metric)
        for batch, values in own.groupby("target_batch_size")[metric]:
            x, mean = batch * 2 ** (_SPREAD * (place - (len(slots) - 1) / 2)), fmean(values)
            low, high = wilson_interval(min(mean * examples, examples), examples)
            colour = batch_colour(batch, batches)
            style = {"color": colour, "markerfacecolor": colour if metric == metrics[0] else "white"}
            look = {"fmt": markers[rule], "markersize": 7, "capsize": 3, "linewidth": 1.2}
            draw_points(axes, [x], [mean], [low], [high], **look, **style)
            if len(values) > 1:
                axes.plot([x] * len(values), values, ".", color="black", markersize=3, alpha=0.6)
    for rule in rules:
        axes.plot([], [], markers[rule], color="dimgray", label=rule, markersize=7)
    if len(metrics) > 1:
        axes.plot([], [], "o", color="dimgray", label="best epoch (filled)")
        axes.plot([], [], "o", color="dimgray", markerfacecolor="white", label="last epoch (open)")
    batch_axis(axes, batches)
    axes.set_ylabel(f"{what} (fraction correct)")
    return _finished(
        drawn,
        model,
        name,
        f"{what} by target batch size",
        caption=_intervals(study, "; points: means over seeds, each seed a dot")
        + ("" if "test_acc" in metrics else _SELECTED),
        alt=f"{what} of {model} by target batch size and scaling rule, with 95 % intervals; "
        "the numbers are in the tables.",
        columns=max(2, len(rules)),
        legend="",
    )


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
    (drawn, axes), batches = _new_figure(), sorted(study.axis_values("target_batch_size"))
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
        x, colour = batch * 2 ** (_SPREAD * (place - (len(slots) - 1) / 2)), batch_colour(batch, batches)
        style: dict[str, Any] = {"color": colour, "markerfacecolor": _FILLS[part] or colour}
        style |= {"fmt": _MARKERS[_place(study, trial) % len(_MARKERS)], "markersize": 7, "capsize": 3}
        low, high = scale.interval
        draw_points(axes, [x], [scale.value], [low], [high], label=trial.label, **style)
    for part, fill in _FILLS.items():
        axes.plot([], [], "o", color="dimgray", markerfacecolor=fill or "dimgray", label=part)
    batch_axis(axes, batches)
    axes.set_yscale("log")
    axes.set_ylabel(_NOISE.label)
    alt = f"Gradient noise scale of each trial of {model} against its target batch size."
    return _finished(drawn, model, "noise_scale", "gradient noise scale", caption=NOISE_CAPTION, alt=alt)


def _place(study: StudyData, trial: TrialData) -> int:
    """The place of a trial's first scaling rule among the study's: it decides the dashes and the marker."""
    return study.axis_values("scaling_rule").index(trial.scaling_rules[0])


def _new_figure() -> tuple[Figure, Axes]:
    drawn = figure(*_SIZE)
    axes = drawn.add_subplot()
    plain_axes(axes)
    return drawn, axes


def _finished(
    drawn: Figure,
    model: str,
    name: str,
    title: str,
    *,
    caption: str,
    alt: str,
    columns: int = 3,
    legend: str = "target batch size · scaling rule",
) -> Picture:
    """The picture of a model, with its title and its legend."""
    (axes,), title = drawn.axes, f"{model}: {title}"
    axes.set_title(plain(title), fontsize="medium", loc="left")
    sizes = {"fontsize": "small", "title_fontsize": "small", "handlelength": 3}
    legend_below(drawn, axes, columns, title=legend, **sizes)
    name = f"{slug(model)}_{name}"
    return Picture(name=name, title=title, caption=caption, alt=alt, png=png(drawn))
