"""The budget of a trial: its steps, its examples, and where in them it is evaluated."""

import inspect
import io
import math

import pytest
import torch
from rich.console import Console

from search_spaces.trial_config import epoch_text
from search_spaces.update import OPTIMIZERS
from sweep.options import SweepOptions
from sweep.plan import make_plan
from sweep.plan_summary import companions_table, plan_summary, trials_table
from tests.helpers import CPU, assert_identical, learnt, make_config, refusal, tiny_config, train, weights
from trainables.batches import epoch_windows, windows_between
from trainables.trial import Trial

IMDB, DEMO = 39_666, 3_200
# train examples, target batch size -> steps an epoch, epochs, examples, cost ratio; 5 epochs' steps at 64
EQUAL_STEPS = {
    (IMDB, 64): (620, 5, 198_330, 1.0),
    (IMDB, 256): (155, 20, 793_320, 4.0),
    (IMDB, 1024): (39, 79.49, 3_153_070, 15.898),
    (DEMO, 64): (50, 5, 16_000, 1.0),
    (DEMO, 256): (13, 19.24, 61_568, 3.848),
    (DEMO, 1024): (4, 62.64, 200_448, 12.528),
}


def planned_study(**options):
    options = {"space": "equal_steps", "demo": True, "models": ["bert-tiny"]} | options
    return make_plan(SweepOptions(**options), bf16_available=False)


def planned(**options):
    return planned_study(**options).plan


@pytest.mark.parametrize(("examples", "batch"), EQUAL_STEPS)
def test_equal_steps_take_these_epochs_and_examples(examples, batch):
    windows, epochs, seen, ratio = EQUAL_STEPS[examples, batch]
    steps = make_config().total_steps(examples)
    assert steps == {IMDB: 3100, DEMO: 250}[examples]
    config = make_config(target_batch_size=batch, steps=steps)
    assert config.steps_per_epoch(examples) == windows
    end = config.position(5, examples)
    assert (end.step, end.examples) == (steps, seen)
    assert end.epoch == pytest.approx(epochs, abs=0.005)
    assert end.examples / make_config().position(5, examples).examples == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize("batch", [1, 7, 64, 256, 1024, 5000])
def test_as_many_evaluations_as_epochs_are_at_the_end_of_each(batch):
    config = make_config(target_batch_size=batch)
    for epoch in range(1, 6):
        found = config.position(epoch, DEMO)
        assert found == (epoch, epoch * config.steps_per_epoch(DEMO), epoch * DEMO, epoch)
        assert type(found.epoch) is int


@pytest.mark.parametrize(("steps", "evaluations"), [(250, 7), (20, 20), (3100, 6), (1, 1)])
def test_evaluations_are_the_nearest_steps_to_equal_fractions_and_end_the_training(steps, evaluations):
    config = make_config(steps=steps, evaluations=evaluations)
    found = [config.evaluation_step(k, DEMO) for k in range(evaluations + 1)]
    assert (found[0], found[-1]) == (0, steps)
    assert found == sorted(set(found))
    assert all(abs(step - k * steps / evaluations) <= 0.5 for k, step in enumerate(found))


def test_examples_seen_are_those_of_the_windows():
    config = tiny_config(target_batch_size=64)  # windows of 64, 64, 64 and 8 examples
    sizes = [len(window) for *_, window in windows_between(0, 9, 200, 64, seed=42)]
    assert [config.examples_seen(step, 200) for step in range(10)] == [sum(sizes[:n]) for n in range(10)]


@pytest.mark.parametrize(("examples", "last"), [(640, 64), (641, 1), (703, 63), (64, 64), (63, 63), (1, 1)])
def test_a_last_window_that_is_full_is_not_empty(examples, last):
    assert make_config(target_batch_size=64).last_window(examples) == last
    *_, window = epoch_windows(examples, 64, seed=1, epoch=1)
    assert len(window) == last


def test_windows_between_two_steps_are_those_of_their_epochs():
    expected = [
        (epoch, number, window.tolist())
        for epoch in (1, 2, 3)
        for number, window in enumerate(epoch_windows(200, 64, 42, epoch))
    ]
    for first, last in ((0, 12), (3, 10), (5, 6), (4, 8), (7, 7)):
        found = windows_between(first, last, 200, 64, 42)
        assert [(*place, window.tolist()) for *place, window in found] == expected[first:last]


def test_one_trial_has_one_spelling():
    config = make_config(epochs=3)
    assert make_config(epochs=3, evaluations=3) == config
    assert make_config(evaluations=5) == make_config()
    assert make_config().replace(evaluations=3, epochs=3) == config
    others = [config.replace(evaluations=6), config.replace(steps=7), config]
    assert len({other.trial_hash for other in others}) == 3


def test_more_evaluations_than_steps_are_refused():
    for options in ({"space": "batch_lr_grid"}, {"space": "best_config", "models": None}):
        reason = refusal(planned, **options, evaluations=21)
        assert reason.startswith("21 evaluations are more than the 20 steps at target batch size ")
        assert "give --evaluations 20 or fewer, or more --epochs" in reason


def test_a_study_of_equal_steps_shares_the_trials_of_the_reference_batch_size():
    steps, examples = planned(), planned(space="batch_lr_grid")
    assert steps.cells != examples.cells
    shared = [cells[0].target_batch_size for key, cells in steps.trials.items() if key in examples.trials]
    assert shared == [64]
    assert len(steps.trials) == len(examples.trials) == 7
    same = planned(space="batch_lr_grid", budget="steps")
    assert list(same.trials) == list(steps.trials)
    assert list(planned(budget="examples").trials) == list(examples.trials)
    assert list(planned(space="batch_lr_grid", evaluations=5).trials) == list(examples.trials)


def printed(table):
    """The cells of a table's rows as a wide terminal shows them."""
    console = Console(width=160, file=io.StringIO())
    console.print(table)
    lines = console.file.getvalue().splitlines()
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines if line[0] == "│"]


def test_the_plan_says_what_every_cell_costs():
    study = planned_study(scaling_rules=["fixed"], evaluations=7)
    text = plan_summary(study)
    assert "equal steps: epochs 5 at target batch size 64, all with as many steps; evaluations 7" in text
    assert "note: the last window of every epoch is less than half full: 128 of 1024 examples" in text
    assert [row[3:] for row in printed(trials_table(study.plan))] == [
        ["64", "64", "0.0005", "250", "5", "16,000", "×1.000", "64", "42"],
        ["256", "64", "0.0005", "250", "19.2", "61,568", "×3.848", "128", "42"],
        ["1024", "64", "0.0005", "250", "62.6", "200,448", "×12.528", "128", "42"],
    ]


def test_the_plan_says_what_the_optimizer_remembers():
    of_momentum = ("6.6 steps, 421 examples", "6.6 steps, 6,737 examples")
    plan = planned(target_batch_sizes=[64, 1024], assignments=["weight_decay=0.02"])
    rules = "fixed=sqrt=linear"
    assert printed(companions_table(plan)) == [
        [
            "64",
            rules,
            "0.02",
            "none",
            "0.9",
            of_momentum[0],
            "0.999",
            "692.8 steps, 44,339 examples",
            "1e-08",
        ],
        [
            "1024",
            rules,
            "0.02",
            "none",
            "0.9",
            of_momentum[1],
            "0.999",
            "692.8 steps, 709,428 examples",
            "1e-08",
        ],
    ]


def test_the_plan_says_warmup_in_three_units():
    plan = planned(assignments=["scheduler=linear", "warmup_ratio=0.1"])
    # of 250 steps; epochs of 50, 13 and 4 steps with 3,200 examples
    assert [row[3] for row in printed(companions_table(plan))] == [
        "25 steps, 1,600 examples, 10.0%",
        "25 steps, 6,272 examples, 10.0%",
        "25 steps, 20,224 examples, 10.0%",
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_said_of_an_optimizer_are_its_own_defaults(name):
    spec = OPTIMIZERS[name]
    parameters = inspect.signature(getattr(torch.optim, spec.torch_name)).parameters
    assert parameters["betas"].default == (spec.beta1, spec.beta2)
    assert parameters["eps"].default == spec.epsilon


def test_epochs_are_said_with_a_fraction_only_where_they_have_one():
    assert [epoch_text(epoch) for epoch in (5, 5.0, 79.4872, 1 / 3, 0.02)] == [
        "5",
        "5",
        "79.5",
        "0.33",
        "0.02",
    ]


@pytest.fixture(scope="module")
def seven(assets):
    """Seven evaluations in three epochs of four steps: after 2, 3, 5, 7, 9, 10 and 12."""
    return train(Trial(tiny_config(epochs=3, evaluations=7, scheduler="linear"), assets["bert-tiny"], CPU))


def test_evaluating_more_often_changes_nothing_that_is_learned(seven, assets):
    three = train(Trial(seven.config.replace(evaluations=None), assets["bert-tiny"], CPU))
    assert_identical(weights(seven), weights(three))
    assert seven.history[-1]["val_loss"] == three.history[-1]["val_loss"]
    rows = [[row for report in trial.history for row in report["step_curve"]] for trial in (seven, three)]
    assert rows[0] == rows[1]


def test_a_report_says_where_in_training_it_is(seven):
    names = ("evaluation", "step", "examples", "epoch")
    found = [tuple(report[name] for name in names) for report in seven.history]
    assert found == [
        (1, 2, 128, 0.64),
        (2, 3, 192, 0.96),
        (3, 5, 264, 1.32),
        (4, 7, 392, 1.96),
        (5, 9, 464, 2.32),
        (6, 10, 528, 2.64),
        (7, 12, 600, 3),
    ]
    for report in seven.history:
        assert math.isfinite(report["examples_per_second"])
        assert report["step_curve"][-1][0] == report["step"]


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_trial_stopped_in_the_middle_of_an_epoch_ends_where_an_uninterrupted_one_does(
    seven, assets, tmp_path, stop
):
    trial = Trial(seven.config, assets["bert-tiny"], CPU)
    for _ in range(stop):
        trial.run_to_evaluation()
    trial.save(tmp_path)
    torch.manual_seed(stop)
    again = Trial(seven.config, assets["bert-tiny"], CPU)
    again.restore(tmp_path)
    train(again)
    assert learnt(again) == learnt(seven)
    assert_identical(weights(again), weights(seven))
    assert_identical(again.optimizer.state_dict()["state"], seven.optimizer.state_dict()["state"])


def test_steps_alone_end_a_training(assets):
    trial = train(Trial(tiny_config(steps=5, epochs=2), assets["bert-tiny"], CPU))
    assert [report["step"] for report in trial.history] == [3, 5]
    assert trial.history[-1]["epoch"] == 264 / 200
