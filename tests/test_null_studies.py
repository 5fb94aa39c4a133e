"""The pipeline on studies whose truth is known. Seeded: the counts are the same every time."""

import pytest

from benchmarks.null_studies import (
    Truth,
    claims,
    claims_without_holm,
    covered,
    studies_that_claim,
)

STUDIES = [300, pytest.param(1000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("studies", STUDIES)
def test_false_claims_with_one_seed_and_without_holm_too_many(studies):
    right, wrong = studies_that_claim(Truth(), studies, claims, claims_without_holm)
    assert right <= 0.05 * studies
    assert wrong > 0.08 * studies


@pytest.mark.parametrize("studies", STUDIES)
def test_false_claims_where_trainings_vary(studies):
    truth = Truth(examples=200, seeds=2, training_deviation=0.5, scaling_rules=("fixed",))
    (right,) = studies_that_claim(truth, studies, claims)
    assert right <= 0.05 * studies


@pytest.mark.parametrize("seeds", [1, 5])
def test_a_real_difference_is_found(seeds):
    truth = Truth(seeds=seeds, effects={1024: -1.0})
    assert studies_that_claim(truth, 10, claims)[0] >= 8


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover(seeds):
    wilson, paired = covered(Truth(seeds=seeds), 600)
    # four standard errors of 600 draws at 95 % are 21 draws
    assert 549 <= wilson <= 591
    assert 549 <= paired <= 591
