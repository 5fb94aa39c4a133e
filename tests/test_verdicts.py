import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks.null_studies import predictions, simulated_plan, simulated_trial
from reports.prose import p_text, signed
from reports.sections.differences import comparisons_table, headline, sentences
from reports.study_data import StudyData
from reports.verdicts import (
    BETTER,
    DIVERGED,
    EQUIVALENT,
    UNDECIDED,
    WORSE,
    compare_cells,
    compare_epochs,
)
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
    (verdict,) = family.verdicts
    return verdict


def test_a_verdict_by_hand():
    family = compare_cells(two_cells(answers(10, 10), answers(20)))
    verdict = only(family)
    # ten discordant pairs, all one way: p = 2 / 2^10; a family of one is not adjusted
    assert verdict.p == verdict.p_holm == pytest.approx(2 / 1024)
    assert (verdict.accuracy, verdict.baseline_accuracy, verdict.difference_points) == (0.5, 1, -50)
    assert (verdict.gained, verdict.lost, verdict.outcome) == (0, 10, WORSE)
    # ten of twenty examples differ, all one way: √(10 − 20·0.5²)/20
    assert verdict.standard_error_points == pytest.approx(100 * math.sqrt(5) / 20)
    # the score interval of 10 lost and none gained of 20 (Tango 1998)
    interval = (verdict.difference_points_low, verdict.difference_points_high)
    assert interval == pytest.approx((-70.1, -25.8), abs=0.05)
    assert sentences(family) == [
        "tiny, fixed: the one training with target batch size 1024 is worse than the one with 64 "
        "by 50.0 points (simultaneous 95 % interval 25.8 to 70.1; Holm-adjusted p = 0.002)."
    ]
    finding, scope = headline(family)
    assert finding == (
        "tiny: The one training with target batch size 1024 is worse than the one with 64 "
        "by 50.0 points (95 % 25.8 to 70.1; fixed)."
    )
    assert "these trainings only: one seed says nothing about another training." in scope
    other = only(compare_cells(two_cells(answers(20), answers(10, 10))))
    assert (other.outcome, other.difference_points, other.gained) == (BETTER, 50, 10)


def test_what_is_undecided_says_what_could_have_been():
    family = compare_cells(two_cells(answers(102, 98), answers(100, 100)))
    assert only(family).outcome == UNDECIDED
    assert only(family).p == 0.5  # two discordant pairs
    (sentence,) = sentences(family)
    assert "1024 against the one with 64 is undecided (difference +1.0 points" in sentence
    # at least 6 of 200 one way with probability 80 %: about 7.9/200
    assert "a difference of more than about 3.9 points would have been found with a" in sentence
    assert headline(family)[0].startswith("tiny: Undecided in the only comparison: a difference of more ")


@pytest.mark.parametrize("right", [12, 0])
def test_the_same_answers_are_not_apart(right):
    verdict = only(compare_cells(two_cells(answers(right, 40), answers(right, 40))))
    assert (verdict.outcome, verdict.p) == (UNDECIDED, 1)
    assert verdict.difference_points_low < 0 < verdict.difference_points_high
    assert verdict.accuracy_low <= verdict.accuracy <= verdict.accuracy_high


@pytest.mark.parametrize("value", [answers(0, 1), answers(1)])
def test_one_example_shows_nothing(value):
    family = compare_cells(two_cells(value, answers(1)))
    assert only(family).outcome == UNDECIDED
    assert math.isnan(only(family).smallest_detectable_points)
    assert "with 1 test example and 1 seed the study could not have detected" in sentences(family)[0]
    assert headline(family)[0].endswith(", and no difference, however large, could have been detected.")


def test_each_pair_of_trials_is_compared_once_and_no_trial_with_itself():
    points = {(b, r, 1): answers(20) for r in ("fixed", "sqrt") for b in (64, 256, 1024)}
    family = compare_cells(make_study(points, {**BATCH, "scaling_rule": "fixed"}, models=("a", "b")))
    columns = ["model", "axis", "value", "baseline", "target_batch_size", "scaling_rule"]
    made = [tuple(row) for row in family.frame[columns].to_numpy()]
    batches = [("target_batch_size", b, 64, "", rule) for rule in ("fixed", "sqrt") for b in (256, 1024)]
    rules = [("scaling_rule", "sqrt", "fixed", b, "") for b in (256, 1024)]  # 64 is one trial
    assert made == [(model, *rest) for model in "ab" for rest in batches + rules]
    assert [text[:2] for text in headline(family)[:-1]] == ["a:", "b:"]


def test_models_can_be_compared():
    family = compare_cells(make_study({(64, "fixed", 1): answers(20)}, {"model": "a"}, models=("a", "b")))
    (sentence,) = sentences(family)
    assert sentence.startswith(
        "target batch size 64, fixed: the one training with model b against the one with a is undecided"
    )
    assert headline(family)[0].startswith("b: ")


def test_an_unfinished_study_is_preliminary_and_its_family_is_the_planned_one():
    points = {(b, "fixed", 1): answers(20) for b in (64, 256, 512)} | {(1024, "fixed", 1): answers(10, 10)}
    whole = make_study(points, BATCH)
    study = changed(whole, 256, predictions={})
    started = {k: trial for k, trial in study.trials.items() if trial.config.target_batch_size != 512}
    family = compare_cells(replace(study, trials=started))
    assert (only(family).value, family.planned) == (1024, 3)
    assert only(family).p_holm == pytest.approx(3 * 2 / 1024)
    (finished,) = (verdict for verdict in compare_cells(whole).verdicts if verdict.value == 1024)
    assert repr(only(family)) == repr(finished)  # with one seed a deviation is no number, which equals none
    assert headline(family)[-1].startswith("Preliminary: 1 of 3 comparisons.")
    nothing = compare_cells(replace(study, trials={}))
    assert headline(nothing) == ["No comparison can be made. Preliminary: 0 of 3 comparisons."]


def test_answers_are_paired_by_row_and_not_by_place():
    half, shuffled = answers(10, 10), predictions(answers(10, 10)).sample(frac=1, random_state=0)
    study = changed(two_cells(half, half), 1024, predictions={"best": shuffled, "last": shuffled})
    verdict = only(compare_cells(study))
    assert (verdict.gained, verdict.lost) == (0, 0)


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
    assert verdict.outcome == UNDECIDED
    # 16.7 points of spread over seeds hide more than the test examples do
    assert verdict.smallest_detectable_points > 20


def test_two_seeds_in_a_family_find_only_what_is_large():
    points = {(b, "fixed", 0): answers(300, 100) for b in (64, 128, 256, 512, 1024)}
    points |= {(b, "fixed", 1): answers(350, 50) for b, *_ in points} | {
        (64, "fixed", 1): answers(300, 100)
    }
    family = compare_cells(make_study(points, BATCH))
    assert {verdict.outcome for verdict in family.verdicts} == {UNDECIDED}
    assert min(verdict.smallest_detectable_points for verdict in family.verdicts) > 30


def test_last_against_best_epoch():
    study = changed(two_cells(answers(10, 10), answers(20)), 64, metrics={"best_evaluation": 5.0})
    family = compare_epochs(study)
    (sentence,) = sentences(family)
    assert sentence.startswith(
        "tiny, target batch size 1024, fixed: epoch 5 (last) is better than 3 (best) by 50.0 points"
    )
    assert family.notes == ["1 of 2 tested trials is best at its last epoch: nothing to compare there."]


def test_a_headline_does_not_hide_where_nothing_could_have_been_noticed():
    points = {(b, "fixed", 1): answers(*n) for b, n in ((64, (12, 8)), (256, (8, 12)), (1024, (11, 9)))}
    family = compare_cells(make_study(points, BATCH))
    verdicts = [
        replace(verdict, smallest_detectable_points=points)
        for verdict, points in zip(family.verdicts, [math.nan, 12.34], strict=True)
    ]
    assert headline(replace(family, verdicts=verdicts))[0].endswith(
        "a difference of more than about 12.3 points would have been found with a probability of 80 %, "
        "and in 1 of them none, however large."
    )


def test_a_headline_lists_the_largest_differences_first_and_counts_the_rest():
    points = {(b, "fixed", 1): answers(n, 60 - n) for b, n in ((64, 20), (256, 21), (512, 40), (1024, 60))}
    paragraph = headline(compare_cells(make_study(points, BATCH)))[0]
    assert paragraph.startswith(
        "tiny: The one training with target batch size 1024 is better than the one with 64 by 66.7 points "
        "(95 % 51.2 to 79.2; fixed) and the one training with target batch size 512 is better than the one "
        "with 64 by 33.3 points (95 % 20.8 to 48.8; fixed). "
        "Undecided in the other 1 of 3 comparisons: a difference of more"
    )


def test_the_largest_difference_comes_first_be_it_a_gain_or_a_loss():
    right = {64: 50, 16: 70, 256: 20, 512: 90, 1024: 0}  # of 100
    points = {(batch, "fixed", 1): answers(n, 100 - n) for batch, n in right.items()}
    paragraph = headline(compare_cells(make_study(points, BATCH)))[0]
    claims = re.findall(
        r"batch size (\d+) is (better|worse) than the one with 64 by ([\d.]+) points", paragraph
    )
    assert claims == [
        ("1024", "worse", "50.0"),
        ("512", "better", "40.0"),
        ("256", "worse", "30.0"),
        ("16", "better", "20.0"),
    ]


def test_one_training_of_several_is_not_judged_yet():
    study = seeded([300, 302], [340, 338])
    name = study.cells.query("target_batch_size == 1024 and seed == 1")["trial_hash"].iloc[0]
    without = {h: trial for h, trial in study.trials.items() if h != name}
    family = compare_cells(replace(study, trials=without))
    assert not family.verdicts
    assert headline(family) == ["No comparison can be made. Preliminary: 0 of 1 comparison."]
    assert len(compare_cells(study).verdicts) == 1


def test_a_difference_that_is_there_and_counts_for_nothing_says_so():
    value, baseline = np.ones(20_000, dtype=bool), np.ones(20_000, dtype=bool)
    value[:20], baseline[-100:] = False, False  # 20 lost, 100 gained: 0.4 points
    family = compare_cells(two_cells(value, baseline))
    assert only(family).outcome == BETTER
    for text in (sentences(family)[0], headline(family)[0]):
        assert "than the one with 64 by 0.4 points, less than the margin of 1 point (" in text


def test_the_last_epoch_is_compared_within_a_training_however_many_seeds_there_are():
    study = seeded([300, 302, 298], [340, 338, 341])
    trials = {
        name: replace(trial, predictions=dict.fromkeys(("best", "last"), trial.predictions["best"]))
        for name, trial in study.trials.items()
    }
    family = compare_epochs(replace(study, trials=trials))
    assert "Each comparison is about one training; another may" in headline(family)[-1]


@pytest.mark.parametrize(("val_acc", "outcome"), [(0.9, EQUIVALENT), (0.5, UNDECIDED)])
def test_cells_of_which_none_has_learned_are_not_called_equivalent(val_acc, outcome):
    study = two_cells(answers(5000, 5000), answers(5000, 5000))
    tested = pd.DataFrame(
        {"row_id": range(10_000), "label": [0, 1] * 5000, "prediction": [0, 0, 1, 1] * 2500}
    )
    trials = {
        name: replace(
            trial,
            metrics={**trial.metrics, "best_val_acc": val_acc},
            predictions={"best": tested, "last": tested},
        )
        for name, trial in study.trials.items()
    }
    assert only(compare_cells(replace(study, trials=trials))).outcome == outcome


def with_diverged(study, batch, seed):
    name = study.cells.query("target_batch_size == @batch and seed == @seed")["trial_hash"].iloc[0]
    tags = {"outcome": "diverged", "failure": "train_loss is nan"}
    trial = replace(study.trials[name], metrics={}, predictions={}, tags=tags)
    return replace(study, trials={**study.trials, name: trial})


def test_a_comparison_with_a_training_that_diverged_is_not_tested_and_is_named():
    study = with_diverged(seeded([300, 302, 298], [340, 338, 341]), 1024, seed=1)
    family = compare_cells(study)
    verdict = only(family)
    assert (verdict.outcome, verdict.diverged, verdict.seeds) == (DIVERGED, 1, 3)
    assert math.isnan(verdict.p)
    assert math.isnan(verdict.difference_points)
    assert sentences(family) == [
        "tiny, fixed: target batch size 1024 against 64 is not tested: 1 of 3 trainings with 1024 diverged."
    ]
    finding, scope = headline(family)
    assert finding == "tiny: 1 of 3 trainings diverged at target batch size 1024, fixed."
    assert "Preliminary" not in scope
    row = comparisons_table(family).frame.iloc[0]
    assert row["verdict"] == "diverged 1 of 3"
    assert row["p (Holm)"] == row["difference (points)"] == row["gained / lost"] == "–"


def test_a_baseline_that_diverged_leaves_the_other_comparisons_their_level():
    points = {(b, "fixed", 1): answers(20) for b in (64, 256)} | {
        (b, "sqrt", 1): answers(10, 10) for b in (64, 256)
    }
    points[64, "sqrt", 1] = points[64, "fixed", 1]
    study = make_study(points, {**BATCH, "scaling_rule": "fixed"})
    family = compare_cells(with_diverged(study, 64, seed=1))
    assert family.planned == 3
    (worse,) = (verdict for verdict in family.verdicts if verdict.outcome == WORSE)
    assert worse.p_holm == pytest.approx(3 * 2 / 1024)
    assert sorted(verdict.baseline_diverged for verdict in family.verdicts) == [0, 1, 1]
    assert "1 of 1 training diverged at target batch size 64, fixed" in headline(family)[0]


def test_seeds_may_be_unbalanced_or_missing():
    balanced = seeded([300, 302, 298], [340, 338, 341])
    more = {(64, "fixed", 3 + i): answers(right, 400 - right) for i, right in enumerate([341, 338, 340])}
    points = {
        (int(trial.config.target_batch_size), "fixed", trial.config.seed): trial.correct().to_numpy()
        for trial in balanced.trials.values()
    }
    unbalanced = compare_cells(make_study(points | more, BATCH))
    assert (only(unbalanced).seeds, only(unbalanced).baseline_seeds) == (3, 6)
    assert only(unbalanced).standard_error_points < only(compare_cells(balanced)).standard_error_points
    assert "There are 3 to 6 seeds" in headline(unbalanced)[-1]
    missing = {name: trial for name, trial in balanced.trials.items() if trial.config.seed != 2}
    one_side = {**missing, **{n: t for n, t in balanced.trials.items() if t.config.target_batch_size == 64}}
    unfinished = compare_cells(replace(balanced, trials=one_side))
    assert (only(unfinished).seeds, only(unfinished).baseline_seeds) == (2, 3)
    assert headline(unfinished)[-1].startswith("Preliminary: 0 of 1 comparison.")


def of_5000(gained, lost, margin=1.0):
    """Accuracies 4,502 + gained − lost and 4,502 of 5,000."""
    baseline = answers(4502, 498)
    value = baseline.copy()
    value[:lost], value[4502 : 4502 + gained] = False, True
    study = two_cells(value, baseline)
    space = study.plan.space.replace(margin=margin)
    return only(compare_cells(replace(study, plan=study.plan.replace(space=space))))


def test_equivalence_by_hand():
    # 140 gained and 144 lost of 5,000: −0.08, standard error 0.337, 90 % −0.63 to +0.47
    verdict = of_5000(140, 144)
    assert (verdict.outcome, verdict.difference_points) == (EQUIVALENT, pytest.approx(-0.08))
    assert verdict.standard_error_points == pytest.approx(0.337, abs=5e-4)
    ends = (verdict.equivalence_points_low, verdict.equivalence_points_high)
    assert ends == pytest.approx((-0.63, 0.47), abs=0.008)  # by the score, not by Wald
    assert of_5000(140, 144, margin=0.5).outcome == UNDECIDED
    assert of_5000(141, 145).outcome == EQUIVALENT  # 5.7 % disagree


@pytest.mark.parametrize("lost", [0, 1, 10, 100, 250, 494])
def test_the_published_0_9013_and_0_9005_of_5000_reviews_are_no_difference(lost):
    """4,506 and 4,502 correct, at every possible overlap (as far as that matters)."""
    verdict = of_5000(lost + 4, lost)
    assert verdict.difference_points == pytest.approx(0.08)
    assert verdict.outcome in (UNDECIDED, EQUIVALENT)


def test_equivalence_is_said_with_the_margin_and_its_interval():
    half = answers(3000, 3000)
    family = compare_cells(two_cells(half, half))
    assert sentences(family)[0].startswith(
        "tiny, fixed: the one training with target batch size 1024 and the one with 64 are equivalent "
        "within 1 point (difference 0.0 points, simultaneous 90 % interval"
    )
    assert headline(family)[0] == (
        "tiny: The one training with target batch size 1024 and the one with 64 are equivalent "
        "within 1 point (fixed)."
    )


def test_p_values_and_differences_are_said_as_people_say_them():
    assert [p_text(p) for p in (0.0124, 1.2e-9, 0.0, 1.0)] == ["= 0.012", "= 1e-9", "< 1e-300", "= 1.000"]
    assert [signed(x) for x in (0.5, -2.31, -0.01)] == ["+0.5", "−2.3", "0.0"]
