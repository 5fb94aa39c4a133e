import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks.null_studies import simulated_trial
from reports.evidence.flags import (
    ADAM_HALF_LIFE,
    edge_flags,
    flags,
    generalisation_gaps,
    rising_flags,
    short_training_flags,
)
from reports.study_data import Cell, StudyData

RISING = (0.6, 0.7, 0.8)
FALLING = (0.8, 0.7, 0.6)


def make_trial(cell, curve):
    trial = simulated_trial(cell, np.ones(4, dtype=bool))
    epochs = pd.DataFrame(
        {"train_acc": [0.9] * len(curve), "val_acc": curve}, index=range(1, len(curve) + 1)
    )
    best = int(np.argmax(curve)) + 1
    metrics = {"best_epoch": float(best), "best_val_acc": max(curve)}
    config = {"epochs": len(curve), "optimizer": "adam"}
    return replace(trial, epochs=epochs, metrics=metrics, config=config)


def make_study(curves, train_examples=640_000, models=("tiny",)):
    """A study from {(target batch size, rule, learning rate, seed): val_acc of each epoch}."""
    cells = [
        Cell(model, batch, rule, seed, rate, f"{model}-{batch}-{rule}-{seed}")
        for model in models
        for batch, rule, rate, seed in curves
    ]
    trials = {
        cell.trial_hash: make_trial(
            cell, curves[cell.target_batch_size, cell.scaling_rule, cell.learning_rate, cell.seed]
        )
        for cell in cells
    }
    return StudyData({"study": "s", "dataset": {"sizes": {"train": train_examples}}}, cells, trials)


def batches(accuracies, **kwargs):
    """One rule and one learning rate; a flat curve per target batch size 64, 256, …"""
    curves = {(64 * 4**n, "fixed", 5e-5, 1): (value, value) for n, value in enumerate(accuracies)}
    return make_study(curves, **kwargs)


def test_the_best_cell_at_the_smallest_batch_is_flagged_once_per_model():
    first, second = edge_flags(batches([0.9, 0.8, 0.7], models=("a", "b")))
    assert (first.kind, first.subject, second.subject) == ("edge of the grid", "a", "b")
    assert first.sentence == (
        "a: the best val_acc, 0.9000, is at the smallest target batch size (64) of the grid: "
        "beyond it there may be better."
    )


@pytest.mark.parametrize("accuracies", [[0.8, 0.9, 0.7], [0.9, 0.9, 0.7], [0.9, 0.8], [0.9]])
def test_no_edge_inside_on_ties_or_where_all_are_edges(accuracies):
    assert not edge_flags(batches(accuracies))


def test_the_edge_of_the_learning_rates():
    curves = {
        (64, "fixed", 5e-5, 1): (0.7,),
        (256, "sqrt", 1e-4, 1): (0.8,),
        (256, "linear", 2e-4, 1): (0.9,),
    }
    (flag,) = edge_flags(make_study(curves))
    assert "at the largest learning rate (0.0002) of the grid" in flag.sentence


def test_the_best_cell_is_best_on_average_over_seeds():
    curves = {(b, "fixed", 5e-5, s): (0.8,) for b in (64, 256, 1024) for s in (1, 2)}
    # 64 has the best single seed, 0.95, but its mean is 0.75
    curves |= {(64, "fixed", 5e-5, 1): (0.95,), (64, "fixed", 5e-5, 2): (0.55,)}
    curves |= {(256, "fixed", 5e-5, 1): (0.85,)}
    assert not edge_flags(make_study(curves))


def test_trials_without_a_best_epoch_are_not_the_best():
    study = batches([0.7, 0.9, 0.8])
    name = "tiny-256-fixed-1"
    for metrics in ({}, {"best_val_acc": math.nan}):
        unfinished = {**study.trials, name: replace(study.trials[name], metrics=metrics)}
        (flag,) = edge_flags(replace(study, trials=unfinished))
        assert "largest target batch size (1024)" in flag.sentence
    assert not edge_flags(replace(study, trials={}))


def test_the_half_life_of_adams_second_moment():
    # a gradient's weight after k steps is 0.999^k: one half at ln 2 / −ln 0.999 = 692.8
    assert pytest.approx(math.log(2) / -math.log(0.999), abs=0.5) == ADAM_HALF_LIFE


def test_short_training_by_hand():
    # 2 epochs of ceil(40,000 / 64) = 625, ceil(40,000 / 256) = 157 and ceil(40,000 / 1024) = 40 steps
    study = batches([0.9, 0.8, 0.7], train_examples=40_000, models=("a", "b"))
    (flag,) = short_training_flags(study)
    assert flag.subject == "target batch size 256 and 1024"
    assert "only 314 steps at 256 and 80 steps at 1024, fewer than the 693 steps" in flag.sentence


def test_long_training_and_other_optimizers_are_not_flagged():
    assert not short_training_flags(batches([0.9, 0.8], train_examples=640_000))
    study = batches([0.9], train_examples=64)
    other = {name: replace(t, config={**t.config, "optimizer": "sgd"}) for name, t in study.trials.items()}
    assert not short_training_flags(replace(study, trials=other))


def test_rising_trials_share_a_sentence():
    rising = {(64, "fixed", 1e-3, 1): FALLING, (256, "fixed", 1e-3, 1): RISING}
    rising |= {(256, "sqrt", 2e-3, 1): RISING}
    (flag,) = rising_flags(make_study(rising))
    assert flag.sentence == (
        "tiny: val_acc was still rising at the last epoch in 2 of 3 trials "
        "(256 · fixed and 256 · sqrt): more epochs may raise it."
    )


@pytest.mark.parametrize("curve", [FALLING, (0.6, 0.8, 0.8), (0.8,)])
def test_what_does_not_rise_is_not_flagged(curve):
    assert not rising_flags(make_study({(64, "fixed", 1e-3, 1): curve}))


def test_seeds_are_named_where_there_are_several():
    (flag,) = rising_flags(make_study({(64, "fixed", 1e-3, 1): RISING, (64, "fixed", 1e-3, 2): FALLING}))
    assert "(64 · fixed · seed 1)" in flag.sentence


def test_generalisation_gap_by_hand():
    study = make_study({(64, "fixed", 1e-3, 1): FALLING, (64, "fixed", 1e-3, 2): (0.5, 0.7)})
    (row,) = generalisation_gaps(study)
    assert (row.model, row.target_batch_size, row.scaling_rule) == ("tiny", 64, "fixed")
    # val_acc at the best epochs 0.8 and 0.7, train_acc 0.9 both times
    assert (row.train_acc, row.val_acc, row.gap) == pytest.approx((0.9, 0.75, 0.15))


def test_a_cell_that_has_not_started_has_no_gap():
    study = batches([0.9, 0.8])
    rows = generalisation_gaps(replace(study, trials={}))
    assert len(rows) == 2
    assert all(math.isnan(row.gap) for row in rows)


def test_a_large_study_gets_few_flags():
    curves = {(b, r, 1e-3, 1): RISING for b in (64, 256, 1024) for r in ("fixed", "sqrt", "linear")}
    found = flags(make_study(curves, train_examples=1000, models=("a", "b")))
    assert [(flag.kind, flag.subject) for flag in found] == [
        ("short training", "target batch size 64, 256 and 1024"),
        ("still rising", "a"),
        ("still rising", "b"),
    ]
