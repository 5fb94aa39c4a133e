import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from reports.statistics import (
    bootstrap_interval,
    holm,
    paired_test,
    score_differences,
    seed_spread,
    smallest_detectable_difference,
    smallest_detectable_over_seeds,
    wilson_interval,
)


def signs(gained, lost, ties=0):
    return np.repeat([1, -1, 0], [gained, lost, ties])


@pytest.mark.parametrize(("correct", "examples"), [(8, 10), (431, 500), (0, 10), (1, 1)])
def test_wilson_agrees_with_scipy(correct, examples):
    expected = stats.binomtest(correct, examples).proportion_ci(method="wilson")
    assert wilson_interval(correct, examples) == pytest.approx((expected.low, expected.high))


def test_score_differences_by_hand():
    correct = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], dtype=bool)  # seeds right: 2 1 0 1
    baseline = np.array([[0, 1, 0, 1], [0, 0, 1, 0]], dtype=bool)  # seeds right: 0 1 1 1
    assert score_differences(correct, baseline).tolist() == [2, 0, -1, 0]


ANSWERS = np.ones((1, 3), dtype=bool)


@pytest.mark.parametrize(
    ("calculate", "values", "message"),
    [
        (score_differences, (ANSWERS, np.ones((1, 4), dtype=bool)), "not paired"),
        (score_differences, (ANSWERS[:, :0], ANSWERS[:, :0]), "not paired"),
        (score_differences, (np.array([[1.0, math.nan, 0.0]]), ANSWERS), "neither right nor wrong"),
        *((wilson_interval, (correct, 10), "no accuracy") for correct in (11, -1, math.nan)),
        (wilson_interval, (0, 0), "no accuracy"),
        (holm, (np.array([0.1, math.nan]),), "without a p-value"),
        (seed_spread, (np.array([0.8]), np.array([0.7]), 100), "two or more"),
    ],
)
def test_what_cannot_be_calculated_with_is_refused(calculate, values, message):
    with pytest.raises(ValueError, match=message):
        calculate(*values)


@pytest.mark.parametrize("differences", [[2, 1, -1, 0, 0], [3, 3, -2, 2, 1, 1, -1, 3, 0, 0]])
def test_paired_test_with_several_seeds_agrees_with_flipping_every_sign(differences):
    flips = np.array(list(itertools.product([-1, 1], repeat=len(differences))))
    sums = np.abs(flips @ np.abs(differences))
    assert paired_test(np.array(differences)) == pytest.approx((sums >= abs(sum(differences))).mean())


@pytest.mark.parametrize(
    ("gained", "lost"), [(0, 0), (5, 0), (0, 6), (5, 5), (3, 14), (40, 70), (900, 1000)]
)
def test_paired_test_with_one_seed_is_mcnemars(gained, lost):
    expected = mcnemar([[7, lost], [gained, 9]], exact=True).pvalue
    assert paired_test(signs(gained, lost, ties=16)) == pytest.approx(min(1, expected), rel=1e-9)


def test_the_bootstrap_agrees_with_scipys():
    differences = np.random.default_rng(0).choice([-2, -1, 0, 1, 2], 400, p=[0.02, 0.1, 0.6, 0.2, 0.08])
    expected = stats.bootstrap(
        (differences / 2,), np.mean, n_resamples=10_000, method="percentile", rng=1
    ).confidence_interval
    assert bootstrap_interval(differences, seeds=2) == pytest.approx(tuple(expected), abs=0.003)


def test_holm_by_hand():
    # ascending: 0.01·3, 0.03·2, 0.04·1 = 0.03, 0.06, 0.04; the last may not fall below the one before
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([])).tolist() == []
    many = np.random.default_rng(0).random(20) ** 3
    assert holm(many) == pytest.approx(multipletests(many, method="holm")[1])


def test_smallest_detectable_difference_solves_connors_formula():
    found = smallest_detectable_difference(signs(50, 50, 400), seeds=1, alpha=0.05)
    # discordance 0.2: n = (1.95996 √0.2 + 0.84162 √(0.2 − δ²))² / δ² must give the 500 back
    assert (
        1.95996 * math.sqrt(0.2) + 0.84162 * math.sqrt(0.2 - found**2)
    ) ** 2 / found**2 == pytest.approx(500, rel=1e-4)


def test_the_smallest_detectable_difference_is_detected_four_times_of_five():
    found = smallest_detectable_difference(signs(50, 50, 400), seeds=1, alpha=0.05)
    generator = np.random.default_rng(0)
    chances = [(0.2 + found) / 2, (0.2 - found) / 2, 0.8]
    draws = generator.multinomial(500, chances, size=1000)
    power = np.mean([paired_test(signs(gained, lost)) <= 0.05 for gained, lost, _ in draws])
    assert 0.74 <= power <= 0.84  # the exact test is a little conservative, the formula is not exact


def test_several_seeds_count_by_the_spread_of_their_scores():
    one = smallest_detectable_difference(signs(50, 50, 400), seeds=1, alpha=0.05)
    # the same answers under each of three seeds say no more than under one
    three = smallest_detectable_difference(3 * signs(50, 50, 400), seeds=3, alpha=0.05)
    assert three == pytest.approx(one)


def test_without_discordance_the_exact_test_is_the_limit():
    found = smallest_detectable_difference(np.zeros(500, dtype=int), seeds=1, alpha=0.05)
    # at least six of 500 must be discordant, all one way, with probability 80 %
    assert stats.binom.sf(5, 500, found) == pytest.approx(0.8)


def test_nothing_can_be_detected_with_five_examples():
    assert math.isnan(smallest_detectable_difference(np.ones(5, dtype=int), seeds=1, alpha=0.05))
    assert smallest_detectable_difference(np.ones(6, dtype=int), seeds=1, alpha=0.05) <= 1


def test_seed_spread_agrees_with_scipys_paired_t():
    value, baseline = np.random.default_rng(0).normal(0.8, 0.02, (2, 5))
    expected = stats.ttest_rel(value, baseline)
    spread = seed_spread(value, baseline, examples=5000)
    assert spread.p == pytest.approx(expected.pvalue)
    assert spread.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    deviations = [np.std(each, ddof=1) for each in (value - baseline, value, baseline)]
    found = (spread.deviation, spread.accuracy_deviation, spread.baseline_deviation)
    assert found == pytest.approx(deviations)


def test_seeds_that_agree_to_the_last_example_are_not_certain():
    same = seed_spread(np.array([0.8, 0.8]), np.array([0.7, 0.7]), examples=100)
    assert 0 < same.p < 0.05
    assert seed_spread(np.array([0.8, 0.8]), np.array([0.8, 0.8]), examples=100).p == 1


def test_smallest_detectable_over_seeds_has_the_power_that_statsmodels_gives_it():
    found = smallest_detectable_over_seeds(deviation=0.01, seeds=5, alpha=0.05)
    assert TTestPower().power(found / 0.01, nobs=5, alpha=0.05) == pytest.approx(0.8, abs=1e-4)
