"""What a plan says of the study before anything is trained."""

import dataclasses

import pytest
from scipy import optimize, stats

from reports.forecast import MANY, assumed, power_lines, seeds_needed, smallest_differences, stored_plan
from reports.statistics import TrainingsDifference
from sweep.options import SweepOptions
from sweep.plan import make_plan
from tests.helpers import refusal
from tune_main import main

CHANCE = assumed(seed_points=0.5, disagreement=0.06)
UNKNOWN = assumed(None, None)


def planned(space, test_examples=400, **options):
    options = {"space": space, "demo": True, "models": ["bert-tiny"]} | options
    plan = stored_plan(make_plan(SweepOptions(**options), bf16_available=False).to_dict())
    sizes = plan.dataset.sizes | {"test": test_examples}
    return plan.model_copy(update={"dataset": dataclasses.replace(plan.dataset, sizes=sizes)})


@pytest.fixture(scope="module")
def of_seeds():
    """Ten comparisons of seven cells: one with six seeds, the others with three."""
    return planned("seeds")


def power(difference, error, freedom, alpha):
    return stats.nct.sf(stats.t.ppf(1 - alpha / 2, freedom), freedom, difference / error)


def test_the_smallest_difference_of_a_study_with_seeds(of_seeds):
    # by hand: 400 · 0.005² = 0.01 of the examples' variance a side is the seeds', so 0.06 − 0.02 is left
    expected = []
    for seeds in (1 / 3 + 1 / 6, 1 / 3 + 1 / 3):
        by_seeds, by_examples = 0.005**2 * seeds, 0.04 / 400
        total = by_seeds + by_examples
        freedom = total**2 / (by_seeds**2 / (5 + 6 * 2) + by_examples**2 / 400)
        wanted = (total**0.5, freedom, 0.05 / 10)
        expected.append(optimize.brentq(lambda d, wanted=wanted: power(d, *wanted) - 0.8, 0.001, 0.2))
    assert smallest_differences(of_seeds, CHANCE) == pytest.approx(expected)


def test_with_one_seed_it_is_that_of_the_discordant_examples():
    found = smallest_differences(planned("batch_lr_grid"), assumed(None, 0.06))
    assert found == (TrainingsDifference(12, 12, 400).detectable(0.05 / 10),) * 2


def test_the_seeds_that_the_margin_takes():
    # by hand: 2,000 · 0.005² is more than half of 0.06, so that all of the variance is the seeds'
    plan = planned("seeds", test_examples=2000)
    find, equate = seeds_needed(plan, CHANCE)

    def finds(seeds):
        return power(0.01, 0.005 * (2 / seeds) ** 0.5, 7 * (seeds - 1), 0.05 / 10) >= 0.8

    def equates(seeds):
        return stats.t.ppf(1 - 0.05 / 10, 7 * (seeds - 1)) * 0.005 * (2 / seeds) ** 0.5 < 0.01

    assert (finds(find), finds(find - 1)) == (True, False)
    assert (equates(equate), equates(equate - 1)) == (True, False)


def test_where_no_number_of_seeds_is_enough_the_plan_says_why(of_seeds):
    assert seeds_needed(of_seeds, CHANCE) == (None, None)
    assert power_lines(of_seeds, CHANCE)[-1] == (
        "seeds of every cell for the margin of 1 point: no number to find it with a probability of 80 %, "
        "no number to call two cells equivalent; 400 test examples are too few"
    )
    restless = assumed(seed_points=5, disagreement=0.3)
    assert seeds_needed(of_seeds, restless) == (MANY, MANY)


def test_what_is_not_known_is_said_to_be_unknown(of_seeds):
    extent, smallest, seeds = power_lines(of_seeds, UNKNOWN)
    assert extent == "24 trials, 120 evaluations, 10 planned comparisons"
    assert smallest.endswith("80 %: unknown: give --assume-seed-sd and --assume-disagreement")
    assert seeds.endswith("1 point: unknown: give --assume-seed-sd and --assume-disagreement")


def test_a_search_has_no_comparisons_to_speak_of():
    assert power_lines(planned("best_config", models=None), CHANCE) == []


def test_the_dry_run_says_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--space batch_lr_grid --demo --dry-run --assume-disagreement 0.06"
    assert main(words.split()) == 0
    out = capsys.readouterr().out  # by hand: (3.0233·20 + 0.8416·√391.6) / 400.7 · √0.06 = 0.0471
    assert "find with a probability of 80 %: 4.7 points (disagreement 6 %, assumed)" in out
    assert "1 point: unknown: give --assume-seed-sd" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", [{"assume_disagreement": 6.0}, {"assume_seed_sd": 0.0}])
def test_an_assumption_that_cannot_be_is_refused(values):
    assert "--assume-" in refusal(SweepOptions, space="seeds", **values)
