"""The pictures of a study's accuracies by target batch size, with their intervals."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

from reports.canvas import (
    MARKERS,
    SIZE,
    batch_axis,
    batch_colour,
    beside,
    draw_points,
    figure,
    legend_below,
    line_look,
    model_figure,
    model_picture,
    plain,
    plain_axes,
    png,
)
from reports.comparisons import answers
from reports.content import Picture
from reports.statistics import Interval, accuracy_interval, wilson_interval
from reports.study_data import StudyData

_EPOCHS = {"test_acc": "best", "last_test_acc": "last"}  # metric -> whose predictions it comes from
_SAME_EXAMPLES = (
    " All trials are tested on the same examples, so overlapping bars do not mean that a difference is "
    "absent: the verdicts compare example by example."
)
_SELECTED = " The epoch was selected on this split: its val_acc is too high, and no interval is right."
_PANEL, _BESIDE_PANELS = 2.2, 1.1  # inches of height of the first picture: each panel, axis and legend


@dataclass(frozen=True)
class _Accuracy:
    """An accuracy of a cell by seed, and the interval of its mean; NaN: none."""

    target_batch_size: int
    scaling_rule: str
    by_seed: Sequence[float]
    interval: Interval

    @property
    def mean(self) -> float:
        return fmean(self.by_seed)


def answer_picture(study: StudyData) -> Picture | None:
    """Test accuracy by target batch size, a line per rule, a panel per model; None before any test."""
    found = {model: _accuracies(study, model, "test_acc") for model in study.axis_values("model")}
    tested = {model: cells for model, cells in found.items() if cells}
    if not tested:
        return None
    drawn = figure(SIZE[0], _PANEL * len(tested) + _BESIDE_PANELS)
    panels = drawn.subplots(len(tested), sharex=True, sharey=True, squeeze=False).flat
    for axes, (model, cells) in zip(panels, tested.items(), strict=True):
        _draw_answer(axes, study.axis_values("scaling_rule"), cells)
        axes.set_title(plain(model), fontsize="medium", loc="left")
        axes.set_ylabel("test accuracy")
    batch_axis(axes, sorted(study.axis_values("target_batch_size")))
    legend_below(drawn, axes, 3, title="scaling rule", fontsize="small", title_fontsize="small")
    return Picture(
        name="test_accuracy",
        title="test accuracy by target batch size",
        caption="The best epoch of each trial. " + _bars(study, "test_acc", list(chain(*tested.values()))),
        alt=f"Test accuracy of {', '.join(tested)} by target batch size, a line per scaling rule, with "
        "95 % intervals; the numbers are in the tables.",
        png=png(drawn),
    )


def accuracy_pictures(study: StudyData) -> Iterator[Picture]:
    """Per model: test accuracy of the best and the last epoch, and val_acc at the best epoch."""
    for model in study.axis_values("model"):
        for metrics, name, what in (
            (["test_acc", "last_test_acc"], "test_acc", "test accuracy"),
            (["best_val_acc"], "val_acc_at_best_epoch", "val_acc@best epoch"),
        ):
            found = {metric: _accuracies(study, model, metric) for metric in metrics}
            if found[metrics[0]]:
                yield _accuracy_picture(study, model, found, name, what)


def _accuracies(study: StudyData, model: str, metric: str) -> list[_Accuracy]:
    """The cells of a model that have the metric, by target batch size; tested trials alone for a test."""
    found = []
    for (name, batch, rule), names in study.points.items():
        trials = [study.trials[each] for each in names if each in study.trials]
        ended = [trial for trial in trials if metric not in _EPOCHS or trial.is_tested]
        by_seed = [trial.metrics[metric] for trial in ended if metric in trial.metrics]
        if name == model and by_seed:
            found.append(_Accuracy(batch, rule, by_seed, _interval(study, metric, names, fmean(by_seed))))
    return sorted(found, key=lambda cell: cell.target_batch_size)


def _interval(study: StudyData, metric: str, trials: Sequence[str], accuracy: float) -> Interval:
    """With several seeds none from one training, nor from those left of a cell where some diverged."""
    which = _EPOCHS.get(metric)
    if which is None or not study.has_several_seeds:
        examples = study.plan.dataset.sizes["test" if which else "val"]
        return wilson_interval(min(accuracy * examples, examples), examples)
    tested = answers(study, trials, which)
    if len(tested) < 2 or study.diverged.intersection(trials):
        return Interval(math.nan, math.nan)
    return accuracy_interval(tested)


def _bars(study: StudyData, metric: str, cells: Sequence[_Accuracy], dots: str = "") -> str:
    """What a caption says of the bars, and of the points with several seeds."""
    if not study.has_several_seeds:
        return f"Bars: Wilson 95 % intervals.{_SAME_EXAMPLES}"
    if metric in _EPOCHS:
        about = "95 % intervals over seeds and test examples together, from each cell's own trainings"
    else:
        about = "Wilson 95 % intervals, of the val examples alone, not of the seeds"
    if any(math.isnan(cell.interval.low) for cell in cells):
        about += "; none where some training diverged or only one has been tested"
    return f"Bars: {about}; points: means over seeds{dots}.{_SAME_EXAMPLES}"


def _draw_answer(axes: Axes, rules: Sequence[str], cells: Sequence[_Accuracy]) -> None:
    for place, rule in enumerate(rules):
        own = [cell for cell in cells if cell.scaling_rule == rule]
        x = [beside(cell.target_batch_size, place, len(rules)) for cell in own]
        _draw(axes, x, own, label=rule, capsize=3, linewidth=1.5, **line_look(place))
    plain_axes(axes)


def _draw(axes: Axes, x: Sequence[float], cells: Sequence[_Accuracy], **look: Any) -> None:
    low, high = [cell.interval.low for cell in cells], [cell.interval.high for cell in cells]
    draw_points(axes, x, [cell.mean for cell in cells], low, high, **look)


def _accuracy_picture(
    study: StudyData, model: str, found: Mapping[str, Sequence[_Accuracy]], name: str, what: str
) -> Picture:
    """The first metric is drawn with filled markers, the second with open ones."""
    (drawn, axes), first = model_figure(), next(iter(found))
    batches, rules = sorted(study.axis_values("target_batch_size")), study.axis_values("scaling_rule")
    markers = {rule: MARKERS[number % len(MARKERS)] for number, rule in enumerate(rules)}
    slots = list(product(rules, found))
    for place, (rule, metric) in enumerate(slots):
        for cell in found[metric]:
            if cell.scaling_rule != rule:
                continue
            x = beside(cell.target_batch_size, place, len(slots))
            colour = batch_colour(cell.target_batch_size, batches)
            style = {"color": colour, "markerfacecolor": colour if metric == first else "white"}
            look = {"fmt": markers[rule], "markersize": 7, "capsize": 3, "linewidth": 1.2}
            _draw(axes, [x], [cell], **look, **style)
            if len(cell.by_seed) > 1:
                axes.plot(
                    [x] * len(cell.by_seed), cell.by_seed, ".", color="black", markersize=3, alpha=0.6
                )
    for rule in rules:
        axes.plot([], [], markers[rule], color="dimgray", label=rule, markersize=7)
    if len(found) > 1:
        axes.plot([], [], "o", color="dimgray", label="best epoch (filled)")
        axes.plot([], [], "o", color="dimgray", markerfacecolor="white", label="last epoch (open)")
    batch_axis(axes, batches)
    axes.set_ylabel(f"{what} (fraction correct)")
    return model_picture(
        drawn,
        model,
        name,
        f"{what} by target batch size",
        caption=_bars(study, first, found[first], ", each seed a dot")
        + ("" if first in _EPOCHS else _SELECTED),
        alt=f"{what} of {model} by target batch size and scaling rule, with 95 % intervals; "
        "the numbers are in the tables.",
        columns=max(2, len(rules)),
        legend="",
    )
