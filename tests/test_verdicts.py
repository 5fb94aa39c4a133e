import csv
import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks.null_studies import (
    Truth,
    predictions,
    simulated_study,
    simulated_trial,
)
from reports.evidence.headline import headline
from reports.evidence.verdict_rows import verdict_rows, verdicts_csv
from reports.evidence.verdicts import BETTER, NOT_APART, WORSE, compare_cells, compare_epochs
from reports.prose import p_text, signed
from reports.study_data import Cell, StudyData

BATCH = {"target_batch_size": 64}


def answers(right, wrong=0):
    return np.repeat([True, False], [right, wrong])


def make_study(points, baselines, models=("tiny",)):
    """A study from {(target batch size, rule, seed): answers}; 64 is one trial whatever the rule."""
    cells = [
        Cell(model, batch, rule, seed, 1e-3, f"{model}-{batch}-{'any' if batch == 64 else rule}-{seed}")
        for model in models
        for batch, rule, seed in points
    ]
    trials = {
        cell.trial_hash: simulated_trial(
            cell, points[cell.target_batch_size, cell.scaling_rule, cell.seed], answers(20)
        )
        for cell in cells
    }
    return StudyData({"study": "s", "baselines": baselines}, cells, trials)


def two_cells(value, baseline):
    return make_study({(64, "fixed", 1): baseline, (1024, "fixed", 1): value}, BATCH)


def changed(study, name, **fields):
    return replace(study, trials={**study.trials, name: replace(study.trials[name], **fields)})


def with_predictions(study, name, frame):
    return changed(study, name, predictions={"best": frame, "last": frame})


def only(family):
    (verdict,) = family.verdicts
    return verdict


def test_a_verdict_by_hand():
    verdict = only(compare_cells(two_cells(answers(10, 10), answers(20))))
    # ten discordant pairs, all one way: p = 2 / 2^10; a family of one is not adjusted
    assert verdict.p == verdict.p_holm == pytest.approx(2 / 1024)
    assert (verdict.accuracy, verdict.baseline_accuracy, verdict.difference) == (0.5, 1, -50)
    assert (verdict.gained, verdict.lost, verdict.outcome) == (0, 10, WORSE)
    assert verdict.seeds is None
    # half of 20 examples: a binomial's 2.5 % and 97.5 % quantiles are 6 and 14 of 20
    assert verdict.interval == (-70, -30)
    assert verdict.sentence() == (
        "tiny, fixed: target batch size 1024 is worse than 64 by 50.0 points "
        "(95 % interval 30.0 to 70.0; Holm-adjusted p = 0.002)."
    )


def test_better_is_the_other_way_round():
    verdict = only(compare_cells(two_cells(answers(20), answers(10, 10))))
    assert (verdict.outcome, verdict.difference, verdict.gained) == (BETTER, 50, 10)


def test_what_cannot_be_told_apart_says_what_could_have_been():
    verdict = only(compare_cells(two_cells(answers(102, 98), answers(100, 100))))
    assert verdict.outcome == NOT_APART
    assert verdict.p == 0.5  # two discordant pairs
    assert "1024 against 64 cannot be told apart (difference +1.0 points" in verdict.sentence()
    # at least 6 of 200 one way with probability 80 %: about 7.9/200
    assert "could have detected is about 3.9 points" in verdict.sentence()


def test_the_same_answers_are_not_apart():
    verdict = only(compare_cells(two_cells(answers(12, 8), answers(12, 8))))
    assert (verdict.outcome, verdict.p, verdict.interval) == (NOT_APART, 1, (0, 0))


@pytest.mark.parametrize("value", [answers(0, 1), answers(1)])
def test_one_example_shows_nothing(value):
    verdict = only(compare_cells(two_cells(value, answers(1))))
    assert verdict.outcome == NOT_APART
    assert math.isnan(verdict.smallest_detectable)
    assert "with 1 test example and 1 seed the study could not have detected" in verdict.sentence()


def test_all_wrong_is_an_accuracy_too():
    verdict = only(compare_cells(two_cells(answers(0, 40), answers(0, 40))))
    assert (verdict.accuracy, verdict.accuracy_interval.low, verdict.outcome) == (0, 0, NOT_APART)


def test_each_pair_of_trials_is_compared_once_and_no_trial_with_itself():
    points = {(b, r, 1): answers(20) for r in ("fixed", "sqrt") for b in (64, 256, 1024)}
    family = compare_cells(make_study(points, {**BATCH, "scaling_rule": "fixed"}, models=("a", "b")))
    made = [
        (
            c.model,
            c.axis,
            c.value,
            c.baseline,
            c.fixed.get("scaling_rule", c.fixed.get("target_batch_size")),
        )
        for c in (verdict.comparison for verdict in family.verdicts)
    ]
    batches = [("target_batch_size", b, 64, rule) for rule in ("fixed", "sqrt") for b in (256, 1024)]
    rules = [("scaling_rule", "sqrt", "fixed", b) for b in (256, 1024)]  # 64 is one trial
    assert made == [(model, *rest) for model in "ab" for rest in batches + rules]


def test_cells_of_one_trial_are_compared_once():
    points = {(64, rule, 1): answers(20) for rule in ("fixed", "sqrt")}
    points |= {(256, rule, 1): answers(20) for rule in ("fixed", "sqrt")}
    study = make_study(points, BATCH)
    shared = [replace(c, trial_hash=c.trial_hash.replace("sqrt", "fixed")) for c in study.cells]
    assert len(compare_cells(replace(study, cells=shared)).verdicts) == 1


def test_models_can_be_compared():
    points = {(64, "fixed", 1): answers(20)}
    verdict = only(compare_cells(make_study(points, {"model": "a"}, models=("a", "b"))))
    assert verdict.sentence().startswith("target batch size 64, fixed: model b against a cannot")


def test_untested_trials_are_left_out_and_counted():
    points = {(b, "fixed", 1): answers(20) for b in (64, 256, 512, 1024)}
    study = changed(make_study(points, BATCH), "tiny-256-fixed-1", predictions={})
    trials = {name: trial for name, trial in study.trials.items() if "512" not in name}
    family = compare_cells(replace(study, trials=trials))
    assert only(family).comparison.value == 1024
    assert family.left_out_sentences() == ["2 comparisons left out: not all of their trials are tested."]
    assert headline(family)[-1].endswith("2 comparisons left out: not all of their trials are tested.")


def test_answers_are_paired_by_row_and_not_by_place():
    study = two_cells(answers(10, 10), answers(10, 10))
    shuffled = predictions(answers(10, 10)).sample(frac=1, random_state=0)
    verdict = only(compare_cells(with_predictions(study, "tiny-1024-fixed-1", shuffled)))
    assert (verdict.gained, verdict.lost) == (0, 0)


def missing_prediction(frame):
    return frame.assign(prediction=frame["prediction"].astype(float).replace(0, math.nan))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda frame: frame.assign(row_id=frame["row_id"] + 1), "tested on different examples"),
        (lambda frame: frame.iloc[:-1], "tested on different examples"),
        (missing_prediction, "predictions are missing"),
        (lambda frame: frame.iloc[:0], "predictions are missing"),
        (lambda frame: pd.concat([frame, frame]), "predicted twice"),
    ],
)
def test_what_cannot_be_paired_is_left_out_with_its_reason(spoil, reason):
    study = two_cells(answers(10, 10), answers(20))
    family = compare_cells(
        with_predictions(study, "tiny-1024-fixed-1", spoil(predictions(answers(10, 10))))
    )
    assert not family.verdicts
    assert reason in family.left_out_sentences()[0]
    assert headline(family)[0].startswith("No comparison can be made.")


def test_a_baseline_outside_the_grid_is_said():
    family = compare_cells(make_study({(256, "fixed", 1): answers(20)}, BATCH))
    assert family.notes == (
        "The baseline target batch size 64 is not in the grid: nothing is compared with it.",
    )


def test_an_unknown_axis_is_an_error():
    with pytest.raises(ValueError, match="epochs is not an axis"):
        compare_cells(make_study({(64, "fixed", 1): answers(20)}, {"epochs": 3}))


def seeded(accuracies, baselines, examples=400):
    points = {}
    for seed, (value, baseline) in enumerate(zip(accuracies, baselines, strict=True)):
        points[64, "fixed", seed] = answers(baseline, examples - baseline)
        points[1024, "fixed", seed] = answers(value, examples - value)
    return make_study(points, BATCH)


def test_several_seeds_that_agree_make_a_claim():
    verdict = only(compare_cells(seeded([300, 302, 298], [340, 338, 341])))
    assert verdict.outcome == WORSE
    assert verdict.p == max(verdict.p_examples, verdict.seeds.p)
    # (300 − 340 + 302 − 338 + 298 − 341) / 3 / 400
    assert verdict.difference == pytest.approx(-119 / 12)
    assert "over test examples" in verdict.sentence()
    assert "over seeds" in verdict.sentence()


def test_a_difference_that_the_seeds_do_not_agree_on_is_not_claimed():
    verdict = only(compare_cells(seeded([300, 350, 250], [340, 340, 340])))
    assert verdict.p_examples < 1e-9
    assert verdict.outcome == NOT_APART
    # 16.7 points of spread over seeds hide more than the test examples do
    assert verdict.smallest_detectable > 20


def test_two_seeds_in_a_family_may_detect_nothing():
    points = {
        (b, "fixed", s): answers(300 + 50 * s * (b > 64), 100 - 50 * s * (b > 64))
        for b in (64, 128, 256, 512, 1024)
        for s in (0, 1)
    }
    family = compare_cells(make_study(points, BATCH))
    assert all(verdict.outcome == NOT_APART for verdict in family.verdicts)
    assert "2 seeds the study could not have detected" in family.verdicts[0].sentence()


def test_the_scope_says_what_one_seed_leaves_open():
    one = compare_cells(two_cells(answers(10, 10), answers(20)))
    assert "one seed says nothing about another training" in one.scope()
    assert "3 seeds" in compare_cells(seeded([300] * 3, [340] * 3)).scope()


def test_last_against_best_epoch():
    study = two_cells(answers(10, 10), answers(20))
    study = changed(study, "tiny-64-any-1", metrics={"best_epoch": 5.0})
    family = compare_epochs(study)
    assert (
        only(family)
        .sentence()
        .startswith(
            "tiny, target batch size 1024, fixed: epoch 5 (last) is better than 3 (best) by 50.0 points"
        )
    )
    assert family.notes == ("1 of 2 tested trials is best at its last epoch: nothing to compare there.",)


ONE_SEED = (
    "There is one seed, so this is about these checkpoints only: "
    "one seed says nothing about another training."
)


def test_a_headline_names_what_differs_and_what_it_is_about():
    study = two_cells(answers(10, 10), answers(20))
    assert headline(compare_cells(study)) == [
        "tiny: target batch size 1024 is worse than 64 by 50.0 points (fixed).",
        ONE_SEED,
    ]


def test_a_headline_says_what_would_have_gone_unnoticed():
    alike, _ = headline(compare_cells(two_cells(answers(12, 8), answers(8, 12))))
    assert alike.startswith("tiny: In all 1 comparison the two cannot be told apart: a difference of less ")


@pytest.mark.parametrize("order", [1, -1])
def test_a_headline_does_not_hide_where_nothing_could_have_been_noticed(order):
    points = {(b, "fixed", 1): answers(*n) for b, n in ((64, (12, 8)), (256, (8, 12)), (1024, (11, 9)))}
    family = compare_cells(make_study(points, BATCH))
    known, blind = family.verdicts[0], replace(family.verdicts[1], smallest_detectable=math.nan)
    (text, _) = headline(replace(family, verdicts=[known, blind][::order]))
    assert f"a difference of less than about {known.smallest_detectable:.1f} points, and" not in text
    assert text.endswith(
        "would probably have gone unnoticed, and in 1 of them any difference, however large."
    )
    (text, _) = headline(replace(family, verdicts=[blind]))
    assert text.endswith(
        "cannot be told apart, and no difference, however large, could have been detected."
    )


def test_a_headline_lists_the_largest_differences_first_and_counts_the_rest():
    points = {(b, "fixed", 1): answers(n, 60 - n) for b, n in ((64, 20), (256, 21), (512, 40), (1024, 60))}
    paragraph = headline(compare_cells(make_study(points, BATCH)))[0]
    assert paragraph.startswith(
        "tiny: target batch size 1024 is better than 64 by 66.7 points (fixed) and "
        "target batch size 512 is better than 64 by 33.3 points (fixed). "
        "In the other 1 of 3 comparisons the two cannot be told apart: a difference of less"
    )


def test_every_model_has_a_paragraph():
    points = {(b, "fixed", 1): answers(20) for b in (64, 256)}
    paragraphs = headline(compare_cells(make_study(points, BATCH, models="abc")))
    assert [text[:2] for text in paragraphs[:-1]] == ["a:", "b:", "c:"]


def test_rows_and_csv_hold_every_verdict():
    family = compare_cells(seeded([300, 302, 298], [340, 338, 341]))
    (row,) = csv.DictReader(io.StringIO(verdicts_csv(family.verdicts)))
    assert list(row) == list(verdict_rows(family.verdicts)[0])
    assert (row["model"], row["axis"], row["value"], row["outcome"]) == (
        "tiny",
        "target_batch_size",
        "1024",
        "worse",
    )
    one = compare_cells(two_cells(answers(10, 10), answers(20)))
    assert next(csv.DictReader(io.StringIO(verdicts_csv(one.verdicts))))["p_seeds"] == ""
    assert verdicts_csv([]) == ""


def test_verdicts_are_the_same_every_time():
    study = simulated_study(Truth(), np.random.default_rng(0))
    assert verdicts_csv(compare_cells(study).verdicts) == verdicts_csv(compare_cells(study).verdicts)


@pytest.mark.parametrize(
    ("p", "text"), [(0.0124, "= 0.012"), (1.2e-9, "= 1e-9"), (0.0, "< 1e-300"), (1.0, "= 1.000")]
)
def test_p_text(p, text):
    assert p_text(p) == text


def test_signed_has_a_true_minus_and_no_negative_zero():
    assert [signed(x) for x in (0.5, -2.31, -0.01)] == ["+0.5", "−2.3", "0.0"]
