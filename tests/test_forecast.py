"""What a plan says of the study before anything is trained."""

import dataclasses
import itertools
import re
import time

import numpy as np
import pytest
from scipy import optimize, stats

from benchmarks.null_studies import simulated_plan, simulated_trial
from reports.earlier import Earlier, observed_chance
from reports.forecast import (
    MANY,
    Durations,
    assumed,
    expected_durations,
    forecast,
    power_lines,
    seeds_needed,
    smallest_differences,
    time_line,
)
from reports.prose import listed
from reports.statistics import TrainingsDifference
from reports.study_data import StudyData, read_study
from search_spaces import TrialConfig
from search_spaces.plan import Forecast
from sweep import calibration
from sweep.hardware import cpu_model, ran_as_here
from sweep.options import SweepOptions, parse_options
from sweep.plan import make_plan
from tests.helpers import CPU, TINY_MODELS, refusal, train
from tests.small_study import OPTIONS, STUDY, write_small_study
from tracking import StudyStore
from trainables.assets import prepare_assets
from trainables.batches import TokenTensors
from trainables.trial import Trial
from tune_main import main

CHANCE = assumed(seed_points=0.5, disagreement=0.06)
UNKNOWN = assumed(None, None)


def planned(space, test_examples=400, **options):
    options = {"space": space, "demo": True, "models": ["bert-tiny"]} | options
    plan = make_plan(SweepOptions(**options), bf16_available=False).plan
    sizes = plan.dataset.sizes | {"test": test_examples}
    return plan.replace(dataset=dataclasses.replace(plan.dataset, sizes=sizes))


@pytest.fixture(scope="module")
def of_seeds():
    """Ten comparisons of seven cells: one with six seeds, the others with three."""
    return planned("seeds")


def power(difference, error, freedom, alpha):
    return stats.nct.sf(stats.t.ppf(1 - alpha / 2, freedom), freedom, difference / error)


def test_the_smallest_difference_of_a_study_with_seeds(of_seeds):
    # by hand: 400 · 0.005² = 0.01 of the examples' variance a side is the seeds', so 0.06 − 0.02 is left
    expected = []
    for one, other in ((3, 6), (3, 3)):
        by_seeds, by_examples = 0.005**2 * (1 / one + 1 / other), 0.04 / 400
        total = by_seeds + by_examples
        freedom = total**2 / (by_seeds**2 / (5 + 6 * 2) + by_examples**2 / 400)
        wanted = (total**0.5, freedom, 0.05 / 10)
        expected.append(optimize.brentq(lambda d, wanted=wanted: power(d, *wanted) - 0.8, 0.001, 0.2))
    assert smallest_differences(of_seeds, CHANCE) == pytest.approx(expected)


def test_with_one_seed_it_is_that_of_the_discordant_examples():
    found = smallest_differences(planned("batch_lr_grid"), assumed(None, 0.06))
    assert found == (TrainingsDifference(12, 12, 400).detectable(0.05 / 10),) * 2


@pytest.mark.parametrize(("seed_points", "is_found"), [(20, True), (30, False)])
def test_one_comparison_that_can_find_nothing_is_not_hidden_by_the_others(of_seeds, seed_points, is_found):
    """At 30 points, those with a control cell's six seeds still find a difference; those of three none."""
    chance = assumed(seed_points, disagreement=0.3)
    smallest = power_lines(of_seeds, chance)[1]
    assert ("80 %: none, however large" in smallest) != is_found
    assert (forecast(of_seeds, chance, Durations({}, "")).smallest_points is not None) == is_found


def test_the_seeds_that_the_margin_takes():
    # by hand: 2,000 · 0.005² is more than half of 0.06, so that all of the variance is the seeds'
    plan = planned("seeds", test_examples=2000)
    find, equate = seeds_needed(plan, CHANCE)

    def finds(seeds):
        return power(0.01, 0.005 * (2 / seeds) ** 0.5, 7 * (seeds - 1), 0.05 / 10) >= 0.8

    def equates(seeds):
        t = stats.t(7 * (seeds - 1))
        return (t.ppf(1 - 0.05 / 10) + t.ppf(0.9)) * 0.005 * (2 / seeds) ** 0.5 < 0.01

    assert (finds(find), finds(find - 1)) == (True, False)
    assert (equates(equate), equates(equate - 1)) == (True, False)


def test_where_no_number_of_seeds_is_enough_the_plan_says_why(of_seeds):
    assert seeds_needed(of_seeds, CHANCE) == (None, None)
    assert power_lines(of_seeds, CHANCE)[-1] == (
        "seeds of every cell for the margin of 1 point: no number to find it, no number to call two equal "
        "cells equivalent, each with a probability of 80 %; 400 test examples are too few"
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


def test_the_forecast_that_a_study_keeps(of_seeds):
    low, high = smallest_differences(of_seeds, CHANCE)
    known = Durations(dict.fromkeys(of_seeds.trials, 30.0), "")
    found = forecast(of_seeds, CHANCE, known)
    assert found.smallest_points == pytest.approx((100 * low, 100 * high))
    assert found.minutes == 12  # 24 trials
    assert forecast(of_seeds, UNKNOWN, Durations({}, "")) == Forecast()
    assert forecast(planned("best_config", models=None), CHANCE, known) == Forecast()


def test_the_dry_run_says_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--space batch_lr_grid --demo --dry-run --assume-disagreement 0.06"
    assert main(words.split()) == 0
    out = capsys.readouterr().out  # by hand: (3.0233·20 + 0.8416·√391.6) / 400.7 · √0.06 = 0.0471
    assert "find with a probability of 80 %: 4.7 points, with a disagreement of 6 % (assumed)" in out
    assert "1 point: unknown: give --assume-seed-sd" in out
    assert not list(tmp_path.iterdir())


def test_what_a_study_shows_of_chance_by_hand():
    cells = [
        TrialConfig(model="tiny", target_batch_size=batch, scaling_rule="fixed", seed=seed)
        for batch in (64, 256)
        for seed in (1, 2)
    ]
    # of ten examples the first 10 and 8, and 7 and 7 are right: 0, 2, 3, 3, 1 and 1 differ
    right = [np.arange(10) < count for count in (10, 8, 7, 7)]
    trials = {
        cell.trial_hash: simulated_trial(cell, own, right[0])
        for cell, own in zip(cells, right, strict=True)
    }
    study = StudyData(simulated_plan(cells, {"target_batch_size": 64}), trials)
    found = observed_chance(study)
    assert found.disagreement == (pytest.approx((3 + 3 + 1 + 1) / 40), f"from study {study.plan.study}")
    # variances 0.02 and that of rounding, 1/1200, with a degree of freedom each
    assert found.seed_deviation.value == pytest.approx(((0.02 + 1 / 1200) / 2) ** 0.5)
    assert CHANCE.or_else(found) == CHANCE
    assert UNKNOWN.or_else(found) == found


def test_an_earlier_study_on_the_same_splits_stands_in_for_assumptions(tmp_path):
    options = {"models": ["bert-tiny"], "scaling_rules": ["fixed"], "seeds": [1, 2], "base_lr": 0.005}
    uri = write_small_study(tmp_path, **options)
    found = Earlier(uri).chance(planned(**OPTIONS | options | {"epochs": 9}))
    assert found == observed_chance(read_study(StudyStore(uri, STUDY).read_runs()))
    assert found.seed_deviation
    assert found.disagreement
    assert Earlier(uri).chance(planned("batch_lr_grid")) == UNKNOWN  # other splits
    assert Earlier(f"sqlite:///{tmp_path}/none.db").chance(planned("batch_lr_grid")) == UNKNOWN
    assert not (tmp_path / "none.db").exists()
    assert Earlier(uri, leave_out=STUDY).chance(planned(**OPTIONS | options)) == UNKNOWN
    store = StudyStore(uri, STUDY)
    for run in store.read_runs().trials.values():
        store.client.delete_tag(run.run_id, "format")
    assert Earlier(uri).trials == []  # of another version, which nothing can be read of
    assert Earlier(uri).chance(planned(**OPTIONS | options)) == UNKNOWN


def test_earlier_trials_of_the_model_say_how_long_it_will_take(small_study):
    options = {"space": "batch_lr_grid", "target_batch_sizes": [64], "scaling_rules": ["fixed"]}
    plan = planned(**options, max_length=40, train_size=2000, epochs=3)
    earlier = Earlier(small_study)
    study = read_study(StudyStore(small_study, STUDY).read_runs())
    trained = [t for t in study.trials_of("bert-tiny") if t.config.target_batch_size == 64]
    own = [t.evaluations["epoch_seconds"].sum() for t in trained]
    durations = earlier.durations(plan, lambda tags: True)
    expected = sum(own) / (len(own) * 2 * 192) * 3 * 2000  # seconds an example, and 3 epochs of 2,000
    assert list(durations.seconds.values()) == [pytest.approx(expected)]
    assert time_line(plan, durations) == (
        f"minutes a trial: bert-tiny {expected / 60:.1f}; all, one after the other: {expected / 60:.1f} "
        f"(from study {STUDY})"
    )
    assert "minutes: unknown" in time_line(plan, earlier.durations(plan, lambda tags: False))
    smaller = planned(**options | {"target_batch_sizes": [16, 48]}, max_length=40)
    assert len(earlier.durations(smaller, lambda tags: True).seconds) == 1  # 48, as fast as 32


def minutes_of(line):
    """The smallest and the largest of the trials of each model, and the sum of all."""
    found = re.findall(r"(bert-tiny|modernbert-tiny|other:) (?:([\d.]+) to )?([\d.]+|unknown)", line)
    return {name.rstrip(":"): (low or high, high) for name, low, high in found}


@pytest.fixture(scope="module")
def of_two_models():
    """Six trials: two models at 32, 64 and 256."""
    chosen = {"target_batch_sizes": [32, 64, 256], "scaling_rules": ["fixed"], "models": list(TINY_MODELS)}
    return planned("batch_lr_grid", **chosen)


def seconds_of(plan, per_example, per_step):
    ends = {h: c.position(c.evaluation_count, plan.dataset.sizes["train"]) for h, c in plan.configs.items()}
    return {h: per_example * end.examples + per_step * end.step for h, end in ends.items()}


def test_whatever_trials_are_known_the_rest_is_estimated_from_them_and_the_line_says_so(of_two_models):
    plan = of_two_models
    true = seconds_of(plan, per_example=0.01, per_step=0.5)
    for count in range(len(true) + 1):
        for known in itertools.combinations(true, count):
            durations = Durations({h: true[h] for h in known}, "from study S")
            line, minutes = time_line(plan, durations), forecast(plan, UNKNOWN, durations).minutes
            of_model = {
                name: [h for h, config in plan.configs.items() if config.model_name == name]
                for name in TINY_MODELS
            }
            if not known:
                assert line.startswith("minutes: unknown")
                continue
            for name, own in of_model.items():
                found = set(own) & set(known)
                lacking = [str(plan.configs[h].target_batch_size) for h in own if h not in known]
                is_estimated = bool(found and lacking)
                assert bool(re.search(rf"[:,] {name} at {listed(lacking)} by ", line)) == is_estimated
                ends = [f"{of(true[h] for h in own) / 60:,.1f}" for of in (min, max)]
                if not found:
                    assert minutes_of(line)[name] == ("unknown", "unknown")
                elif len(found) > 1:  # two batch sizes tell examples from steps
                    assert minutes_of(line)[name] == tuple(ends)
                    assert not lacking or f"{listed(lacking)} by examples and steps" in line
                else:
                    assert f"{listed(lacking)} by examples alone (a smaller batch takes longer)" in line
            each_known = all(set(own) & set(known) for own in of_model.values())
            assert (minutes is not None) == each_known
            assert (minutes_of(line)["other"] != ("unknown", "unknown")) == each_known
            if all(len(set(own) & set(known)) > 1 for own in of_model.values()):
                assert minutes == pytest.approx(sum(true.values()) / 60)


def test_by_examples_alone_a_trial_takes_as_long_as_one_of_as_many_examples(of_two_models):
    plan = of_two_models
    one_each = {c.model_name: h for h, c in plan.configs.items()}.values()
    found = expected_durations(plan, Durations(dict.fromkeys(one_each, 30.0), ""))
    # 5 epochs at every target batch size
    assert [list(each.seconds.values()) for each in found.values()] == [pytest.approx([30.0] * 3)] * 2


def test_no_share_of_the_time_is_less_than_nothing(of_two_models):
    """As where the smaller batch happened to be timed on an idle machine."""
    true = seconds_of(of_two_models, per_example=0.01, per_step=-0.01)
    smallest = {h for h, config in of_two_models.configs.items() if config.target_batch_size == 32}
    known = Durations({h: s for h, s in true.items() if h not in smallest}, "")
    for each in expected_durations(of_two_models, known).values():
        assert each.seconds.keys() & smallest
        assert min(each.seconds.values()) == pytest.approx(min(true.values()), rel=0.1)


def test_trials_elsewhere_say_nothing_of_the_time_here():
    here = {"hardware": f"1 machine, 2 CPU cores ({cpu_model()}), no GPU", "gpus_per_trial": "0"}
    options = SweepOptions(space="seeds", gpus_per_trial=0)
    assert ran_as_here(options, here)
    assert not ran_as_here(options, here | {"hardware": "1 machine, 2 CPU cores (another), no GPU"})
    assert not ran_as_here(options, here | {"gpus_per_trial": "1"})
    assert not ran_as_here(SweepOptions(space="seeds", ray_address="host:6379"), here)


def test_calibration_times_every_trial(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "SECONDS", 0.2)
    words = "--space fixed_lr --demo --models bert-tiny --epochs 1 --dry-run --calibrate --gpus-per-trial 0"
    assert main(words.split()) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(
        r"minutes a trial: bert-tiny ([\d.]+)(?: to ([\d.]+))?; all, one after the other: ([\d.]+) "
        r"\(by a few steps timed here\)",
        line,
    )
    low, high, total = (float(value) for value in (found[1], found[2] or found[1], found[3]))
    assert 3 * low - 0.25 <= total <= 3 * high + 0.25
    assert 0 < total < 10


def test_calibration_reckons_with_every_example_that_a_trial_trains_on_and_is_evaluated_on(
    capsys, tmp_path, monkeypatch
):
    """On a machine where each example takes a second, whatever is done with it."""
    monkeypatch.chdir(tmp_path)
    seconds, batch = 0, TokenTensors.batch

    def slow_batch(self, indices):
        nonlocal seconds
        seconds += len(indices)
        return batch(self, indices)

    monkeypatch.setattr(TokenTensors, "batch", slow_batch)
    monkeypatch.setattr(time, "perf_counter", lambda: float(seconds))
    words = (
        "--space fixed_lr --demo --models bert-tiny --target-batch-sizes 64 --train-size 640 "
        "--eval-size 240 --epochs 2 --evaluations 5 --set noise_every=0 --gpus-per-trial 0"
    ).split()
    assert main([*words, "--dry-run", "--calibrate"]) == 0
    said = re.search(r"minutes a trial: bert-tiny ([\d.]+);", capsys.readouterr().out)[1]

    planned_there = make_plan(parse_options(SweepOptions, words), bf16_available=False)
    (config,) = planned_there.plan.configs.values()
    trial, seconds = Trial(config, prepare_assets(config, planned_there.splits).trial, CPU), 0
    train(trial)
    assert seconds == 2 * 640 + 5 * (240 + 240)
    assert float(said) == pytest.approx(seconds / 60, abs=0.05)


def test_calibration_is_of_this_machine_and_trains_nothing():
    argv = ["--space", "fixed_lr", "--calibrate"]
    assert "give it with --dry-run" in refusal(parse_options, SweepOptions, argv)
    argv += ["--dry-run", "--ray-address", "host:6379"]
    assert "leave --ray-address out" in refusal(parse_options, SweepOptions, argv)


@pytest.mark.parametrize("values", [{"assume_disagreement": 6.0}, {"assume_seed_sd": 0.0}])
def test_an_assumption_that_cannot_be_is_refused(values):
    assert "--assume-" in refusal(SweepOptions, space="seeds", **values)
