"""The noise scale in the report: intervals against brute force and known truths, and what is shown."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks.null_studies import Truth, simulated_study
from reports.sections.noise import (
    HALVES,
    WHOLE,
    fieller_interval,
    from_moments,
    noise_pictures,
    noise_scale,
    noise_scales,
    noise_table,
    relative_error,
)
from reports.study_data import StudyData


def moments(terms):
    """What an epoch reports of its windows' terms, (windows, 2), computed from the definition."""
    v, g = np.asarray(terms, dtype=float).T
    report = {"gradient_variance": v.mean(), "gradient_norm_squared": g.mean(), "noise_windows": len(v)}
    return report | {
        "noise_moment_vv": (v * v).mean(),
        "noise_moment_vg": (v * g).mean(),
        "noise_moment_gg": (g * g).mean(),
    }


def epochs(*windows):
    table = pd.DataFrame([moments(terms) for terms in windows], index=range(1, len(windows) + 1))
    ratio = table["gradient_variance"] / table["gradient_norm_squared"]
    return table.assign(epoch=table.index, noise_scale=ratio)


def drawn_terms(rng, studies, windows, batch, scale):
    """Terms (studies, windows, 2) whose truth is known: two parts of 32, dropout and drift aside.

    Gradients have 60 independent parts of unequal variance; tr(Σ) is 1 and ‖G‖² is 1/scale.
    """
    sizes = np.arange(1, 61) ** -0.5
    sizes, mean = sizes / sizes.sum(), np.full(60, (1 / scale / 60) ** 0.5)
    shape = (studies, windows, 60)
    parts = [mean + rng.standard_normal(shape) * np.sqrt(sizes / 32) for _ in range(2)]
    rest = batch - 64
    other = mean + rng.standard_normal(shape) * np.sqrt(sizes / rest) if rest else 0
    whole = np.square((32 * parts[0] + 32 * parts[1] + rest * other) / batch).sum(axis=2)
    part = sum(np.square(each).sum(axis=2) for each in parts) / 2
    v = (part - whole) / (1 / 32 - 1 / batch)
    return np.stack([v, (batch * whole - 32 * part) / (batch - 32)], axis=2)


def estimated(*epochs):
    """The noise scale of one training, from its windows' terms in each epoch."""
    means = [[each.mean() for each in (v, g, v * v, v * g, g * g)] for v, g in (e.T for e in epochs)]
    return from_moments(np.array([len(each) for each in epochs]), np.array(means))


def jackknife_error(terms):
    """Of the ratio of means: every window is left out once."""
    ratios = [np.divide(*np.delete(terms, left_out, axis=0).mean(axis=0)) for left_out in range(len(terms))]
    return math.sqrt((len(terms) - 1) * np.var(ratios))


def test_the_error_is_that_of_a_jackknife_by_brute_force():
    for terms in drawn_terms(np.random.default_rng(0), 20, 40, 64, 50.0):
        v, g = terms.mean(axis=0)
        error = relative_error(v, g, np.cov(terms.T) / len(terms)) * v / g
        assert error == pytest.approx(jackknife_error(terms), rel=0.02)


@pytest.mark.parametrize(
    ("cuts", "critical"), [([], 2.20098516), ([3, 4], 2.26215716), (range(1, 12), 2.20098516)]
)
def test_the_ends_of_an_interval_are_where_t_is_critical(cuts, critical):
    """t of v − r·g, computed window by window about the means of epochs, at 97.5 % with 11 or 9 degrees.

    Twelve epochs of one window each have nothing but their differences: 11 degrees again.
    """
    terms = drawn_terms(np.random.default_rng(1), 1, 12, 256, 100.0)[0]
    found = noise_scale(epochs(*np.split(terms, cuts)))
    assert found.windows == 12
    assert found.value == pytest.approx(terms[:, 0].sum() / terms[:, 1].sum())
    own = np.split(terms, cuts) if len(cuts) == 2 else [terms]
    for end in found.interval:
        deviations = np.concatenate([each @ [1, -end] - (each @ [1, -end]).mean() for each in own])
        error = math.sqrt((deviations**2).sum() / (12 - len(own)) / 12)
        assert abs((terms @ [1, -end]).mean()) / error == pytest.approx(critical, rel=1e-6)


def test_the_change_of_the_noise_scale_along_a_training_is_no_error():
    """Five epochs whose noise scale grows from 10 to 160: the interval covers the ratio of mean terms."""
    rng, scales = np.random.default_rng(3), [10, 20, 40, 80, 160]
    truth, found = 1 / np.mean([1 / scale for scale in scales]), []
    for _ in range(400):
        found.append(estimated(*(drawn_terms(rng, 1, 5, 256, scale)[0] for scale in scales)))
    covered = [each.interval.low <= truth <= each.interval.high for each in found]
    assert 0.92 <= np.mean(covered) <= 0.99
    assert np.median([each.interval.high / each.interval.low for each in found]) < 1.6


def test_fiellers_interval_is_the_usual_one_where_the_denominator_is_known():
    low, high = fieller_interval(6.0, 2.0, np.diag([0.25, 0.0]), freedom=1e9)
    assert (low, high) == pytest.approx((3 - 1.959964 / 4, 3 + 1.959964 / 4), abs=1e-6)
    assert math.isnan(fieller_interval(6.0, 2.0, np.diag([0.25, 1.1]), freedom=1e9).high)  # 2 < 1.96 · 1.05


@pytest.mark.parametrize(
    ("batch", "scale", "windows"), [(64, 50, 8), (64, 300, 40), (256, 300, 16), (1024, 3000, 16)]
)
def test_intervals_cover_a_known_noise_scale(batch, scale, windows):
    """Those that are shown: within 1.5 points of 95 % or, where hiding the worst helps, above."""
    studies = drawn_terms(np.random.default_rng(batch + windows), 1500, windows, batch, scale)
    found = [estimated(terms) for terms in studies]
    shown = [each for each in found if not math.isnan(each.value)]
    covered = np.mean([each.interval.low <= scale <= each.interval.high for each in shown])
    assert len(shown) > 0.9 * len(found)
    assert 0.935 <= covered <= 0.98


def test_a_symmetric_interval_from_the_jackknife_would_miss_too_often():
    """Where few windows are measured and ‖G‖² is near its noise, it lies too low."""
    scale, hits = 300, {"jackknife": [], "fieller": []}
    for terms in drawn_terms(np.random.default_rng(2), 1500, 16, 64, scale):
        found = estimated(terms)
        if math.isnan(found.value):
            continue
        hits["fieller"].append(found.interval.low <= scale <= found.interval.high)
        hits["jackknife"].append(abs(found.value - scale) <= 2.131 * jackknife_error(terms))
    assert np.mean(hits["fieller"]) > 0.935
    assert np.mean(hits["jackknife"]) < 0.9


def test_what_means_nothing_is_not_a_number_and_windows_are_counted():
    unknown = {
        "one window": [(3.0, 1.0)],
        "‖G‖² negative": [(3.0, -1.0), (3.0, -1.1), (3.0, -1.2)],
        "an error of half the value": [(3.0, 2.2), (3.0, 0.1), (3.0, 0.1), (3.0, 1.0)],
        "two windows that differ": [(3.0, 1.0), (3.0, 0.5)],
    }
    for terms in unknown.values():
        found = noise_scale(epochs(terms))
        assert math.isnan(found.value)
        assert math.isnan(found.interval.high)
        assert found.windows == len(terms)
    assert noise_scale(pd.DataFrame(index=[1, 2])).windows == 0


def trial_with(table):
    study = simulated_study(Truth(), np.random.default_rng(0))
    name, trial = next(iter(study.trials.items()))
    trial = replace(trial, evaluations=table)
    return StudyData(study.plan, {name: trial}), trial


def test_halves_leave_out_the_middle_of_an_odd_number_of_epochs():
    known = [(3.0, 1.0), (3.1, 1.0), (3.2, 1.1)]
    late = [(10 * v, g) for v, g in known]
    study, trial = trial_with(epochs(known, known, [(9.0, 5.0), (9.0, -5.0)], late, late))
    scales = noise_scales(trial)
    assert [scales[half].windows for half in HALVES] == [6, 6]
    assert [scales[half].value for half in HALVES] == pytest.approx([3.0, 30.0])
    row = noise_table(study).frame.iloc[0]
    assert row["first half"].startswith("3 [3, 3], 6 windows")
    assert row["last half"].startswith("30 [")
    assert row[WHOLE] == "–, 14 windows"
    assert [picture.name for picture in noise_pictures(study)] == [
        "tiny_noise_scale",
        "tiny_noise_scale_by_epoch",
    ]
    one_epoch = noise_scales(replace(trial, evaluations=epochs(known)))
    assert [one_epoch[part].windows for part in (WHOLE, *HALVES)] == [3, 0, 0]


def test_where_nothing_was_measured_there_is_no_row_and_no_picture():
    study, _ = trial_with(pd.DataFrame({"val_acc": [0.5, 0.6]}, index=[1, 2]))
    assert noise_table(study).frame.empty
    assert list(noise_pictures(study)) == []


def test_a_noise_scale_that_is_nowhere_known_is_a_dash_and_no_point():
    """Not even on the picture by epoch, whose logarithmic axis has no place for it."""
    for terms in ([(3.0, -1.0)], [(3.0, -1.0)]), ([(3.0, -1.0)],), ([(3.0, 0.0)], [(3.0, -1.0)]):
        with np.errstate(divide="ignore"):
            study, _ = trial_with(epochs(*terms))
        assert noise_table(study).frame.iloc[0][WHOLE].startswith(f"–, {len(terms)} window")
        assert list(noise_pictures(study)) == []


def test_of_a_picture_by_epoch_what_is_positive_is_shown():
    study, _ = trial_with(epochs([(3.0, -1.0)], [(3.0, 1.0)]))
    assert [picture.name for picture in noise_pictures(study)] == ["tiny_noise_scale_by_epoch"]
