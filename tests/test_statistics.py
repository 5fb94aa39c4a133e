import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from reports.statistics import (
    SeedsDifference,
    SeedVariance,
    TrainingsDifference,
    accuracy_interval,
    difference,
    holm,
    pooled_seed_variance,
    score_interval,
    wilson_interval,
)


def counts(gained, lost, examples=500):
    return TrainingsDifference(gained, lost, examples)


@pytest.mark.parametrize(("correct", "examples"), [(8, 10), (431, 500), (0, 10), (1, 1)])
def test_wilson_agrees_with_scipy(correct, examples):
    expected = stats.binomtest(correct, examples).proportion_ci(method="wilson")
    assert wilson_interval(correct, examples) == pytest.approx((expected.low, expected.high))


def test_two_trainings_differ_by_their_discordant_examples():
    correct, baseline = np.array([[1, 1, 0, 0, 1]], dtype=bool), np.array([[0, 1, 0, 1, 0]], dtype=bool)
    alone = pooled_seed_variance([correct, baseline])
    assert difference(correct, baseline, alone) == TrainingsDifference(gained=2, lost=1, examples=5)


ANSWERS = np.ones((1, 3), dtype=bool)
ALONE = SeedVariance(math.nan, 0)


@pytest.mark.parametrize(
    ("calculate", "values", "message"),
    [
        (difference, (ANSWERS, np.ones((1, 4), dtype=bool), ALONE), "not of the same examples"),
        (difference, (ANSWERS[:, :0], ANSWERS[:, :0], ALONE), "not of the same examples"),
        (difference, (np.array([[1.0, math.nan, 0.0]]), ANSWERS, ALONE), "neither right nor wrong"),
        (
            difference,
            (np.ones((2, 3), dtype=bool), ANSWERS, ALONE),
            "0 degrees of freedom of their variance",
        ),
        (difference, (np.ones((2, 3), dtype=bool), ANSWERS, SeedVariance(0.1, 9)), r"\[1, 2\] seeds"),
        *((wilson_interval, (correct, 10), "no accuracy") for correct in (11, -1, math.nan)),
        (wilson_interval, (0, 0), "no accuracy"),
        (holm, (np.array([0.1, math.nan]), 2), "without a p-value"),
        (score_interval, (3, 2, 4, 0.05), "are not of 4 examples"),
    ],
)
def test_what_cannot_be_calculated_with_is_refused(calculate, values, message):
    with pytest.raises(ValueError, match=message):
        calculate(*values)


@pytest.mark.parametrize(
    ("gained", "lost"), [(0, 0), (5, 0), (0, 6), (5, 5), (3, 14), (40, 70), (900, 1000)]
)
def test_two_trainings_are_tested_by_mcnemar(gained, lost):
    expected = mcnemar([[7, lost], [gained, 9]], exact=True).pvalue
    assert counts(gained, lost).p == pytest.approx(min(1, expected), rel=1e-9)


@pytest.mark.parametrize(
    ("gained", "lost", "examples"), [(9, 2, 40), (0, 5, 30), (3, 0, 50), (140, 144, 5000)]
)
def test_score_interval_agrees_with_a_likelihood_maximised_by_brute_force(gained, lost, examples):
    low, high = score_interval(gained, lost, examples, 0.05)
    rates = np.linspace(0, 1, 200_001)[1:-1]  # of lost examples

    def score(delta):
        alike = 1 - 2 * rates - delta
        possible = rates[(alike > 0) & (rates + delta > 0)]
        alike = 1 - 2 * possible - delta
        likelihood = gained * np.log(possible + delta) + lost * np.log(possible)
        likelihood += (examples - gained - lost) * np.log(alike)
        rate = possible[likelihood.argmax()]
        return (gained - lost - examples * delta) / math.sqrt(examples * (2 * rate + delta * (1 - delta)))

    assert score(low) == pytest.approx(1.95996, abs=0.01)
    assert score(high) == pytest.approx(-1.95996, abs=0.01)


def test_score_interval_by_hand():
    # √(284 − 4²/5000)/5000 = 0.337 points, 1.645 of them: −0.08 ± 0.555
    assert 100 * np.array(score_interval(140, 144, 5000, 0.1)) == pytest.approx([-0.63, 0.47], abs=0.01)
    z = 1.959964**2  # no discordant pair: z²/(n + z²) on either side
    assert score_interval(0, 0, 100, 0.05) == pytest.approx([-z / (100 + z), z / (100 + z)])
    assert score_interval(7, 0, 7, 0.05)[1] == 1


def answers_of(seeds, examples=600, accuracy=0.8, seed=0):
    return np.random.default_rng(seed).random((seeds, examples)) < accuracy


def test_the_pooled_seed_variance_is_that_of_an_analysis_of_variance():
    cells = [answers_of(3, seed=0), answers_of(5, seed=1), answers_of(1, seed=2)]
    pooled = pooled_seed_variance(cells)
    accuracies = [cell.mean(axis=1) for cell in cells]
    squares = sum(((each - each.mean()) ** 2).sum() for each in accuracies)
    assert pooled == pytest.approx((squares / 6, 6))
    assert math.isnan(pooled_seed_variance([answers_of(1)]).variance)


def test_the_error_of_a_difference_by_the_mean_squares_of_a_two_way_layout():
    correct, baseline = answers_of(4, seed=3), answers_of(4, accuracy=0.7, seed=4)
    found = difference(correct, baseline, pooled_seed_variance([correct, baseline]))
    examples = correct.shape[1]

    def mean_squares(scores):
        seeds = len(scores)
        rest = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
        of_seeds = examples * scores.mean(axis=1).var(ddof=1)
        return of_seeds, (rest**2).sum() / (seeds - 1) / (examples - 1)

    (seeds_a, rest_a), (seeds_b, rest_b) = mean_squares(correct * 1.0), mean_squares(baseline * 1.0)
    scores = np.append(correct.mean(axis=0) - baseline.mean(axis=0), [1, -1])
    of_examples = max(0, 4 * scores.var(ddof=1) - rest_a - rest_b)
    variance = (seeds_a + seeds_b + of_examples) / (4 * examples)
    assert found.error == pytest.approx(math.sqrt(variance))
    low, high = found.interval(0.05)
    margin = stats.t.ppf(0.975, found.freedom) * found.error
    assert (low, high) == pytest.approx((found.mean - margin, found.mean + margin))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.mean) / found.error, found.freedom))


def test_the_interval_of_an_accuracy_is_over_seeds_and_examples():
    easy = np.arange(600) < 400  # half of what the cell knows is luck
    cell = easy | answers_of(3, accuracy=0.4, seed=5)
    rest = cell - cell.mean(axis=0) - cell.mean(axis=1, keepdims=True) + cell.mean()
    scores = np.append(cell.mean(axis=0), [1, 1, 0, 0])
    of_examples = (scores.var(ddof=1) - (rest**2).sum() / 2 / 599 / 3) / 604
    of_seeds = cell.mean(axis=1).var(ddof=1) / 3
    assert of_examples > 0
    margin = math.sqrt(4.302653**2 * of_seeds + stats.t.ppf(0.975, 600) ** 2 * of_examples)
    assert accuracy_interval(cell) == pytest.approx([scores.mean() - margin, scores.mean() + margin])
    assert accuracy_interval(cell[:1]) == wilson_interval(int(cell[0].sum()), 600)


def test_trainings_that_are_always_right_are_not_certain():
    low, high = accuracy_interval(np.ones((3, 50), dtype=bool))
    assert high == 1
    assert low < wilson_interval(50, 50).low


def test_a_restless_cell_is_not_hidden_among_calm_ones():
    def cell(*right):
        return np.array([np.arange(600) < each for each in right])

    restless, other = cell(360, 480, 590), cell(470, 480, 490)
    calm = [cell(479, 480, 481)] * 3
    pooled = pooled_seed_variance([*calm, other, restless])
    found = difference(restless, other, pooled)
    accuracies = [each.mean(axis=1) for each in (restless, other)]
    of_seeds = sum(each.var(ddof=1) / 3 for each in accuracies)
    of_examples = found.error**2 - of_seeds
    assert of_examples >= 0
    # between the ten degrees of freedom of the pool and the two cells' own, by how much the pool explains
    welch = stats.ttest_ind(*accuracies, equal_var=False).df
    share = pooled.variance * 2 / 3 / of_seeds
    of_both = share * 10 + (1 - share) * welch
    assert welch < of_both < 10
    expected = found.error**4 / (of_seeds**2 / of_both + of_examples**2 / 600)
    assert found.freedom == pytest.approx(expected)


def test_holm_by_hand():
    # ascending: 0.01·3, 0.03·2, 0.04·1 = 0.03, 0.06, 0.04; the last may not fall below the one before
    assert holm(np.array([0.01, 0.04, 0.03]), 3) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([]), 0).tolist() == []
    # two of five are known: 0.01·5, 0.03·4
    assert holm(np.array([0.01, 0.03]), 5) == pytest.approx([0.05, 0.12])
    many = np.random.default_rng(0).random(20) ** 3
    assert holm(many, 20) == pytest.approx(multipletests(many, method="holm")[1])


def test_smallest_detectable_difference_solves_connors_formula():
    found = counts(50, 50).detectable(0.05)
    # discordance 0.2: n = (1.95996 √0.2 + 0.84162 √(0.2 − δ²))² / δ² must give the 500 back
    assert (
        1.95996 * math.sqrt(0.2) + 0.84162 * math.sqrt(0.2 - found**2)
    ) ** 2 / found**2 == pytest.approx(500, rel=1e-4)


def test_the_smallest_detectable_difference_is_detected_four_times_of_five():
    found = counts(50, 50).detectable(0.05)
    generator = np.random.default_rng(0)
    chances = [(0.2 + found) / 2, (0.2 - found) / 2, 0.8]
    draws = generator.multinomial(500, chances, size=1000)
    power = np.mean([counts(gained, lost).p <= 0.05 for gained, lost, _ in draws])
    assert 0.74 <= power <= 0.84  # the exact test is a little conservative, the formula is not exact


def test_without_discordance_the_exact_test_is_the_limit():
    found = counts(0, 0).detectable(0.05)
    # at least six of 500 must be discordant, all one way, with probability 80 %
    assert stats.binom.sf(5, 500, found) == pytest.approx(0.8)


def test_nothing_can_be_detected_with_five_examples():
    assert math.isnan(counts(5, 0, 5).detectable(0.05))
    assert counts(6, 0, 6).detectable(0.05) <= 1


def test_seeds_that_agree_to_the_last_example_are_not_certain():
    right = np.array([np.arange(100) < 80] * 2)
    same = difference(right, right, pooled_seed_variance([right, right]))
    assert same.p == 1
    low, high = same.interval(0.05)
    assert low < -0.01 < 0.01 < high


def test_the_detectable_difference_has_the_power_that_statsmodels_gives_it():
    found = SeedsDifference(mean=0, error=0.01 / math.sqrt(5), freedom=4).detectable(0.05)
    assert TTestPower().power(found / 0.01, nobs=5, alpha=0.05) == pytest.approx(0.8, abs=1e-4)
    assert math.isnan(SeedsDifference(mean=0, error=0.5, freedom=4).detectable(0.05))
