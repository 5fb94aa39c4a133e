"""What a report says of a search: the best, its worth, the edges of the box, the order of the best."""

from types import SimpleNamespace

import pandas as pd
import pytest

from errors import UserError
from reports.sections.search import SearchData, best_table, flags, headline, read_search, train_again
from reports.study_data import StudyData
from search_spaces.plan import DatasetFacts, Plan
from search_spaces.search_space import Choice, LogUniform, SearchSpace
from search_spaces.stages import COMPLETE, DIVERGED, STOPPED, Outcome
from tests.helpers import make_config, message

SPACE = SearchSpace(
    name="test",
    question="Which is best?",
    parameters={"target_batch_size": Choice((16, 64, 256)), "base_lr": LogUniform(1e-5, 1e-2)},
    settings={"scaling_rule": "fixed", "model": "bert-tiny", "epochs": 2},
    trials=4,
)
SIZES = {"train": 3200, "val": 400, "test": 400}
DATASET = DatasetFacts("films", "films", "0", SIZES, ("no", "yes"), 0)


def search(*trials, **changes):
    """A search whose trials are (target batch size, base_lr, outcome)."""
    values = [{"target_batch_size": batch, "base_lr": rate} for batch, rate, _ in trials]
    outcomes = [ended for _, _, ended in trials]
    return SearchData(SPACE.replace(**changes), values, outcomes)


def complete(*val_accs):
    return Outcome(COMPLETE, val_accs)


FOUND = search(
    (64, 1e-3, complete(0.80, 0.85)),
    (16, 5e-5, complete(0.70, 0.70)),
    (256, 9e-3, Outcome(DIVERGED, ())),
    (64, 2e-3, Outcome(STOPPED, (0.6,))),
)
UNCONFIRMED = StudyData(
    Plan(
        study="films",
        space=SPACE,
        shared=next(SPACE.corners()),
        dataset=DATASET,
        model_digests={"bert-tiny": ""},
        metrics={"acc": "accuracy"},
        cells=(),
        has_later_stages=True,
    ),
    trials={},
)


def told(found, val_examples=2000):
    return " ".join(flags(found, val_examples))


def test_the_best_is_the_highest_of_the_complete_trials_and_its_first_epoch():
    assert (FOUND.best.number, FOUND.best.best_val_acc, FOUND.best.best_epoch) == (0, 0.85, 2)
    assert search((64, 1e-3, complete(0.7, 0.7)), (64, 2e-3, complete(0.7, 0.7))).best.number == 0


def test_evaluations_within_epochs_are_said_in_epochs():
    settings = SPACE.settings | {"evaluations": 4}  # in two epochs
    found = search((64, 1e-3, complete(0.7, 0.7, 0.8, 0.75)), settings=settings)
    line, *_ = headline(found, UNCONFIRMED)
    assert "(val_acc 0.8000 at epoch 1.5)" in line
    assert best_table(found).frame["best epoch"].to_list() == ["1.5"]
    assert "--evaluations 4" in train_again(found.config(0))


def test_a_search_that_is_not_finished_says_how_far_it_is():
    (line,) = headline(search((64, 1e-3, complete(0.8, 0.85)), (16, 1e-3, None)), UNCONFIRMED)
    assert line.startswith("1 of 4 trials have ended. The best so far is trial 0: target_batch_size 64")
    (line,) = headline(search((64, 1e-3, Outcome(DIVERGED, ()))), UNCONFIRMED)
    assert line == "Of 1 trial that have ended none came to its last epoch."


def test_the_best_of_many_flatters_until_it_is_trained_again():
    _, worth, _ = headline(FOUND, UNCONFIRMED)
    assert worth == "0.8500 in the search is the best of 4 and flatters; it has not been trained again yet."


def test_what_diverged_and_what_was_stopped_is_counted():
    assert "1 of 4 trials diverged" in told(FOUND)
    assert "1 of 4 trials were stopped early" in told(FOUND)
    assert "5 of 8 epochs were trained" in told(FOUND)


@pytest.mark.parametrize(
    ("batch", "rate", "edge"),
    [
        (16, 1e-3, "the smallest target_batch_size (16)"),
        (256, 1e-3, "the largest target_batch_size (256)"),
        (64, 1.05e-5, "nearly the smallest base_lr (1.05e-5)"),
        (64, 0.0099, "nearly the largest base_lr (0.0099)"),
    ],
)
def test_a_best_value_at_the_edge_of_its_range_is_told(batch, rate, edge):
    assert f"{edge} that was searched: beyond it there may be better" in told(
        search((batch, rate, complete(0.8, 0.9)))
    )


def test_a_best_value_inside_its_range_is_not_at_an_edge():
    assert "beyond it" not in told(search((64, 1e-3, complete(0.8, 0.9))))


def test_the_order_of_trials_that_chance_would_scatter_as_far_says_little():
    near = search((64, 1e-3, complete(0.8, 0.850)), (16, 2e-3, complete(0.8, 0.845)))
    assert "The best 2 trials lie within 0.5 points" in told(near)
    assert "lie within" not in told(near, val_examples=1_000_000)
    assert "lie within" not in told(FOUND)


def test_the_table_has_the_best_first():
    table = best_table(FOUND)
    assert table.frame["trial"].tolist() == ["#0", "#1"]
    assert "Of 4 trials; 2 came to their last epoch." in table.note


def test_a_configuration_that_was_proposed_again_is_one_of_the_best_once():
    same, other = (64, 1e-3, complete(0.8, 0.85)), (16, 1e-3, complete(0.8, 0.80))
    assert best_table(search(same, other, same)).frame["trial"].tolist() == ["#0", "#1"]


def test_a_search_in_which_every_trial_diverged_says_so():
    assert (
        told(search((64, 9e-3, Outcome(DIVERGED, ()))))
        == "1 of 1 trial diverged: search lower learning rates."
    )


def test_the_command_quotes_what_a_shell_would_take_apart():
    config = make_config(dataset="my films.csv", head_dropout=0.25, duplicates="keep")
    line = train_again(config)
    assert "--dataset 'my films.csv'" in line
    assert "--set head_dropout=0.25" in line
    assert "--duplicates keep" in line


def test_proposals_of_other_parameters_are_refused():
    invocation = SimpleNamespace(generations={0: [{"base_lr": 1e-3}]})
    with pytest.raises(UserError) as raised:
        read_search(SPACE, UNCONFIRMED.plan.trial_of, SimpleNamespace(invocations=[invocation], trials={}))
    assert "not of its parameters" in message(raised)


def test_a_trial_that_was_proposed_twice_is_told_twice():
    invocation = SimpleNamespace(generations={0: [{"base_lr": 1e-3, "target_batch_size": 64}] * 2})
    found = read_search(
        SPACE, UNCONFIRMED.plan.trial_of, SimpleNamespace(invocations=[invocation], trials={})
    )
    assert found.ended == 0
    assert isinstance(found.trials, pd.DataFrame)
    assert len(found.trials) == 2
