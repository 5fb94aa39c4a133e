import math
from dataclasses import replace

import pytest

from reports.sections.steps_to_target import NEVER, Spent, costs, spent_to, steps_picture, steps_table
from tests.test_flags import make_study

# 3,200 training examples: 50 steps an epoch at 64, 4 at 1024


def only(study):
    ((_, trial),) = study.trials.items()
    return trial


@pytest.mark.parametrize(
    ("curve", "spent"),
    [
        ((0.6, 0.8, 0.9), Spent(75, 4800)),  # half of the way from 0.6 to 0.8
        ((0.7, 0.8, 0.9), Spent(50, 3200)),  # just reached
        ((0.9, 0.5, 0.9), Spent(50, 3200)),  # before the first evaluation nothing was measured
        ((0.5, 0.6, 0.69), NEVER),
    ],
)
def test_the_first_evaluation_that_reaches_the_goal_is_interpolated(curve, spent):
    study = make_study({(64, "fixed", 1e-3, 1): curve}, train_examples=3200)
    assert spent_to(0.7, only(study), 3200) == pytest.approx(spent)


def test_seeds_have_their_median_and_those_that_never_reach_it_are_counted():
    curves = {(64, "fixed", 1e-3, 1): (0.7, 0.7), (64, "fixed", 1e-3, 2): (0.6, 0.8)}
    curves |= {(64, "fixed", 1e-3, 3): (0.5, 0.6), (1024, "fixed", 1e-3, 1): (0.5, 0.6)}
    study = make_study(curves, train_examples=3200)
    found = costs(study, 0.7)
    assert found["tiny", 64, "fixed"].median == pytest.approx(Spent(75, 4800))
    assert found["tiny", 64, "fixed"].reached == 2
    assert math.isinf(found["tiny", 1024, "fixed"].median.steps)
    rows = steps_table(study, 0.7).frame.to_numpy().tolist()
    assert rows == [
        ["tiny", 64, "fixed", "75", "4,800", "75", "2 of 3 trainings"],
        # 75 · 64 / 1,024; two epochs of four steps
        ["tiny", 1024, "fixed", "> 8", "> 6,400", "5", "0 of 1 training"],
    ]


def test_a_goal_reached_at_the_first_evaluation_is_an_upper_limit_and_sets_no_scale():
    curves = {(64, "fixed", 1e-3, 1): (0.8, 0.9), (256, "fixed", 1e-3, 1): (0.65, 0.9)}
    rows = steps_table(make_study(curves, train_examples=3200), 0.7).frame.to_numpy().tolist()
    assert rows == [
        # 13 steps an epoch, a fifth of the way to the second: 15.6; perfect scaling goes from there
        ["tiny", 64, "fixed", "≤ 50", "≤ 3,200", "62", "1 of 1 training"],
        ["tiny", 256, "fixed", "16", "3,840", "16", "1 of 1 training"],
    ]


def test_a_training_under_way_has_not_missed_the_goal():
    study = make_study({(64, "fixed", 1e-3, s): (0.5, 0.6, 0.8) for s in (1, 2)}, train_examples=3200)
    name, trial = next(iter(study.trials.items()))
    under_way = replace(trial, evaluations=trial.evaluations.head(2))
    trials = {**study.trials, name: under_way}
    ((*_, reached),) = steps_table(replace(study, trials=trials), 0.7).frame.to_numpy().tolist()
    assert reached == "1 of 1 training"
    assert not costs(replace(study, trials={name: under_way}), 0.7)


def test_there_is_a_picture_where_some_cell_reaches_it():
    study = make_study({(64, "fixed", 1e-3, 1): (0.6, 0.8), (256, "fixed", 1e-3, 1): (0.5, 0.6)})
    picture = steps_picture(study, 0.7)
    assert picture.png.startswith(b"\x89PNG")
    assert "not reached within the budget" in picture.caption
    assert steps_picture(study, 0.99) is None
