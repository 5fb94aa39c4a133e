"""The statistics of the verdicts: pure functions on arrays. Accuracies are fractions of 1.

Two things vary: the test examples (a test split is a sample of reviews) and the seeds (a training is a
sample of trainings). With several seeds ``difference_over_seeds`` reckons with both.

A *score difference* is, for one test example, the number of
seeds under which one side classified it correctly less the number under which the other side did: an
integer between -seeds and +seeds. With one seed it is +1 or -1 on a discordant pair, and 0 otherwise.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
POWER = 0.8


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


class SeedVariance(NamedTuple):
    """The variance of an accuracy over seeds, and the degrees of freedom that it was estimated with."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class Difference:
    """A difference of accuracies with its standard error, fractions of 1, and its degrees of freedom."""

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
        """The difference that is found with a power of 80 % at level ``alpha``; NaN where it is above 1.

        The noncentral t distribution is inverted for its noncentrality, without its negligible far tail.
        """
        critical = special.stdtrit(self.freedom, 1 - alpha / 2)
        found = float(special.nctdtrinc(self.freedom, 1 - POWER, critical)) * self.error
        return found if found <= 1 else math.nan


def wilson_interval(correct: float, examples: int) -> Interval:
    """95 % interval of an accuracy (Wilson 1927).

    ``correct`` may be a mean over seeds: the interval is then at most too wide, since a mean over
    trainings varies no more with the test examples than one training does. Raises ValueError where
    there is no example.
    """
    if not 0 <= correct <= examples or not examples:
        raise ValueError(f"{correct} correct of {examples} examples is no accuracy")
    low, high = proportion_confint(correct, examples, alpha=1 - LEVEL, method="wilson")
    return Interval(float(low), float(high))


def score_differences(correct: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Integers, (examples,), from two bool arrays, (seeds, examples) each.

    Raises ValueError where the shapes differ, an array is empty or anything but bool.
    """
    if correct.dtype != bool or baseline.dtype != bool:
        raise ValueError("correctness must be bool: a missing prediction is neither right nor wrong")
    if correct.shape != baseline.shape or correct.ndim != 2 or not correct.size:
        raise ValueError(f"shapes {correct.shape} and {baseline.shape} are not paired (seeds, examples)")
    difference: np.ndarray = correct.sum(axis=0, dtype=int) - baseline.sum(axis=0, dtype=int)
    return difference


def paired_test(differences: np.ndarray) -> float:
    """Exact two-sided p-value of "either side is as likely to be the better one on any example".

    ``differences`` are score differences, (examples,). Under the null hypothesis the sign of each is a fair
    coin's; their sum is then a sum of scaled binomials, one per distinct size, whose distribution is
    their convolution (Fisher 1935, the randomisation test for matched pairs). With one seed this is the
    exact McNemar test. Examples on which both sides do alike carry no information, and do not count.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    positive_sum = np.ones(1)  # [k]: probability that the positive differences add up to k
    for size, count in zip(sizes, counts, strict=True):
        scaled = np.zeros(size * count + 1)
        scaled[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        positive_sum = np.convolve(positive_sum, scaled)
    sums = 2 * np.arange(len(positive_sum)) - int(sizes @ counts)
    as_extreme = np.abs(sums) >= abs(int(differences.sum()))
    return min(1.0, float(positive_sum[as_extreme].sum()))


def score_interval(gained: int, lost: int, examples: int, alpha: float) -> Interval:
    """Interval at level 1 − ``alpha`` of a paired difference of accuracies (Tango 1998, Stat Med 17).

    It holds every difference δ that the score test does not reject: |gained − lost − nδ| is at most
    z·√(n(2q + δ(1 − δ))), where q is the most likely rate of lost examples if δ is the truth. Raises
    ValueError for counts that are not of so many examples.
    """
    if not 0 <= gained + lost <= examples or not examples:
        raise ValueError(f"{gained} gained and {lost} lost are not of {examples} examples")
    z, n = float(special.ndtri(1 - alpha / 2)), examples

    def excess(delta: float) -> float:
        """Positive where the score test rejects ``delta``."""
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


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjusted p-values, (comparisons,): the chance of any false claim stays below the level (Holm 1979).

    Raises ValueError for a NaN.
    """
    if np.isnan(p_values).any():
        raise ValueError("a comparison without a p-value has no place in a family")
    # not statsmodels' multipletests: it collects garbage at every call, 0.1 s each
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def smallest_detectable_difference(differences: np.ndarray, seeds: int, alpha: float) -> float:
    """The accuracy difference that ``paired_test`` finds with a power of 80 % at level ``alpha``.

    Connor 1987 (Biometrics 43), after Miettinen 1968: with discordance ψ and difference δ, McNemar's test
    needs n = (z_α √ψ + z_β √(ψ − δ²))² / δ² pairs, here solved for δ. ψ is the mean squared score
    difference per seed², which is the discordant fraction where there is one seed.

    Never below what the exact test can find at all: it rejects only from 1 − log2(alpha) discordant
    pairs on (six at 0.05), even if they all point the same way. NaN where there are fewer examples.
    """
    examples = len(differences)
    needed = math.ceil(1 - math.log2(alpha))
    if examples < needed:
        return math.nan
    scores = np.abs(differences) / seeds
    z_alpha, z_beta = special.ndtri(1 - alpha / 2), special.ndtri(POWER)
    root = math.sqrt(max(0.0, examples + z_beta**2 - z_alpha**2))
    factor = (z_alpha * math.sqrt(examples) + z_beta * root) / (examples + z_beta**2)
    connor = factor * math.sqrt((scores**2).mean())
    discordant = scores[scores > 0]
    size = discordant.mean() if len(discordant) else 1.0
    # the rate at which at least `needed` of the examples are discordant with probability POWER
    rate = special.betaincinv(needed, examples - needed + 1, POWER)
    return float(max(connor, rate * size))


def pooled_seed_variance(cells: Iterable[np.ndarray]) -> SeedVariance:
    """The variance of accuracies over seeds, from the answers of several cells: bool, (seeds, examples).

    Cells with one seed show none and count for nothing; NaN where no cell has two.
    """
    squares = freedom = 0.0
    for answers in cells:
        squares += _seed_variance(answers) * (len(answers) - 1)
        freedom += len(answers) - 1
    return SeedVariance(squares / freedom if freedom else math.nan, int(freedom))


def difference_over_seeds(correct: np.ndarray, baseline: np.ndarray, pooled: SeedVariance) -> Difference:
    """The difference of mean accuracies for new trainings on new examples; bool arrays, (seeds, examples).

    Its variance has two parts. Of the seeds: the ``pooled`` variance of a model's cells, but never less
    than what the two cells show, so that one restless cell is not hidden among calm ones. Of the examples:
    how the difference varies from example to example, less what the seeds explain already. These are the
    components of a two-way layout of readers and cases (Obuchowski and Rockette 1995, Hillis 2007), and
    the degrees of freedom are Satterthwaite's. Two examples are added, one won and one lost under all
    seeds (Bonett and Price 2012), so that a few examples that disagree do not look like certainty.
    """
    seeds, examples = (len(correct), len(baseline)), correct.shape[1]
    apart = _seed_variance(correct) / seeds[0] + _seed_variance(baseline) / seeds[1]
    of_seeds = max(pooled.variance * (1 / seeds[0] + 1 / seeds[1]), apart)
    scores = correct.mean(axis=0) - baseline.mean(axis=0)
    explained = _residual_variance(correct) / seeds[0] + _residual_variance(baseline) / seeds[1]
    varies = float(np.append(scores, [1.0, -1.0]).var(ddof=1))
    of_examples = max(0.0, varies - explained) / examples
    total = of_seeds + of_examples
    freedom = total**2 / (of_seeds**2 / pooled.freedom + of_examples**2 / examples)
    return Difference(float(scores.mean()), math.sqrt(total), freedom)


def _seed_variance(answers: np.ndarray) -> float:
    """Sample variance of the accuracy over seeds, 0 with one.

    Accuracies are multiples of 1/examples. Rounding alone has the variance that this never falls below:
    seeds that agree to the last example have not shown that they vary less.
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
