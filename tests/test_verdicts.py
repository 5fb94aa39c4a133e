import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.null_studies import predictions, simulated_plan, simulated_trial
from reports.content import rows
from reports.prose import p_text, signed
from reports.study_data import StudyData
from reports.verdicts import BETTER, NOT_APART, WORSE, compare_cells, compare_epochs, headline
from search_spaces import TrialConfig

BATCH = {"target_batch_size": 64}


def answers(right, wrong=0):
    return np.repeat([True, False], [right, wrong])


def make_study(points, baselines, models=("tiny",)):
    """A study from {(target batch size, rule, seed): answers}; at 64 the rules share a trial."""
    cells = [
        TrialConfig(model=model, target_batch_size=batch, scaling_rule=rule, seed=seed)
        for model in models
        for batch, rule, seed in points
    ]
    trials = {}
    for cell in cells:
        own = points[cell.target_batch_size, cell.scaling_rule, cell.seed]
        trials.setdefault(cell.trial_hash, simulated_trial(cell, own, answers(20)))
    return StudyData(simulated_plan(cells, baselines), trials)


def two_cells(value, baseline):
    return make_study({(64, "fixed", 1): baseline, (1024, "fixed", 1): value}, BATCH)


def changed(study, batch, **fields):
    """The study with other fields in its first trial of a target batch size."""
    name = study.cells.query("target_batch_size == @batch")["trial_hash"].iloc[0]
    return replace(study, trials={**study.trials, name: replace(study.trials[name], **fields)})


def only(family):
    (verdict,) = rows(family.verdicts)
    return verdict


def test_a_verdict_by_hand():
    family = compare_cells(two_cells(answers(10, 10), answers(20)))
    verdict = only(family)
    # ten discordant pairs, all one way: p = 2 / 2^10; a family of one is not adjusted
    assert verdict.p == verdict.p_holm == pytest.approx(2 / 1024)
    assert (verdict.accuracy, verdict.baseline_accuracy, verdict.difference_points) == (0.5, 1, -50)
    assert (verdict.gained, verdict.lost, verdict.outcome) == (0, 10, WORSE)
    assert math.isnan(verdict.standard_error_points)
    # the score interval of 10 lost and none gained of 20 (Tango 1998)
    interval = (verdict.difference_points_low, verdict.difference_points_high)
    assert interval == pytest.approx((-70.1, -25.8), abs=0.05)
    assert family.sentences() == [
        "tiny, fixed: target batch size 1024 is worse than 64 by 50.0 points "
        "(simultaneous 95 % interval 25.8 to 70.1; Holm-adjusted p = 0.002)."
    ]
    finding, scope = headline(family)
    assert finding == "tiny: target batch size 1024 is worse than 64 by 50.0 points (fixed)."
    assert "these trainings only: one seed says nothing about another training." in scope
    other = only(compare_cells(two_cells(answers(20), answers(10, 10))))
    assert (other.outcome, other.difference_points, other.gained) == (BETTER, 50, 10)


def test_what_cannot_be_told_apart_says_what_could_have_been():
    family = compare_cells(two_cells(answers(102, 98), answers(100, 100)))
    assert only(family).outcome == NOT_APART
    assert only(family).p == 0.5  # two discordant pairs
    (sentence,) = family.sentences()
    assert "1024 against 64 cannot be told apart (difference +1.0 points" in sentence
    # at least 6 of 200 one way with probability 80 %: about 7.9/200
    assert "a difference of more than about 3.9 points would have been found with a" in sentence
    assert headline(family)[0].startswith(
        "tiny: In all 1 comparison the two cannot be told apart: a difference of more "
    )


@pytest.mark.parametrize("right", [12, 0])
def test_the_same_answers_are_not_apart(right):
    verdict = only(compare_cells(two_cells(answers(right, 40), answers(right, 40))))
    assert (verdict.outcome, verdict.p) == (NOT_APART, 1)
    assert verdict.difference_points_low < 0 < verdict.difference_points_high
    assert verdict.accuracy_low <= verdict.accuracy <= verdict.accuracy_high


@pytest.mark.parametrize("value", [answers(0, 1), answers(1)])
def test_one_example_shows_nothing(value):
    family = compare_cells(two_cells(value, answers(1)))
    assert only(family).outcome == NOT_APART
    assert math.isnan(only(family).smallest_detectable_points)
    assert "with 1 test example and 1 seed the study could not have detected" in family.sentences()[0]
    assert headline(family)[0].endswith("and no difference, however large, could have been detected.")


def test_each_pair_of_trials_is_compared_once_and_no_trial_with_itself():
    points = {(b, r, 1): answers(20) for r in ("fixed", "sqrt") for b in (64, 256, 1024)}
    family = compare_cells(make_study(points, {**BATCH, "scaling_rule": "fixed"}, models=("a", "b")))
    columns = ["model", "axis", "value", "baseline", "target_batch_size", "scaling_rule"]
    made = [tuple(row) for row in family.verdicts[columns].to_numpy()]
    batches = [("target_batch_size", b, 64, "", rule) for rule in ("fixed", "sqrt") for b in (256, 1024)]
    rules = [("scaling_rule", "sqrt", "fixed", b, "") for b in (256, 1024)]  # 64 is one trial
    assert made == [(model, *rest) for model in "ab" for rest in batches + rules]
    assert [text[:2] for text in headline(family)[:-1]] == ["a:", "b:"]


def test_models_can_be_compared():
    family = compare_cells(make_study({(64, "fixed", 1): answers(20)}, {"model": "a"}, models=("a", "b")))
    (sentence,) = family.sentences()
    assert sentence.startswith("target batch size 64, fixed: model b against a cannot")
    assert headline(family)[0].startswith("b: ")


def test_untested_trials_are_left_out_and_counted():
    points = {(b, "fixed", 1): answers(20) for b in (64, 256, 512, 1024)}
    study = changed(make_study(points, BATCH), 256, predictions={})
    started = {k: trial for k, trial in study.trials.items() if trial.config.target_batch_size != 512}
    family = compare_cells(replace(study, trials=started))
    assert only(family).value == 1024
    assert headline(family)[-1].endswith("2 comparisons left out: not all of their trials are tested.")
    nothing = compare_cells(replace(study, trials={}))
    assert headline(nothing) == [
        "No comparison can be made. 3 comparisons left out: not all of their trials are tested."
    ]


def test_answers_are_paired_by_row_and_not_by_place():
    half, shuffled = answers(10, 10), predictions(answers(10, 10)).sample(frac=1, random_state=0)
    study = changed(two_cells(half, half), 1024, predictions={"best": shuffled, "last": shuffled})
    verdict = only(compare_cells(study))
    assert (verdict.gained, verdict.lost) == (0, 0)


def test_a_baseline_outside_the_grid_is_said():
    family = compare_cells(make_study({(256, "fixed", 1): answers(20)}, BATCH))
    assert headline(family) == [
        "No comparison can be made. The baseline target batch size 64 is not in the grid: "
        "nothing is compared with it."
    ]


def seeded(accuracies, baselines, examples=400):
    points = {}
    for seed, (value, baseline) in enumerate(zip(accuracies, baselines, strict=True)):
        points[64, "fixed", seed] = answers(baseline, examples - baseline)
        points[1024, "fixed", seed] = answers(value, examples - value)
    return make_study(points, BATCH)


def test_several_seeds_that_agree_make_a_claim():
    family = compare_cells(seeded([300, 302, 298], [340, 338, 341]))
    verdict = only(family)
    assert verdict.outcome == WORSE
    assert verdict.difference_points_low < -119 / 12 < verdict.difference_points_high < 0
    # (300 − 340 + 302 − 338 + 298 − 341) / 3 / 400
    assert verdict.difference_points == pytest.approx(-119 / 12)
    assert "There are 3 seeds" in headline(family)[-1]


def test_a_difference_that_the_seeds_do_not_agree_on_is_not_claimed():
    verdict = only(compare_cells(seeded([300, 350, 250], [340, 340, 340])))
    assert verdict.gained + verdict.lost > 40  # the examples alone would be sure
    assert verdict.outcome == NOT_APART
    # 16.7 points of spread over seeds hide more than the test examples do
    assert verdict.smallest_detectable_points > 20


def test_two_seeds_in_a_family_find_only_what_is_large():
    points = {(b, "fixed", 0): answers(300, 100) for b in (64, 128, 256, 512, 1024)}
    points |= {(b, "fixed", 1): answers(350, 50) for b, *_ in points} | {
        (64, "fixed", 1): answers(300, 100)
    }
    family = compare_cells(make_study(points, BATCH))
    assert set(family.verdicts["outcome"]) == {NOT_APART}
    assert family.verdicts["smallest_detectable_points"].min() > 30


def test_last_against_best_epoch():
    study = changed(two_cells(answers(10, 10), answers(20)), 64, metrics={"best_epoch": 5.0})
    family = compare_epochs(study)
    (sentence,) = family.sentences()
    assert sentence.startswith(
        "tiny, target batch size 1024, fixed: epoch 5 (last) is better than 3 (best) by 50.0 points"
    )
    assert family.notes == ["1 of 2 tested trials is best at its last epoch: nothing to compare there."]


def test_a_headline_does_not_hide_where_nothing_could_have_been_noticed():
    points = {(b, "fixed", 1): answers(*n) for b, n in ((64, (12, 8)), (256, (8, 12)), (1024, (11, 9)))}
    family = compare_cells(make_study(points, BATCH))
    verdicts = family.verdicts.assign(smallest_detectable_points=[math.nan, 12.34])
    assert headline(replace(family, verdicts=verdicts))[0].endswith(
        "a difference of more than about 12.3 points would have been found with a probability of 80 %, "
        "and in 1 of them none, however large."
    )


def test_a_headline_lists_the_largest_differences_first_and_counts_the_rest():
    points = {(b, "fixed", 1): answers(n, 60 - n) for b, n in ((64, 20), (256, 21), (512, 40), (1024, 60))}
    paragraph = headline(compare_cells(make_study(points, BATCH)))[0]
    assert paragraph.startswith(
        "tiny: target batch size 1024 is better than 64 by 66.7 points (fixed) and "
        "target batch size 512 is better than 64 by 33.3 points (fixed). "
        "In the other 1 of 3 comparisons the two cannot be told apart: a difference of more"
    )


def test_p_values_and_differences_are_said_as_people_say_them():
    assert [p_text(p) for p in (0.0124, 1.2e-9, 0.0, 1.0)] == ["= 0.012", "= 1e-9", "< 1e-300", "= 1.000"]
    assert [signed(x) for x in (0.5, -2.31, -0.01)] == ["+0.5", "−2.3", "0.0"]
