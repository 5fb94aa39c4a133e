"""The statistics of the verdicts: pure functions on arrays. Accuracies are fractions of 1.

Two things vary: the test examples (a test split is a sample of reviews) and the seeds (a training is a
sample of trainings). ``difference`` accounts for both if the two cells have several seeds; with one seed
each, it is about the trainings at hand. Answers are bool, (seeds, examples): which examples were
classified correctly.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
POWER = 0.8


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


class SeedVariance(NamedTuple):
    """The variance of an accuracy over seeds, and the degrees of freedom of this estimate."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class SeedsDifference:
    """The difference of two cells' mean accuracies, for new trainings on new examples.

    With its standard error, fractions of 1, and its degrees of freedom.
    """

    mean: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        """Two-sided, by Student's t."""
        return 2 * float(special.stdtr(self.freedom, -abs(self.mean) / self.error))

    def interval(self, alpha: float) -> Interval:
        """At level 1 − ``alpha``."""
        margin = float(special.stdtrit(self.freedom, 1 - alpha / 2)) * self.error
        return Interval(self.mean - margin, self.mean + margin)

    def detectable(self, alpha: float) -> float:
        """The difference that is found with a power of 80 % at level ``alpha``; NaN: none, however large.

        The noncentral t distribution is inverted for its noncentrality, without its negligible far tail.
        """
        critical = special.stdtrit(self.freedom, 1 - alpha / 2)
        found = float(special.nctdtrinc(self.freedom, 1 - POWER, critical)) * self.error
        return found if found <= 1 else math.nan

    def equivalence_margin(self, alpha: float) -> float:
        """The margin within which cells that do not differ are called equivalent with a power of 80 %.

        By two one-sided tests at level ``alpha`` each.
        """
        critical = special.stdtrit(self.freedom, 1 - alpha)
        return float(critical + special.stdtrit(self.freedom, (1 + POWER) / 2)) * self.error


@dataclass(frozen=True)
class TrainingsDifference:
    """The difference of two trainings' accuracies, for new examples, from the examples they differ on."""

    gained: int  # test examples that only the first classified correctly
    lost: int  # that only the second classified correctly
    examples: int

    @property
    def mean(self) -> float:
        return (self.gained - self.lost) / self.examples

    @property
    def error(self) -> float:
        """The standard error of a paired difference of proportions."""
        n = self.examples
        return math.sqrt(max(0.0, self.gained + self.lost - n * self.mean**2)) / n

    @property
    def p(self) -> float:
        """Exact McNemar: under the null hypothesis either side is as likely to be right alone."""
        fewer, discordant = min(self.gained, self.lost), self.gained + self.lost
        return min(1.0, 2 * float(special.bdtr(fewer, discordant, 0.5)))

    def interval(self, alpha: float) -> Interval:
        """At level 1 − ``alpha``."""
        return score_interval(self.gained, self.lost, self.examples, alpha)

    def detectable(self, alpha: float) -> float:
        """The difference that is found with a power of 80 % at level ``alpha``; NaN: none, however large.

        Connor 1987 (Biometrics 43), after Miettinen 1968: with discordance ψ and difference δ, McNemar's
        test needs n = (z_α √ψ + z_β √(ψ − δ²))² / δ² pairs, here solved for δ. Never below what the exact
        test can find at all: it needs at least 1 − log2(alpha) discordant pairs to reject (six at 0.05),
        even if they all point the same way.
        """
        examples, needed = self.examples, math.ceil(1 - math.log2(alpha))
        if examples < needed:
            return math.nan
        z_alpha, z_beta = special.ndtri(1 - alpha / 2), special.ndtri(POWER)
        root = math.sqrt(max(0.0, examples + z_beta**2 - z_alpha**2))
        factor = (z_alpha * math.sqrt(examples) + z_beta * root) / (examples + z_beta**2)
        connor = factor * math.sqrt((self.gained + self.lost) / examples)
        # the rate at which at least `needed` of the examples are discordant with probability POWER
        return float(max(connor, special.betaincinv(needed, examples - needed + 1, POWER)))


Difference = SeedsDifference | TrainingsDifference


def difference(correct: np.ndarray, baseline: np.ndarray, pooled: SeedVariance) -> Difference:
    """The difference of two cells from their answers, (seeds, examples) each; seed counts may differ.

    Either one training on each side or several on both: a single training has no variance of its own.
    ``pooled`` is the ``pooled_seed_variance`` of all cells of the models, unused with one training a side.
    Raises ValueError for other numbers of trainings, and for answers that are not paired.
    """
    if correct.dtype != bool or baseline.dtype != bool:
        raise ValueError("correctness must be bool: a missing prediction is neither right nor wrong")
    if correct.shape[1:] != baseline.shape[1:] or correct.ndim != 2 or not (correct.size and baseline.size):
        raise ValueError(f"shapes {correct.shape} and {baseline.shape} are not of the same examples")
    seeds = {len(correct), len(baseline)}
    if seeds == {1}:
        gained, lost = int((correct & ~baseline).sum()), int((baseline & ~correct).sum())
        return TrainingsDifference(gained, lost, correct.shape[1])
    if min(seeds) < 2 or not pooled.freedom:
        raise ValueError(
            f"{sorted(seeds)} seeds, and {pooled.freedom} degrees of freedom of their variance"
        )
    return _difference_over_seeds(correct, baseline, pooled)


def difference_over_seeds(
    mean: float, of_seeds: float, of_examples: float, freedom: float, examples: int
) -> SeedsDifference:
    """A difference whose variance is the sum of ``of_seeds`` and ``of_examples``.

    ``freedom``: the degrees of freedom of the seeds' part; those of the sum are Satterthwaite's.
    """
    total = of_seeds + of_examples
    return SeedsDifference(
        mean, math.sqrt(total), total**2 / (of_seeds**2 / freedom + of_examples**2 / examples)
    )


def welch_freedom(variances: Sequence[float], seeds: Sequence[int]) -> float:
    """Degrees of freedom of the sum of two means' variances, each over two seeds or more (Welch 1947)."""
    return sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, seeds, strict=True))


def wilson_interval(correct: float, examples: int) -> Interval:
    """95 % interval of an accuracy, for new examples (Wilson 1927).

    ``correct`` may be a mean over seeds, whose variation is left out. Raises ValueError if there is no
    example.
    """
    if not 0 <= correct <= examples or not examples:
        raise ValueError(f"{correct} correct of {examples} examples is no accuracy")
    low, high = proportion_confint(correct, examples, alpha=1 - LEVEL, method="wilson")
    return Interval(float(low), float(high))


def accuracy_interval(answers: np.ndarray) -> Interval:
    """95 % interval of a cell's accuracy, from its answers: bool, (seeds, examples), one seed or more.

    With one training it is Wilson's, for new examples. With several it is for new trainings on new
    examples, with a part of this cell's own seeds and a part of the examples. The margins of the parts
    are added in squares (Howe 1974, J Am Stat Assoc 69): with three seeds Satterthwaite's degrees of
    freedom cover too little. Four examples are added, two right and two wrong (Agresti and Coull 1998).
    """
    seeds, examples = answers.shape
    if seeds < 2:
        return wilson_interval(int(answers.sum()), examples)
    scores = np.append(answers.mean(axis=0), [1.0, 1.0, 0.0, 0.0])
    of_examples = max(0.0, float(scores.var(ddof=1)) - _residual_variance(answers) / seeds) / len(scores)
    of_seeds = _seed_variance(answers) / seeds
    quantiles = special.stdtrit([seeds - 1, examples], (1 + LEVEL) / 2)
    margin = math.hypot(quantiles[0] * math.sqrt(of_seeds), quantiles[1] * math.sqrt(of_examples))
    middle = float(scores.mean())
    return Interval(max(0.0, middle - margin), min(1.0, middle + margin))


def score_interval(gained: int, lost: int, examples: int, alpha: float) -> Interval:
    """Interval at level 1 − ``alpha`` of a paired difference of accuracies (Tango 1998, Stat Med 17).

    It holds every difference δ that the score test does not reject: |gained − lost − nδ| is at most
    z·√(n(2q + δ(1 − δ))), where q is the most likely rate of lost examples if δ is the truth. Raises
    ValueError for counts that do not fit the number of examples.
    """
    if not 0 <= gained + lost <= examples or not examples:
        raise ValueError(f"{gained} gained and {lost} lost are not of {examples} examples")
    z, n = float(special.ndtri(1 - alpha / 2)), examples

    def excess(delta: float) -> float:
        """Positive if the score test rejects ``delta``."""
        half = -gained - lost + (2 * n - gained + lost) * delta
        root = math.sqrt(max(0.0, half**2 + 8 * n * lost * delta * (1 - delta)))
        rate = (root - half) / (4 * n)
        variance = max(0.0, n * (2 * rate + delta * (1 - delta)))
        return abs(gained - lost - n * delta) - z * math.sqrt(variance)

    found = (gained - lost) / n
    near = 1e-12  # without a discordant pair the score test is 0 of 0 at the difference itself
    low = optimize.brentq(excess, -1, found - near) if excess(-1) > 0 and found > -1 else -1.0
    high = optimize.brentq(excess, found + near, 1) if excess(1) > 0 and found < 1 else 1.0
    return Interval(float(low), float(high))


def holm(p_values: np.ndarray, planned: int) -> np.ndarray:
    """Adjusted p-values, (comparisons,): the chance of any false claim stays below the level (Holm 1979).

    The family has ``planned`` comparisons; those without a p-value yet count as the least significant.
    Raises ValueError for a NaN.
    """
    if np.isnan(p_values).any():
        raise ValueError("a comparison without a p-value has no place in a family")
    # not statsmodels' multipletests: it collects garbage at every call, 0.1 s each
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(planned, planned - len(p_values), -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def pooled_seed_variance(cells: Iterable[np.ndarray]) -> SeedVariance:
    """The variance of accuracies over seeds, from the answers of several cells: bool, (seeds, examples).

    Cells with fewer than two seeds are ignored; NaN if no cell has two.
    """
    squares = freedom = 0.0
    for answers in cells:
        own = max(0, len(answers) - 1)
        squares += _seed_variance(answers) * own
        freedom += own
    return SeedVariance(squares / freedom if freedom else math.nan, int(freedom))


def _difference_over_seeds(
    correct: np.ndarray, baseline: np.ndarray, pooled: SeedVariance
) -> SeedsDifference:
    """The variance of a difference has a part of the seeds and a part of the examples.

    The seeds' part is the ``pooled`` variance, but at least what the two cells show, so that a cell that
    varies much is not hidden among calm ones. If the two cells show more than the pool, the degrees of
    freedom move towards those of the two cells alone (Welch 1947). The examples' part is the variance of
    the difference from example to example, less what the seeds already explain. Both are components of a
    two-way layout of readers and cases (Obuchowski and Rockette 1995, Hillis 2007), and the degrees of
    freedom of their sum are Satterthwaite's. Two examples are added, one won and one lost under all seeds
    (Bonett and Price 2012), so that a few examples that disagree do not look like certainty.
    """
    seeds, examples = (len(correct), len(baseline)), correct.shape[1]
    own = [_seed_variance(answers) / len(answers) for answers in (correct, baseline)]
    lent = pooled.variance * (1 / seeds[0] + 1 / seeds[1])
    share = min(1.0, lent / sum(own))
    freedom = share * pooled.freedom + (1 - share) * welch_freedom(own, seeds)
    scores = correct.mean(axis=0) - baseline.mean(axis=0)
    explained = _residual_variance(correct) / seeds[0] + _residual_variance(baseline) / seeds[1]
    varies = float(np.append(scores, [1.0, -1.0]).var(ddof=1))
    of_examples = max(0.0, varies - explained) / examples
    return difference_over_seeds(float(scores.mean()), max(lent, sum(own)), of_examples, freedom, examples)


def _seed_variance(answers: np.ndarray) -> float:
    """Sample variance of the accuracy over seeds, 0 with one.

    Accuracies are multiples of 1/examples. The result is at least the variance of this rounding: seeds
    that agree to the last example do not show that they vary less.
    """
    if len(answers) < 2:
        return 0.0
    rounding = 1 / (12 * answers.shape[1] ** 2)
    return max(float(answers.mean(axis=1).var(ddof=1)), rounding)


def _residual_variance(answers: np.ndarray) -> float:
    """The mean square of seeds by examples in a two-way layout, 0 with one seed."""
    seeds, examples = answers.shape
    if seeds < 2 or examples < 2:
        return 0.0
    right = answers.mean(axis=0)
    within = float((right * (1 - right)).sum()) * seeds  # of all answers about their example's mean
    between = float(answers.mean(axis=1).var()) * seeds * examples
    return (within - between) / ((seeds - 1) * (examples - 1))
