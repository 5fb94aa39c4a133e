"""Verdicts: which differences of a study are real, as far as its test examples and seeds can tell.

With one seed a verdict is about the checkpoints at hand: another training of the same cell may turn out
otherwise, and one seed says nothing about it. With several seeds a difference is claimed only where the
test examples *and* the seeds show it: the p-value of a comparison is the larger of the two tests' (an
intersection-union test, Berger 1982), and Holm's adjustment is applied to that one.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reports.evidence.comparisons import (
    AnswerReader,
    Comparison,
    PairedAnswers,
    UnpairedError,
    axis_words,
    epoch_comparisons,
    planned_comparisons,
)
from reports.evidence.statistics import (
    RESAMPLES,
    Interval,
    SeedSpread,
    bootstrap_interval,
    holm,
    paired_test,
    score_differences,
    seed_spread,
    smallest_detectable_difference,
    smallest_detectable_over_seeds,
    wilson_interval,
)
from reports.prose import counted, interval_text, number, p_text, signed
from reports.study_data import StudyData

ALPHA = 0.05  # the chance of any false claim in a family of comparisons
BETTER, WORSE, NOT_APART = "better", "worse", "cannot be told apart"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of one comparison.

    Accuracies are fractions of 1 and means over seeds, with Wilson intervals. Differences are in points
    (hundredths of accuracy), positive where the value is better than the baseline.
    """

    comparison: Comparison
    test_examples: int
    accuracy: float
    accuracy_interval: Interval
    baseline_accuracy: float
    baseline_interval: Interval
    difference: float
    interval: Interval  # over test examples: bootstrap
    gained: int  # test examples that the value got right under more seeds than the baseline
    lost: int  # under fewer
    p: float  # the larger of the two tests' p-values, where there is more than one seed
    p_examples: float
    p_holm: float
    smallest_detectable: float  # in points, at the level of Holm's first step; NaN: none, however large
    seeds: SeedSpread | None  # fractions of 1; None with one seed

    @property
    def outcome(self) -> str:
        """``better``, ``worse`` or ``cannot be told apart``."""
        if self.p_holm > ALPHA or not self.difference:
            return NOT_APART
        return BETTER if self.difference > 0 else WORSE

    def sentence(self) -> str:
        """The verdict as a reader says it."""
        claim = self._not_told_apart() if self.outcome == NOT_APART else self._told_apart()
        return f"{self.comparison.subject}: {claim}"

    def _told_apart(self) -> str:
        sign = 1 if self.outcome == BETTER else -1
        return (
            f"{self.comparison.claimed} is {self.outcome} than {self.comparison.baseline} "
            f"by {number(abs(self.difference))} points "
            f"({self._intervals(sign, number)}; Holm-adjusted p {p_text(self.p_holm)})."
        )

    def _not_told_apart(self) -> str:
        return (
            f"{self.comparison.claimed} against {self.comparison.baseline} {NOT_APART} "
            f"(difference {signed(self.difference)} points, {self._intervals(1, signed)}; "
            f"Holm-adjusted p {p_text(self.p_holm)}; {self._detectable()})."
        )

    def _detectable(self) -> str:
        if math.isnan(self.smallest_detectable):
            count = self.seeds.seeds if self.seeds else 1
            sample = f"{counted(self.test_examples, 'test example')} and {counted(count, 'seed')}"
            return f"with {sample} the study could not have detected any difference"
        return (
            "the smallest difference the study could have detected is "
            f"about {number(self.smallest_detectable)} points"
        )

    def _intervals(self, sign: int, text: Callable[[float], str]) -> str:
        over_examples = interval_text(self.interval, sign, text)
        if not self.seeds:
            return f"95 % interval {over_examples}"
        over_seeds = Interval(*(100 * end for end in self.seeds.interval))
        return (
            f"95 % interval over test examples {over_examples}, "
            f"over seeds {interval_text(over_seeds, sign, text)}"
        )


@dataclass(frozen=True)
class Family:
    """Verdicts that are adjusted together, and the comparisons that could not be made."""

    verdicts: tuple[Verdict, ...]
    left_out: tuple[tuple[Comparison, str], ...]  # with the reason
    seeds: int
    notes: tuple[str, ...] = ()

    def left_out_sentences(self) -> list[str]:
        """How many comparisons were left out, a sentence per reason."""
        reasons = Counter(reason for _, reason in self.left_out)
        return [f"{counted(count, 'comparison')} left out: {reason}." for reason, count in reasons.items()]

    def scope(self) -> str:
        """What a verdict of this family is about, in a sentence."""
        if self.seeds < 2:
            return (
                "There is one seed, so this is about these checkpoints only: "
                "one seed says nothing about another training."
            )
        return (
            f"There are {self.seeds} seeds: a difference is claimed only where "
            "it is larger than both the test examples and the seeds explain."
        )


def compare_cells(study: StudyData, resamples: int = RESAMPLES) -> Family:
    """Each value against the baseline on its axis, all else equal, from the best epochs' predictions."""
    comparisons = planned_comparisons(study)
    family = _judge(study, comparisons, ("best", "best"), resamples)
    return Family(*family, seeds=len(study.axis_values("seed")), notes=_absent_baselines(study))


def compare_epochs(study: StudyData, resamples: int = RESAMPLES) -> Family:
    """The last epoch against the best epoch of each trial; always about the one training."""
    comparisons, same = epoch_comparisons(study)
    tested = counted(same + len(comparisons), "tested trial")
    verb = "is best at its" if same == 1 else "are best at their"
    note = f"{same} of {tested} {verb} last epoch: nothing to compare there."
    family = _judge(study, comparisons, ("last", "best"), resamples)
    return Family(*family, seeds=1, notes=(note,) if same else ())


def _judge(
    study: StudyData,
    comparisons: Sequence[Comparison],
    which: tuple[str, str],
    resamples: int,
) -> tuple[tuple[Verdict, ...], tuple[tuple[Comparison, str], ...]]:
    reader = AnswerReader(study)
    made, left_out = [], []
    for comparison in comparisons:
        try:
            made.append(_Evidence.of(comparison, reader.pair(comparison, *which)))
        except UnpairedError as reason:
            left_out.append((comparison, str(reason)))
    p_holm = holm(np.array([evidence.p for evidence in made]))
    verdicts = [
        evidence.verdict(float(p), ALPHA / len(made), resamples)
        for evidence, p in zip(made, p_holm, strict=True)
    ]
    return tuple(verdicts), tuple(left_out)


@dataclass(frozen=True)
class _Evidence:
    """One comparison before the family is known."""

    comparison: Comparison
    answers: PairedAnswers
    differences: np.ndarray
    p_examples: float
    spread: SeedSpread | None

    @classmethod
    def of(cls, comparison: Comparison, answers: PairedAnswers) -> "_Evidence":
        differences = score_differences(answers.correct, answers.baseline)
        spread = None
        if len(answers.correct) > 1:
            accuracies = answers.correct.mean(axis=1), answers.baseline.mean(axis=1)
            spread = seed_spread(*accuracies, examples=len(differences))
        return cls(comparison, answers, differences, paired_test(differences), spread)

    @property
    def p(self) -> float:
        return max(self.p_examples, self.spread.p) if self.spread else self.p_examples

    def verdict(self, p_holm: float, level: float, resamples: int) -> Verdict:
        seeds, examples = self.answers.correct.shape
        right = self.answers.correct.sum() / seeds, self.answers.baseline.sum() / seeds
        interval = bootstrap_interval(self.differences, seeds, resamples)
        return Verdict(
            comparison=self.comparison,
            test_examples=examples,
            accuracy=right[0] / examples,
            accuracy_interval=wilson_interval(right[0], examples),
            baseline_accuracy=right[1] / examples,
            baseline_interval=wilson_interval(right[1], examples),
            difference=100 * float(self.differences.mean()) / seeds,
            interval=Interval(*(100 * end for end in interval)),
            gained=int((self.differences > 0).sum()),
            lost=int((self.differences < 0).sum()),
            p=self.p,
            p_examples=self.p_examples,
            p_holm=p_holm,
            smallest_detectable=100 * self._smallest_detectable(level),
            seeds=self.spread,
        )

    def _smallest_detectable(self, level: float) -> float:
        seeds = len(self.answers.correct)
        by_examples = smallest_detectable_difference(self.differences, seeds, level)
        if not self.spread:
            return by_examples
        by_seeds = smallest_detectable_over_seeds(self.spread.deviation, seeds, level)
        # either test can stand in the way; a difference above 100 points is none
        larger = float(np.max([by_examples, by_seeds]))
        return larger if larger <= 1 else math.nan


def _absent_baselines(study: StudyData) -> tuple[str, ...]:
    return tuple(
        f"The baseline {axis_words(axis)} {baseline} is not in the grid: nothing is compared with it."
        for axis, baseline in study.baselines.items()
        if baseline not in study.axis_values(axis)
    )
