import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks.null_studies import simulated_plan, simulated_trial
from reports.flags import (
    edge_flags,
    flags,
    last_window_flags,
    learning_flags,
    monotony_flags,
    report_flags,
    rising_flags,
    short_training_flags,
)
from reports.sections.curves import generalisation_gap_table
from reports.study_data import StudyData
from search_spaces import TrialConfig
from search_spaces.update import OPTIMIZERS, Optimizer

RISING = (0.6, 0.7, 0.8)
FALLING = (0.8, 0.7, 0.6)


def make_study(curves, train_examples=640_000, models=("tiny",), **settings):
    """A study from {(target batch size, rule, base learning rate, seed): val_acc of each epoch}."""
    cells, trials = [], {}
    for model in models:
        for (batch, rule, rate, seed), curve in curves.items():
            axes = {"model": model, "target_batch_size": batch, "scaling_rule": rule, "seed": seed}
            cell = TrialConfig(base_lr=rate, epochs=len(curve), **axes, **settings)
            cells.append(cell)
            best = float(np.argmax(curve)) + 1
            trials[cell.trial_hash] = replace(
                simulated_trial(cell, np.ones(4, dtype=bool)),
                evaluations=pd.DataFrame(
                    {"train_eval_acc": 0.9, "val_acc": curve, "val_flips": 40.0}, range(1, len(curve) + 1)
                ),
                metrics={"best_epoch": best, "best_evaluation": best, "best_val_acc": max(curve)},
            )
    return StudyData(simulated_plan(cells, {}, train_examples), trials)


def batches(accuracies, **kwargs):
    """One rule and one learning rate; a flat curve per target batch size 64, 256, …"""
    curves = {(64 * 4**n, "fixed", 5e-5, 1): (value, value) for n, value in enumerate(accuracies)}
    return make_study(curves, **kwargs)


def test_the_best_cell_at_the_smallest_batch_is_flagged_once_per_model():
    assert edge_flags(batches([0.9, 0.8, 0.7], models=("a", "b"))) == [
        f"{model}: the best val_acc, 0.9000, is at the smallest target batch size (64) of the grid: "
        "beyond it there may be better."
        for model in "ab"
    ]


@pytest.mark.parametrize("accuracies", [[0.8, 0.9, 0.7], [0.9, 0.9, 0.7], [0.9, 0.8], [0.9]])
def test_no_edge_inside_on_ties_or_where_all_are_edges(accuracies):
    assert not edge_flags(batches(accuracies))


def test_the_edge_of_the_learning_rates():
    curves = {
        (64, "fixed", 5e-5, 1): (0.7,),
        (256, "sqrt", 5e-5, 1): (0.8,),
        (256, "linear", 5e-5, 1): (0.9,),
    }
    (flag,) = edge_flags(make_study(curves))
    assert "the largest learning rate (0.0002)" in flag


def test_the_best_cell_is_best_on_average_over_seeds():
    curves = {(64, "fixed", 5e-5, 1): (0.99,), (64, "fixed", 5e-5, 2): (0.5,)}
    curves |= {(batch, "fixed", 5e-5, seed): (0.8,) for batch in (256, 1024) for seed in (1, 2)}
    assert not edge_flags(make_study(curves))  # 0.745 at the edge, 0.8 inside


def test_short_training_by_hand():
    # Adam's half-life is ln 2 / −ln 0.999 = 693 steps; 2 epochs of ceil(40,000 / 64) = 625,
    # ceil(40,000 / 256) = 157 and ceil(40,000 / 1024) = 40 steps
    (flag,) = short_training_flags(batches([0.9, 0.8, 0.7], train_examples=40_000, models=("a", "b")))
    assert "only 314 steps at 256 and 80 steps at 1024, fewer than the 693 steps in which Adam" in flag


@pytest.mark.parametrize(("beta2", "flagged"), [(None, 0), (0.9, 0), (0.99, 1)])
def test_training_is_short_or_long_by_its_optimizers_own_memory(monkeypatch, beta2, flagged):
    monkeypatch.setitem(OPTIMIZERS, "new", Optimizer("New", beta2=beta2))
    # 2 epochs of 10 steps; the half-lives are 7 and 69 steps
    assert len(short_training_flags(batches([0.9], train_examples=640, optimizer="new"))) == flagged


def test_rising_trials_share_a_sentence_that_names_seeds_where_there_are_several():
    rising = {(64, "fixed", 1e-3, 1): FALLING, (256, "fixed", 1e-3, 1): RISING}
    rising |= {(256, "sqrt", 1e-3, 1): RISING}
    assert rising_flags(make_study(rising)) == [
        "tiny: val_acc was still rising at the last epoch in 2 of 3 trials "
        "(256 · fixed and 256 · sqrt): more epochs may raise it."
    ]
    (flag,) = rising_flags(make_study({(64, "fixed", 1e-3, 1): RISING, (64, "fixed", 1e-3, 2): FALLING}))
    assert "(64 · fixed · seed 1)" in flag
    (flag,) = rising_flags(make_study({(64, "fixed", 1e-3, seed): RISING for seed in range(9)}))
    assert "in 9 of 9 trials (64 · fixed · seed 0, " in flag
    assert "64 · fixed · seed 5 and 3 more): " in flag


@pytest.mark.parametrize(("flips", "flagged"), [(5, 1), (11, 0)])
def test_a_rise_counts_from_one_paired_standard_error_on(flips, flagged):
    """From 240 to 243 of 300, a rise of 3; its error is √(flips − 3²/300)."""
    study = make_study({(64, "fixed", 1e-3, 1): (0.8, 0.81)})
    ((name, trial),) = study.trials.items()
    trial = replace(trial, evaluations=trial.evaluations.assign(val_flips=[math.nan, flips]))
    assert len(rising_flags(replace(study, trials={name: trial}))) == flagged


@pytest.mark.parametrize("curve", [FALLING, (0.6, 0.8, 0.8), (0.8,)])
def test_what_does_not_rise_is_not_flagged(curve):
    assert not rising_flags(make_study({(64, "fixed", 1e-3, 1): curve}))


def answered(predictions, val_acc):
    """A study of one trial that gave these answers; half of the labels are 1."""
    study = make_study({(64, "fixed", 1e-3, 1): (val_acc,)})
    ((name, trial),) = study.trials.items()
    frame = pd.DataFrame({"row_id": range(100), "label": [0, 1] * 50, "prediction": predictions})
    return replace(study, trials={name: replace(trial, predictions={"best": frame, "last": frame})})


@pytest.mark.parametrize(
    ("predictions", "val_acc", "flagged"),
    [
        ([0, 1] * 50, 0.9, 0),
        ([1] * 100, 0.9, 1),  # all of one class
        # two standard errors of 300 at a half: 0.5 + 2 · 0.0289
        ([0, 1] * 50, 0.557, 1),
        ([0, 1] * 50, 0.559, 0),
    ],
)
def test_a_trial_that_does_no_better_than_the_commonest_class_did_not_learn(predictions, val_acc, flagged):
    found = learning_flags(answered(predictions, val_acc))
    assert len(found) == flagged
    if found:
        assert found[0].startswith("tiny: 1 of 1 trial did not learn (64 · fixed)")


def test_seeds_that_were_added_after_a_report():
    study = make_study({(64, "fixed", 1e-3, seed): FALLING for seed in (1, 2, 3)})
    cell, other = ("tiny", 64, "fixed"), ("tiny", 256, "fixed")
    assert not report_flags(study)
    assert not report_flags(replace(study, reported={cell: frozenset({1, 2, 3})}))
    assert not report_flags(replace(study, reported={other: frozenset({1})}))  # another under this name
    (flag,) = report_flags(replace(study, reported={cell: frozenset({1})}))
    assert flag.startswith("Seeds 2 and 3 were added after results of the same cells had been seen")
    (flag,) = report_flags(replace(study, reported={cell: frozenset({1, 2, 3, 4})}))
    assert flag.startswith("Seed 4 was left out after")


def test_a_grid_that_was_made_smaller_after_a_report():
    study = make_study({(64, "fixed", 1e-3, 1): FALLING})
    reported = {("tiny", batch, "fixed"): frozenset({1}) for batch in (64, 256, 1024)}
    (flag,) = report_flags(replace(study, reported=reported))
    assert flag.startswith(
        "2 cells of an earlier report are not in this grid: its comparisons are adjusted"
    )


def test_the_other_trainings_of_a_cell_that_diverged_are_not_its_result():
    curves = {(batch, "fixed", 1e-3, seed): (0.8,) for batch in (64, 256) for seed in (1, 2)}
    curves |= {(1024, "fixed", 1e-3, seed): (0.9,) for seed in (1, 2)}
    study = make_study(curves)
    assert "largest target batch size" in edge_flags(study)[0]
    *_, name = study.trials
    ended = replace(study.trials[name], predictions={}, metrics={}, tags={"outcome": "diverged"})
    assert not edge_flags(replace(study, trials={**study.trials, name: ended}))


def by_batch(*right):
    """Of 1,000 test examples so many are correct at 64, 256, …"""
    study = batches([0.9] * len(right))
    trials = {
        name: simulated_trial(trial.config, np.arange(1000) < count)
        for (name, trial), count in zip(study.trials.items(), right, strict=True)
    }
    return replace(study, trials=trials)


@pytest.mark.parametrize(
    ("right", "flagged"),
    [
        ((800, 700, 780), 1),
        ((800, 700, 600), 0),
        ((800, 780, 783), 0),
        ((800, 797, 803), 0),
        ((800, 700), 0),
    ],
)
def test_accuracy_that_goes_down_and_up_again_with_the_batch_size(right, flagged):
    found = monotony_flags(by_batch(*right))
    assert len(found) == flagged
    if found:
        assert "tiny, fixed: " in found[0]
        assert "(80.0 at 64, 70.0 at 256 and 78.0 at 1024): the luck of one training, or more" in found[0]


def test_small_last_windows():
    # 3,200 = 12 · 256 + 128 = 3 · 1,024 + 128
    (flag,) = last_window_flags(batches([0.9, 0.8, 0.7], train_examples=3200))
    assert flag.startswith("The last window is small: one of 4 steps of an epoch at 1024 has 128 examples.")
    assert not last_window_flags(batches([0.9, 0.8, 0.7], train_examples=39_666))


def test_generalisation_gap_by_hand():
    study = make_study({(64, "fixed", 1e-3, 1): FALLING, (64, "fixed", 1e-3, 2): (0.4, 0.5, 0.7)})
    trials = {
        name: replace(trial, evaluations=trial.evaluations.assign(train_eval_acc=[0.85, 0.95, 0.97]))
        for name, trial in study.trials.items()
    }
    found = generalisation_gap_table(replace(study, trials=trials))
    # at the best epochs, 1 and 3: val_acc 0.8 and 0.7
    assert found.frame.to_numpy().tolist() == [["tiny", 64, "fixed", "0.9100", "0.7500", "0.1600"]]
    assert "train_eval_acc" in found.title
    assert generalisation_gap_table(replace(study, trials={})).frame.empty


def test_a_large_study_gets_few_flags():
    curves = {(b, r, 1e-3, 1): RISING for b in (64, 256, 1024) for r in ("fixed", "sqrt", "linear")}
    found = flags(make_study(curves, train_examples=1000, models=("a", "b")))
    assert [flag.split(" ")[0] for flag in found] == ["Training", "a:", "b:"]
