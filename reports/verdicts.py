"""Verdicts: which differences of a study are real, as far as its test examples and seeds can tell.

With one seed a verdict is about the trainings at hand: another training of the same cell may turn out
otherwise. With several seeds one test and one interval cover both sources of chance, other seeds and
other test examples (``statistics.difference``).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
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
from reports.prose import counted
from reports.statistics import Interval, SeedVariance, accuracy_interval, difference, holm
from reports.study_data import StudyData
from search_spaces.space import AXES

ALPHA = 0.05  # the chance of any false claim in a family of comparisons
BETTER, WORSE = "better", "worse"  # significant after Holm's adjustment
# the interval at twice ALPHA lies within the study's margin on either side of 0 (TOST, Schuirmann 1987)
EQUIVALENT = "equivalent"
# at least one training of either side has, so no test is made: the others are a biased sample
DIVERGED = "diverged"
UNDECIDED = "undecided"


@dataclass(frozen=True)
class Verdict:
    """What the tests say of one comparison: a row of its CSV file.

    Accuracies are fractions of 1 and means over seeds; points are hundredths of accuracy. Intervals are
    at 95 %: Wilson's with one seed, else over seeds and test examples together. Intervals of differences
    are simultaneous, at the level 1 − ALPHA / comparisons: all of a family hold at once. If a training
    diverged, the numbers are NaN or None.
    """

    model: Any  # the coordinates that both sides share, else ""
    target_batch_size: Any
    scaling_rule: Any
    seed: Any
    axis: str  # on which the sides differ
    value: Any
    baseline: Any
    outcome: str
    seeds: int
    diverged: int  # of these trainings
    baseline_seeds: int
    baseline_diverged: int
    test_examples: int | None = None
    gained: int | None = None  # test examples that the value got right more often than the baseline
    lost: int | None = None  # test examples that the value got right less often
    accuracy: float = math.nan
    accuracy_low: float = math.nan
    accuracy_high: float = math.nan
    baseline_accuracy: float = math.nan
    baseline_accuracy_low: float = math.nan
    baseline_accuracy_high: float = math.nan
    difference_points: float = math.nan  # positive if the value is better than the baseline
    difference_points_low: float = math.nan
    difference_points_high: float = math.nan
    equivalence_points_low: float = math.nan  # of the difference, at 1 − 2·ALPHA / comparisons
    equivalence_points_high: float = math.nan
    p: float = math.nan  # exact McNemar with one seed, the t test over seeds and examples with several
    p_holm: float = math.nan  # adjusted
    smallest_detectable_points: float = math.nan  # at the level of Holm's first step; NaN: none
    standard_error_points: float = math.nan  # of the difference
    accuracy_deviation: float = math.nan  # over seeds; NaN with one
    baseline_accuracy_deviation: float = math.nan

    def is_within(self, margin: float) -> bool:
        """Whether the interval of equivalence lies within the margin, points."""
        return -margin < self.equivalence_points_low and self.equivalence_points_high < margin


@dataclass(frozen=True)
class ComparisonFamily:
    """Verdicts that are adjusted together, of ``planned`` comparisons; ``notes`` say what is left out.

    ``seeds``: the fewest and the most trainings that are planned on a side of a comparison.
    """

    title: str
    verdicts: Sequence[Verdict]
    planned: int
    margin: float  # points
    seeds: tuple[int, int]
    notes: Sequence[str] = ()

    @property
    def frame(self) -> pd.DataFrame:
        """A row per verdict, a column per field."""
        names = [each.name for each in fields(Verdict)]
        frame = pd.DataFrame(map(asdict, self.verdicts), columns=names)
        return frame.astype(dict.fromkeys(("test_examples", "gained", "lost"), "Int64"))


def compare_cells(study: StudyData) -> ComparisonFamily:
    """Each value against the baseline on its axis, all else equal, from the best epochs' predictions."""
    return _judge("Which differences are real", study, planned_comparisons(study), [])


def compare_epochs(study: StudyData) -> ComparisonFamily:
    """The last epoch against the best epoch of each trial; each verdict is about one training."""
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
    has_learned: bool  # any training of either side

    @property
    def can_be_judged(self) -> bool:
        """Whether both sides have tested trainings; two each if several seeds are planned.

        One of several planned trainings says nothing about its setting.
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
            _has_learned(study, (*each.trials, *each.baseline_trials)),
        )


def _has_learned(study: StudyData, trials: Iterable[str]) -> bool:
    found = [study.trials[name] for name in trials if name in study.trials]
    return any(study.has_learned(trial) for trial in found if trial.is_tested)


def _judge(
    title: str, study: StudyData, comparisons: Sequence[Comparison], notes: Sequence[str]
) -> ComparisonFamily:
    """The verdicts on all comparisons that can be made by now, some of them with seeds missing."""
    planned, margin = len(comparisons), study.plan.margin
    sides = list(_sides(study, comparisons))
    if incomplete := sum(each.missing > 0 for each in sides):
        notes = [f"Preliminary: {planned - incomplete} of {counted(planned, 'comparison')}.", *notes]
    alpha, pooled = ALPHA / max(1, planned), cache(partial(seed_variance, study))
    measured = [
        _measured(each, pooled(frozenset(each.comparison.models)), alpha)
        for each in sides
        if any(each.diverged) or each.can_be_judged
    ]
    counts = [len(trials) for each in comparisons for trials in (each.trials, each.baseline_trials)] or [1]
    verdicts = _decided(measured, planned, margin)
    return ComparisonFamily(title, verdicts, planned, margin, (min(counts), max(counts)), notes)


def _measured(sides: _Sides, pooled: SeedVariance, alpha: float) -> Verdict:
    """A verdict with its numbers, before the family is adjusted and decided."""
    comparison, correct, baseline = sides.comparison, sides.correct, sides.baseline
    verdict = Verdict(
        **{axis: comparison.fixed.get(axis, "") for axis in AXES},
        axis=comparison.axis,
        value=comparison.value,
        baseline=comparison.baseline,
        outcome=DIVERGED if any(sides.diverged) else UNDECIDED,
        seeds=len(correct) + sides.diverged[0],
        diverged=sides.diverged[0],
        baseline_seeds=len(baseline) + sides.diverged[1],
        baseline_diverged=sides.diverged[1],
    )
    if any(sides.diverged):
        return verdict
    found, scores = difference(correct, baseline, pooled), correct.mean(axis=0) - baseline.mean(axis=0)
    # trainings that only guess look alike, whatever their settings could do
    alike = found.interval(2 * alpha) if sides.has_learned else Interval(math.nan, math.nan)
    return replace(
        verdict,
        test_examples=correct.shape[1],
        gained=int((scores > 0).sum()),
        lost=int((scores < 0).sum()),
        **_accuracy("accuracy", correct),
        **_accuracy("baseline_accuracy", baseline),
        difference_points=100 * found.mean,
        **_ends("difference_points", found.interval(alpha), 100),
        **_ends("equivalence_points", alike, 100),
        p=found.p,
        smallest_detectable_points=100 * found.detectable(alpha),
        standard_error_points=100 * found.error,
    )


def _accuracy(name: str, correct: np.ndarray) -> dict[str, Any]:
    seeds, examples = correct.shape
    deviation = float(correct.mean(axis=1).std(ddof=1)) if seeds > 1 else math.nan
    return {
        name: float(correct.sum() / seeds / examples),
        **_ends(name, accuracy_interval(correct)),
        f"{name}_deviation": deviation,
    }


def _ends(name: str, interval: Interval, factor: int = 1) -> dict[str, Any]:
    return {f"{name}_low": factor * interval.low, f"{name}_high": factor * interval.high}


def _decided(verdicts: Sequence[Verdict], planned: int, margin: float) -> list[Verdict]:
    """The verdicts with adjusted p-values and outcomes; the outcome DIVERGED stays."""
    tested = [each for each in verdicts if each.outcome != DIVERGED]
    adjusted = iter(holm(np.array([each.p for each in tested], dtype=float), planned).tolist())
    return [
        each if each.outcome == DIVERGED else _decide(replace(each, p_holm=next(adjusted)), margin)
        for each in verdicts
    ]


def _decide(verdict: Verdict, margin: float) -> Verdict:
    """Set the outcome, and let no interval contradict it.

    The score interval may just exclude 0 although the exact test does not reject: it is then extended to
    0. An interval has the level of Holm's first step and may include 0 although a later step claims a
    difference: it is then cut at 0.
    """
    low, high = verdict.difference_points_low, verdict.difference_points_high
    if verdict.p_holm <= ALPHA and verdict.difference_points > 0:
        return replace(verdict, outcome=BETTER, difference_points_low=max(0.0, low))
    if verdict.p_holm <= ALPHA and verdict.difference_points < 0:
        return replace(verdict, outcome=WORSE, difference_points_high=min(0.0, high))
    outcome = EQUIVALENT if verdict.is_within(margin) else UNDECIDED
    verdict = replace(verdict, difference_points_low=min(0.0, low), difference_points_high=max(0.0, high))
    return replace(verdict, outcome=outcome)
