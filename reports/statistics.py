"""The statistics of the verdicts: pure functions on arrays. Accuracies are fractions of 1.

Two things vary, and they are kept apart: the test examples (a test split is a sample of reviews) and the
seeds (a training is a sample of trainings). A *score difference* is, for one test example, the number of
seeds under which one side classified it correctly less the number under which the other side did: an
integer between -seeds and +seeds. With one seed it is +1 or -1 on a discordant pair, and 0 otherwise.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special, stats
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
POWER = 0.8
RESAMPLES = 10_000


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class SeedSpread:
    """How a difference of accuracies varies over paired trainings; accuracies are fractions of 1."""

    seeds: int
    deviation: float  # sample standard deviation of the differences
    interval: Interval  # of the mean difference, paired t
    p: float  # paired t, two-sided
    accuracy_deviation: float  # sample standard deviation of each side's accuracies
    baseline_deviation: float


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


def bootstrap_interval(
    differences: np.ndarray, seeds: int, resamples: int = RESAMPLES, random_state: int = 0
) -> Interval:
    """95 % percentile interval of the mean accuracy difference over test examples (Efron 1979).

    ``differences`` are score differences, (examples,). Resampled are the test examples, whole pairs; the
    seeds are not. Few values occur, so a resample is drawn as how often each does, which is a multinomial.
    Where every difference is alike the interval is a point: a bootstrap cannot see what did not happen.
    """
    values, counts = np.unique(differences, return_counts=True)
    examples = len(differences)
    generator = np.random.default_rng(random_state)
    draws = generator.multinomial(examples, counts / examples, size=resamples)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws @ values / (examples * seeds), [tail, 1 - tail])
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


def seed_spread(accuracies: np.ndarray, baseline: np.ndarray, examples: int) -> SeedSpread:
    """Variation over paired trainings, from two accuracies per seed, (seeds,) each, on ``examples``.

    Raises ValueError with fewer than two seeds, which show no variation.
    """
    seeds = len(accuracies)
    if seeds < 2 or accuracies.shape != baseline.shape:
        raise ValueError(f"{accuracies.shape} and {baseline.shape} are not two or more paired seeds")
    differences = accuracies - baseline
    # Accuracies are multiples of 1/examples. Rounding alone has this deviation, so seeds that agree to
    # the last example have not shown that they vary less.
    rounding = 1 / (examples * math.sqrt(12))
    deviation = max(float(differences.std(ddof=1)), rounding)
    error = deviation / math.sqrt(seeds)
    mean = float(differences.mean())
    margin = float(special.stdtrit(seeds - 1, (1 + LEVEL) / 2)) * error
    return SeedSpread(
        seeds=seeds,
        deviation=deviation,
        interval=Interval(mean - margin, mean + margin),
        p=2 * float(special.stdtr(seeds - 1, -abs(mean) / error)),
        accuracy_deviation=float(accuracies.std(ddof=1)),
        baseline_deviation=float(baseline.std(ddof=1)),
    )


def smallest_detectable_over_seeds(deviation: float, seeds: int, alpha: float) -> float:
    """The difference that the paired t test finds with a power of 80 % at level ``alpha``.

    ``deviation`` is the standard deviation of the differences over ``seeds``. The noncentral t
    distribution is inverted for its noncentrality; the far tail is left out, being negligible.
    """
    critical = special.stdtrit(seeds - 1, 1 - alpha / 2)
    noncentrality = special.nctdtrinc(seeds - 1, 1 - POWER, critical)
    return float(noncentrality * deviation / math.sqrt(seeds))
