"""The pipeline on studies whose truth is known. Seeded: the counts are the same every time."""

import pytest

from benchmarks.null_studies import Truth, covered, simulate, without_holm

STUDIES = [100, pytest.param(400, marks=pytest.mark.slow)]


@pytest.mark.parametrize("studies", STUDIES)
def test_false_claims_with_one_seed_and_without_holm_too_many(studies):
    right = simulate(Truth(), studies)["false claim"]
    wrong = simulate(Truth(), studies, without_holm)["false claim"]
    assert right.hits <= 0.05 * studies
    assert wrong.hits > 0.08 * studies


@pytest.mark.parametrize("studies", STUDIES)
@pytest.mark.parametrize(
    "truth",
    [
        Truth(examples=200, seeds=2, deviation=5.0, scaling_rules=("fixed",)),
        Truth(seeds=3, deviation=2.5, restless={1024: 4.0}),
        Truth(seeds=3, deviation=3.0, interaction=1.0),
        Truth(seeds=3, deviation=4.5, diverging={1024: 0.3}, control_seeds=6),
    ],
)
def test_false_claims_where_trainings_vary(truth, studies):
    most = 0.05 * studies + 2 * (0.05 * 0.95 * studies) ** 0.5
    assert simulate(truth, studies)["false claim"].hits <= most


@pytest.mark.parametrize("seeds", [1, 5])
def test_a_real_difference_is_found_and_in_its_direction(seeds):
    counts = simulate(Truth(seeds=seeds, effects={1024: -16.0}), 10)
    assert counts["difference found"].hits >= 16  # of two comparisons in each study
    assert counts["wrong direction"].hits == 0


def test_cells_as_far_apart_as_the_margin_are_rarely_called_equivalent_and_equal_ones_often():
    fields = {"examples": 20_000, "accuracy": 92.0, "deviation": 0.2, "seeds": 3}
    apart = simulate(Truth(effects={256: 1.0, 1024: 1.0}, **fields), 30)
    assert apart["false equivalence"].hits <= 4
    alike = simulate(Truth(**fields), 10)["equivalence found"]
    assert alike.hits >= 0.5 * alike.chances


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover(seeds):
    alone, paired = covered(Truth(seeds=seeds, deviation=0.0 if seeds == 1 else 4.5), 600)
    # four standard errors of 600 draws at 95 % are 21 draws
    assert 549 <= alone.hits <= 591
    assert 549 <= paired.hits <= 591
