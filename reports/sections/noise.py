"""The gradient noise scale of a training, with its interval, from the moments that every epoch reported.

v and g estimate tr(Σ) and ‖G‖²; the noise scale is the ratio of their means over the measured windows.
Both terms change along a training. An interval says how well their means over this training are known,
so it comes from the scatter of windows within an epoch.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from reports import canvas
from reports.canvas import Line, Mark
from reports.content import Picture, Section, Table
from reports.sections import Source
from reports.sections.curves import Curve, draw_curve, place_of_rule
from reports.statistics import LEVEL, Interval
from reports.study_data import StudyData, TrialData

PLACE = 40
_LARGEST_ERROR = 0.5  # relative standard error of an estimate that is shown
_CAPTION = (
    "A diagnostic, not a law: tr(Σ)/‖G‖² of the plain gradient (McCandlish et al. 2018), with Fieller's "
    "95 % intervals over the measured windows. It counts dropout as noise and knows nothing of Adam. Where "
    "it exceeds the batch, a larger batch still averages noise away. Where it is far below, extra examples "
    "per step are mostly wasted; that holds for plain SGD."
)
WHOLE = "whole training"
HALVES = ("first half", "last half")
_FILLS = {HALVES[0]: "white", WHOLE: "", HALVES[1]: "lightgray"}  # "": the marker's own colour
_BY_EPOCH = Curve(
    "noise_scale_by_epoch",
    "noise_scale",
    "epoch",
    "gradient noise scale by epoch",
    "noise scale (examples, log scale)",
    "Few windows are measured in an epoch: read the trend, not the single point.",
    "Gradient noise scale of each trial of {model} by epoch.",
    is_logarithmic=True,
    is_dotted=True,
)
_TERMS = ["gradient_variance", "gradient_norm_squared"]
_MOMENTS = ["noise_windows", "noise_moment_vv", "noise_moment_vg", "noise_moment_gg"]
_UNKNOWN = Interval(math.nan, math.nan)


class NoiseScale(NamedTuple):
    """In examples; NaN if the estimate is too uncertain to mean anything."""

    value: float
    interval: Interval
    windows: float  # how many were measured


def section(source: Source) -> Section:
    """The table and pictures of trials whose noise was measured."""
    return Section(
        tables={"noise_scale": noise_table(source.study)},
        heading="Why: the gradient noise scale",
        pictures=list(noise_pictures(source.study)),
    )


def noise_scales(trial: TrialData) -> dict[str, NoiseScale]:
    """The noise scale over the whole training, its first half and its last half.

    Of an odd number of epochs the middle one is in neither half; a single epoch has no halves.
    """
    half = len(trial.evaluations) // 2
    parts = (trial.evaluations, trial.evaluations.head(half), trial.evaluations.tail(half))
    return {name: noise_scale(part) for name, part in zip((WHOLE, *HALVES), parts, strict=True)}


def noise_scale(epochs: pd.DataFrame) -> NoiseScale:
    """The noise scale over epochs, a row each; NaN unless its relative error is below _LARGEST_ERROR.

    Both terms are averaged before they are divided.
    """
    measured = epochs.reindex(columns=[*_TERMS, *_MOMENTS]).dropna()
    if measured.empty:
        return NoiseScale(math.nan, _UNKNOWN, 0)
    means = measured[[*_TERMS, *_MOMENTS[1:]]].to_numpy()
    return from_moments(measured["noise_windows"].to_numpy(), means)


def from_moments(windows: np.ndarray, means: np.ndarray) -> NoiseScale:
    """The scale from each epoch's means of v, g, v², v·g and g², (epochs, 5), and windows, (epochs,).

    The error is the scatter of windows about the mean of their own epoch, because epochs truly differ. If
    every epoch has only one window, differences between epochs count as chance too.
    """
    total, overall = float(windows.sum()), windows @ means / windows.sum()
    if total == len(windows):
        windows, means = np.array([total]), overall[None]
    freedom, (v, g) = total - len(windows), map(float, overall[:2])
    unknown = NoiseScale(math.nan, _UNKNOWN, total)
    if freedom < 1 or v <= 0 or g <= 0:
        return unknown
    covariance = _squared_deviations(means) @ windows / freedom / total
    low, high = fieller_interval(v, g, covariance, freedom)
    if math.isnan(high) or relative_error(v, g, covariance) >= _LARGEST_ERROR:
        return unknown
    return NoiseScale(v / g, Interval(max(0.0, low), high), total)


def _squared_deviations(means: np.ndarray) -> np.ndarray:
    """Mean squares and products of v and g about their means, (2, 2, epochs)."""
    v, g, vv, vg, gg = means.T
    return np.array([[vv - v * v, vg - v * g], [vg - v * g, gg - g * g]])


def relative_error(v: float, g: float, covariance: np.ndarray) -> float:
    """Standard error of v/g divided by v/g, to first order, from the (2, 2) covariance of the two means.

    The infinitesimal jackknife: deleting one window at a time gives the same up to terms of higher order.
    """
    slope = np.array([1 / v, -1 / g])
    return math.sqrt(max(0.0, slope @ covariance @ slope))


def fieller_interval(v: float, g: float, covariance: np.ndarray, freedom: float) -> Interval:
    """The ratios r for which v − r·g is not significantly different from 0 (Fieller 1954), at LEVEL.

    ``covariance``, (2, 2), is that of the two means. NaN if g itself is not significantly different
    from 0, because the interval is then unbounded.
    """
    t = float(special.stdtrit(freedom, (1 + LEVEL) / 2))
    (vv, vg), (_, gg) = t**2 * covariance
    a, b, c = g * g - gg, v * g - vg, v * v - vv
    if a <= 0:
        return _UNKNOWN
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval((b - root) / a, (b + root) / a)


def noise_table(study: StudyData) -> Table:
    """A row per trial whose noise was measured, over its whole training and over each half of it."""
    scales = {name: noise_scales(trial) for name, trial in study.trials.items()}
    columns: dict[str, Callable[[str], Any]] = {
        "trial": lambda name: study.trials[name].name,
        "target batch size": lambda name: study.trials[name].config.target_batch_size,
        WHOLE: lambda name: _noise_text(scales[name][WHOLE]),
        HALVES[0]: lambda name: _noise_text(scales[name][HALVES[0]]),
        HALVES[1]: lambda name: _noise_text(scales[name][HALVES[1]]),
    }
    note = (
        f"In examples, with the number of measured windows. – where the standard error is "
        f"{_LARGEST_ERROR:.0%} of the value or more. {_CAPTION}"
    )
    measured = [name for name, parts in scales.items() if parts[WHOLE].windows]
    return Table.of("Gradient noise scale", measured, columns, note=note)


def _noise_text(scale: NoiseScale) -> str:
    """``1,234 [900, 2,000], 39 windows``."""
    value = "–" if math.isnan(scale.value) else f"{scale.value:,.0f}"
    if not math.isnan(scale.value):
        value += f" [{scale.interval.low:,.0f}, {scale.interval.high:,.0f}]"
    return f"{value}, {scale.windows:.0f} window{'' if scale.windows == 1 else 's'}"


def noise_pictures(study: StudyData) -> Iterator[Picture]:
    """Per model: the noise scale of each trial over its training and its halves, and epoch by epoch."""
    for model in study.axis_values("model"):
        if picture := _noise_picture(study, model):
            yield picture
        yield from draw_curve(study, model, _BY_EPOCH)


def _noise_picture(study: StudyData, model: str) -> Picture | None:
    """None if no trial has a noise scale that means something."""
    (drawn, axes), batches = canvas.model_figure(), sorted(study.axis_values("target_batch_size"))
    slots, lines = list(itertools.product(study.axis_values("scaling_rule"), _FILLS)), []
    scales = [
        (trial, part, scale)
        for trial in study.trials_of(model)
        for part, scale in noise_scales(trial).items()
        if not math.isnan(scale.value)
    ]
    if not scales:
        return None
    for trial, part, scale in scales:
        batch, place = trial.config.target_batch_size, slots.index((trial.scaling_rules[0], part))
        colour = canvas.batch_colour(batch, batches)
        look: dict[str, Any] = {"label": trial.label, "color": colour, "markersize": 7, "capsize": 3}
        look |= {"fmt": canvas.MARKERS[place_of_rule(study, trial) % len(canvas.MARKERS)]}
        look |= {"markerfacecolor": _FILLS[part] or colour}
        lines.append(Line([Mark(batch, scale.value, scale.interval)], look, place, len(slots)))
    axes.plot(batches, batches, "--", color="dimgray", linewidth=1, label="target batch size")
    for part, fill in _FILLS.items():
        axes.plot([], [], "o", color="dimgray", markerfacecolor=fill or "dimgray", label=part)
    canvas.draw_by_batch(axes, batches, lines, _BY_EPOCH.label)
    axes.set_yscale("log")
    alt = f"Gradient noise scale of each trial of {model} against its target batch size."
    return canvas.model_picture(
        drawn, model, "noise_scale", "gradient noise scale", caption=_CAPTION, alt=alt
    )
