"""Verdicts: which differences of a study are real, as far as its test examples and seeds can tell.

With one seed a verdict is about the trainings at hand: another training of the same cell may turn out
otherwise, and one seed says nothing about it. With several seeds one test and one interval cover both
chances, another seed and other test examples (``statistics.difference``).

A verdict is a row of a table, ``Family.verdicts``:

- ``model``, ``target_batch_size``, ``scaling_rule``, ``seed``: the coordinates that both sides share,
  empty where they do not; ``axis``, ``value``, ``baseline``: where they differ
- ``outcome``: one of OUTCOMES. ``better`` and ``worse`` are differences by Holm's adjustment.
  ``equivalent``: the interval at twice ALPHA lies within the study's margin on either side of 0 (TOST,
  Schuirmann 1987). ``diverged``: some training of either side has; the rest is then no fair sample, and
  nothing is tested. Else ``undecided``
- ``seeds``, ``diverged`` of them, and the same of the baseline
- ``accuracy``, ``baseline_accuracy``: fractions of 1, means over seeds, with 95 % intervals:
  Wilson's with one seed, else over seeds and test examples together
- ``difference_points``: in hundredths of accuracy, positive where the value is better than the baseline,
  with its interval at the level 1 − ALPHA / comparisons: all intervals of a family hold at once. Ends
  named ``equivalence_points`` are those at 1 − 2·ALPHA / comparisons
- ``gained``, ``lost``: test examples that the value got right more, or less, often
- ``p``: exact McNemar with one seed, the t test over seeds and examples with several; ``p_holm``: adjusted
- ``smallest_detectable_points``: at the level of Holm's first step; NaN: none, however large
- ``standard_error_points`` of the difference; the standard deviations of both accuracies over seeds, NaN
  with one
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from reports.comparisons import (
    Comparison,
    answers,
    diverged_count,
    epoch_comparisons,
    planned_comparisons,
    seed_variance,
)
from reports.prose import axis_words, counted
from reports.statistics import (
    Interval,
    SeedVariance,
    accuracy_interval,
    difference,
    holm,
)
from reports.study_data import StudyData
from search_spaces.space import AXES

ALPHA = 0.05  # the chance of any false claim in a family of comparisons
BETTER, WORSE, EQUIVALENT, UNDECIDED, DIVERGED = OUTCOMES = (
    "better",
    "worse",
    "equivalent",
    "undecided",
    "diverged",
)
_COORDINATES = (
    *(*AXES, "axis", "value", "baseline", "outcome"),
    *("seeds", "diverged", "baseline_seeds", "baseline_diverged"),
)
_COUNTS = ("test_examples", "gained", "lost")
_WITH_ENDS = ("accuracy", "baseline_accuracy", "difference_points")
_NUMBERS = (
    *_COUNTS,
    *(name + end for name in _WITH_ENDS for end in ("", "_low", "_high")),
    *("equivalence_points_low", "equivalence_points_high", "p", "p_holm", "smallest_detectable_points"),
    *("standard_error_points", "accuracy_deviation", "baseline_accuracy_deviation"),
)


@dataclass(frozen=True)
class Family:
    """Verdicts that are adjusted together, of ``planned`` comparisons; ``notes`` say what is left out.

    ``seeds``: the fewest and the most trainings that are planned on a side of a comparison.
    """

    title: str
    verdicts: pd.DataFrame
    planned: int
    margin: float  # points
    seeds: tuple[int, int]
    notes: Sequence[str] = ()


def compare_cells(study: StudyData) -> Family:
    """Each value against the baseline on its axis, all else equal, from the best epochs' predictions."""
    notes = [
        f"The baseline {axis_words(axis)} {baseline} is not in the grid: nothing is compared with it."
        for axis, baseline in study.plan.baselines.items()
        if baseline not in study.axis_values(axis)
    ]
    return _judge("Which differences are real", study, planned_comparisons(study), notes)


def compare_epochs(study: StudyData) -> Family:
    """The last epoch against the best epoch of each trial; always about the one training."""
    comparisons, tested = epoch_comparisons(study), sum(trial.is_tested for trial in study.trials.values())
    notes = []
    if same := tested - len(comparisons):
        verb = "is best at its" if same == 1 else "are best at their"
        trials = counted(tested, "tested trial")
        notes = [f"{same} of {trials} {verb} last epoch: nothing to compare there."]
    return _judge("Last epoch against best epoch", study, comparisons, notes)


@dataclass(frozen=True)
class _Sides:
    """A comparison with the answers of its two sides, bool, (seeds, examples)."""

    comparison: Comparison
    correct: np.ndarray
    baseline: np.ndarray
    diverged: tuple[int, int]
    models: tuple[str, str]
    has_learned: bool  # any of their trainings

    @property
    def can_be_judged(self) -> bool:
        """Whether both sides have trainings; two each where several seeds are planned.

        One training of such a side says nothing about its setting.
        """
        planned = max(len(self.comparison.trials), len(self.comparison.baseline_trials))
        return min(len(self.correct), len(self.baseline)) >= min(2, planned)

    @property
    def missing(self) -> int:
        """Planned trainings that have neither been tested nor diverged."""
        planned = len(self.comparison.trials) + len(self.comparison.baseline_trials)
        return planned - len(self.correct) - len(self.baseline) - sum(self.diverged)


def _sides(study: StudyData, comparisons: Iterable[Comparison]) -> Iterator[_Sides]:
    answers_of = cache(partial(answers, study))  # a cell is in several comparisons
    for each in comparisons:
        yield _Sides(
            each,
            answers_of(each.trials, each.epochs[0]),
            answers_of(each.baseline_trials, each.epochs[1]),
            (diverged_count(study, each.trials), diverged_count(study, each.baseline_trials)),
            each.models,
            _has_learned(study, (*each.trials, *each.baseline_trials)),
        )


def _has_learned(study: StudyData, trials: Iterable[str]) -> bool:
    found = [study.trials[name] for name in trials if name in study.trials]
    return any(study.has_learned(trial) for trial in found if trial.is_tested)


def _judge(title: str, study: StudyData, comparisons: Sequence[Comparison], notes: list[str]) -> Family:
    """The verdicts on all comparisons that can be made by now; a comparison's seeds may be missing."""
    planned, margin = len(comparisons), study.plan.margin
    sides = list(_sides(study, comparisons))
    shown = [each for each in sides if any(each.diverged) or each.can_be_judged]
    if incomplete := sum(each.missing > 0 for each in sides):
        notes = [f"Preliminary: {planned - incomplete} of {counted(planned, 'comparison')}.", *notes]
    alpha, pooled = ALPHA / max(1, planned), cache(partial(seed_variance, study))
    found = [_row(each) | _numbers(each, pooled(frozenset(each.models)), alpha) for each in shown]
    verdicts = pd.DataFrame(found, columns=[*_COORDINATES, *_NUMBERS])
    verdicts = verdicts.astype(dict.fromkeys(_COUNTS, "Int64"))
    _decide(verdicts, planned, margin)
    counts = [len(trials) for each in comparisons for trials in (each.trials, each.baseline_trials)] or [1]
    return Family(title, verdicts, planned, margin, (min(counts), max(counts)), notes)


def _row(sides: _Sides) -> dict[str, Any]:
    """What a verdict is about."""
    comparison = sides.comparison
    return {axis: comparison.fixed.get(axis, "") for axis in AXES} | {
        "axis": comparison.axis,
        "value": comparison.value,
        "baseline": comparison.baseline,
        "outcome": DIVERGED if any(sides.diverged) else UNDECIDED,
        "seeds": len(sides.correct) + sides.diverged[0],
        "diverged": sides.diverged[0],
        "baseline_seeds": len(sides.baseline) + sides.diverged[1],
        "baseline_diverged": sides.diverged[1],
    }


def _numbers(sides: _Sides, pooled: SeedVariance, alpha: float) -> dict[str, Any]:
    """The numbers of a verdict before the family is adjusted; none where a training diverged."""
    if any(sides.diverged):
        return {}
    correct, baseline = sides.correct, sides.baseline
    found = difference(correct, baseline, pooled)
    # those that only guess are alike, whatever their settings could do
    alike = found.interval(2 * alpha) if sides.has_learned else Interval(math.nan, math.nan)
    examples, scores = correct.shape[1], correct.mean(axis=0) - baseline.mean(axis=0)
    return {
        "test_examples": examples,
        **_accuracy("accuracy", correct),
        **_accuracy("baseline_accuracy", baseline),
        "difference_points": 100 * found.mean,
        **_ends("difference_points", found.interval(alpha), 100),
        **_ends("equivalence_points", alike, 100),
        "gained": int((scores > 0).sum()),
        "lost": int((scores < 0).sum()),
        "p": found.p,
        "smallest_detectable_points": 100 * found.detectable(alpha),
        "standard_error_points": 100 * found.error,
    }


def _accuracy(name: str, correct: np.ndarray) -> dict[str, float]:
    seeds, examples = correct.shape
    deviation = float(correct.mean(axis=1).std(ddof=1)) if seeds > 1 else math.nan
    return {
        name: correct.sum() / seeds / examples,
        **_ends(name, accuracy_interval(correct)),
        f"{name}_deviation": deviation,
    }


def _ends(name: str, interval: Interval, factor: int = 1) -> dict[str, float]:
    return {f"{name}_low": factor * interval.low, f"{name}_high": factor * interval.high}


def _decide(verdicts: pd.DataFrame, planned: int, margin: float) -> None:
    """Adjust the p-values of the comparisons that were tested, and set their outcomes, in place."""
    tested = verdicts["outcome"] != DIVERGED
    verdicts.loc[tested, "p_holm"] = holm(verdicts.loc[tested, "p"].to_numpy(float), planned)
    points = verdicts["difference_points"]
    apart = (verdicts["p_holm"] <= ALPHA) & (points != 0)
    within = (verdicts["equivalence_points_low"] > -margin) & (verdicts["equivalence_points_high"] < margin)
    verdicts["outcome"] = np.select(
        [~tested, apart & (points > 0), apart, within], [DIVERGED, BETTER, WORSE, EQUIVALENT], UNDECIDED
    )
    _agree_with_outcomes(verdicts)


def _agree_with_outcomes(verdicts: pd.DataFrame) -> None:
    """Let no interval contradict its outcome, in place.

    The exact test may not reject where the score interval just leaves 0 out, and Holm's later steps
    may claim where an interval at the level of the first still holds 0. The interval then ends at 0, or
    reaches it.
    """
    low, high = verdicts["difference_points_low"], verdicts["difference_points_high"]
    better, worse = verdicts["outcome"] == BETTER, verdicts["outcome"] == WORSE
    verdicts["difference_points_low"] = np.select(
        [better, worse], [low.clip(lower=0), low], low.clip(upper=0)
    )
    verdicts["difference_points_high"] = np.select(
        [better, worse], [high, high.clip(upper=0)], high.clip(lower=0)
    )
