"""The gradient noise scale of a training, with its interval, from the moments that every epoch reported.

v and g estimate tr(Σ) and ‖G‖²; the noise scale is the ratio of their means over the measured windows.
Both change along a training. An interval says how well the means over this training are known, so it
comes from windows of the same epoch.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from reports.statistics import LEVEL, Interval
from reports.study_data import TrialData

LARGEST_ERROR = 0.5  # of an estimate that is shown, relative to it

NOISE_CAPTION = (
    "A diagnostic, not a law: tr(Σ)/‖G‖² of the plain gradient (McCandlish et al. 2018), with Fieller's "
    "95 % intervals over the measured windows. It counts dropout as noise and knows nothing of Adam. Where "
    "it exceeds the batch, a larger batch still averages noise away. Where it is far below, extra examples "
    "per step are mostly wasted; that holds for plain SGD."
)

WHOLE = "whole training"
HALVES = ("first half", "last half")
_TERMS = ["gradient_variance", "gradient_norm_squared"]
_MOMENTS = ["noise_windows", "noise_moment_vv", "noise_moment_vg", "noise_moment_gg"]
_UNKNOWN = Interval(math.nan, math.nan)


class NoiseScale(NamedTuple):
    """In examples. NaN where it means nothing; ``windows`` is NaN in studies of earlier versions."""

    value: float
    interval: Interval
    windows: float  # how many were measured


def noise_scales(trial: TrialData) -> dict[str, NoiseScale]:
    """Over the whole training and over its first and its last half.

    The middle epoch of an odd number is in neither half; one epoch has none.
    """
    half = len(trial.evaluations) // 2
    parts = (trial.evaluations, trial.evaluations.head(half), trial.evaluations.tail(half))
    return {name: noise_scale(part) for name, part in zip((WHOLE, *HALVES), parts, strict=True)}


def noise_scale(epochs: pd.DataFrame) -> NoiseScale:
    """Over these epochs, a row each. NaN unless its relative standard error is below LARGEST_ERROR.

    Both terms are averaged before they are divided. Epochs that an earlier version measured lack the
    moments: the ratio of their means is all that is known.
    """
    measured = epochs.reindex(columns=[*_TERMS, *_MOMENTS]).dropna(subset=_TERMS)
    if measured.empty:
        return NoiseScale(math.nan, _UNKNOWN, 0)
    if measured["noise_windows"].isna().any():
        v, g = measured[_TERMS].mean()
        return NoiseScale(v / g if g > 0 else math.nan, _UNKNOWN, math.nan)
    means = measured[[*_TERMS, *_MOMENTS[1:]]].to_numpy()
    return from_moments(measured["noise_windows"].to_numpy(), means)


def from_moments(windows: np.ndarray, means: np.ndarray) -> NoiseScale:
    """From the means of v, g, v², v·g and g², (epochs, 5), over so many windows each, (epochs,).

    The error is that of windows about the mean of their own epoch: epochs differ in truth. Where each has
    one window only, there is nothing but to take the difference of epochs for chance as well.
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
    if math.isnan(high) or relative_error(v, g, covariance) >= LARGEST_ERROR:
        return unknown
    return NoiseScale(v / g, Interval(max(0.0, low), high), total)


def _squared_deviations(means: np.ndarray) -> np.ndarray:
    """Mean squares and products of v and g about their means, (2, 2, epochs)."""
    v, g, vv, vg, gg = means.T
    return np.array([[vv - v * v, vg - v * g], [vg - v * g, gg - g * g]])


def relative_error(v: float, g: float, covariance: np.ndarray) -> float:
    """Standard error of v/g divided by v/g, to first order, from the (2, 2) covariance of the two means.

    The infinitesimal jackknife: deleting one window at a time gives the same but for terms of higher order.
    """
    slope = np.array([1 / v, -1 / g])
    return math.sqrt(max(0.0, slope @ covariance @ slope))


def fieller_interval(v: float, g: float, covariance: np.ndarray, freedom: float) -> Interval:
    """The ratios r for which v − r·g is not significantly different from 0 (Fieller 1954), at LEVEL.

    ``covariance``, (2, 2), is that of the two means. NaN where g itself is not significantly different
    from 0: the interval is unbounded then.
    """
    t = float(special.stdtrit(freedom, (1 + LEVEL) / 2))
    (vv, vg), (_, gg) = t**2 * covariance
    a, b, c = g * g - gg, v * g - vg, v * v - vv
    if a <= 0:
        return _UNKNOWN
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval((b - root) / a, (b + root) / a)
