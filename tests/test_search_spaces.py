import dataclasses

import pytest

from search_spaces import SPACES, TrialConfig, find_space, unique_trials
from search_spaces.optimization import learning_rate_factor
from search_spaces.trial_config import parse_setting
from tests.helpers import make_config, refusal

# -- scaling rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("fixed", {16: 5e-5, 64: 5e-5, 256: 5e-5, 1024: 5e-5}),
        ("sqrt", {16: 2.5e-5, 64: 5e-5, 256: 1e-4, 1024: 2e-4}),
        ("linear", {16: 1.25e-5, 64: 5e-5, 256: 2e-4, 1024: 8e-4}),
    ],
)
def test_scaling_rule_gives_the_learning_rates_worked_out_by_hand(rule, expected):
    for batch, learning_rate in expected.items():
        config = make_config(scaling_rule=rule, target_batch_size=batch)
        assert config.learning_rate == pytest.approx(learning_rate, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_config(scaling_rule="cubic"), "rule 'cubic': choose from fixed, linear, sqrt"),
        (lambda: make_config(scheduler="constnat"), "scheduler 'constnat': did you mean constant"),
        (lambda: stored(target_batchsize=64), "'target_batchsize': did you mean target_batch_size"),
        (lambda: stored(epochs=0), "epochs"),
        (lambda: stored(without=("seed", "head_dropout")), "configuration lacks seed, head_dropout"),
    ],
)
def test_what_there_is_not_is_refused_with_the_near_miss(call, words):
    assert words in refusal(call)


def stored(without=(), **changes):
    """A configuration from a dict that is not quite one."""
    values = make_config().to_dict() | changes
    return TrialConfig.from_dict({name: value for name, value in values.items() if name not in without})


# -- spaces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 2])
def test_batch_lr_grid_is_18_cells_and_14_trials_of_each_seed(seeds):
    cells = dataclasses.replace(SPACES["batch_lr_grid"], seeds=tuple(range(seeds))).cells()
    assert len(cells) == len({(c.model, c.target_batch_size, c.scaling_rule, c.seed) for c in cells})
    trials = unique_trials(cells).values()
    assert (len(cells), len(trials)) == (18 * seeds, 14 * seeds)
    shared = [cell.target_batch_size for group in trials if len(group) > 1 for cell in group]
    assert set(shared) == {64}  # the reference batch size, where the rules are the same


@pytest.mark.parametrize("name", [name for name in SPACES if name != "best_config"])
def test_every_grid_is_a_question_about_valid_cells(name):
    space = find_space(name)
    cells = space.cells()
    assert space.name == name
    assert space.question.endswith("?")
    assert len(cells) == len(space.models) * len(space.target_batch_sizes) * len(space.scaling_rules)
    assert all(0 < cell.learning_rate <= 8e-4 for cell in cells)


# -- TrialConfig -----------------------------------------------------------------------------------

COUNTS = ("target_batch_size", "physical_batch_size", "reference_batch_size", "epochs")
BAD_VALUES = [
    *((name, 0) for name in (*COUNTS, "train_size", "eval_size")),
    *(("target_batch_size", value) for value in (-64, "64", True, None, 2.0)),
    *(("base_lr", value) for value in (0.0, -5e-5, float("nan"), float("inf"), "5e-5", None)),
    *((name, value) for name in ("head_dropout", "warmup_ratio") for value in (1.0, -0.1)),
    *((name, -1) for name in ("weight_decay", "seed", "split_seed", "noise_every")),
    *((name, "") for name in ("model", "dataset", "text_column", "label_column")),
    *((name, "sgd") for name in ("engine", "precision", "optimizer", "scheduler", "scaling_rule")),
    *(("keep_duplicates", value) for value in (1, "false")),
    ("max_length", 2),
    ("seed", 2**63),
    ("split_seed", 2**32),
    ("engine", ["torch"]),
    ("model", 7),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_bad_value_is_refused_in_one_line_that_names_the_field(field, value):
    reason = refusal(make_config, **{field: value})
    assert field in reason.replace("scaling rule", "scaling_rule")


def test_whole_numbers_are_accepted_where_fractions_are_meant():
    config = make_config(base_lr=1, head_dropout=0)
    assert (type(config.base_lr), type(config.head_dropout)) == (float, float)
    assert config == make_config(base_lr=1.0, head_dropout=0.0)
    assert config.trial_hash == make_config(base_lr=1.0, head_dropout=0.0).trial_hash


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("nreimers/MiniLM-L6", "MiniLM-L6"),
        ("/data/encoders/minilm/", "minilm"),
        ("/site-packages/minilm/model", "minilm/model"),
        ("minilm/checkpoint/", "minilm/checkpoint"),
        ("model", "model"),
        (".", "."),
    ],
)
def test_model_name_is_the_last_meaningful_part(model, name):
    assert make_config(model=model).model_name == name


# -- schedules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "factors"),
    [
        ("constant_with_warmup", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
    ],
)
def test_warm_up_reaches_the_full_rate_in_its_last_step_and_wastes_none(scheduler, factors):
    found = [learning_rate_factor(scheduler, step, 2, 6) for step in range(6)]
    assert found == pytest.approx(factors)


# -- trial hash ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "rule", "expected"),
    [(64, "fixed", "798ec82e4c7f"), (1024, "sqrt", "820760e63574"), (1024, "linear", "259bedd29eed")],
)
def test_trial_hashes_of_finished_studies_hold(target, rule, expected):
    config = make_config(model="bert-base", target_batch_size=target, scaling_rule=rule)
    assert config.trial_hash == expected
    stored = config.to_dict()
    stored["dropout"] = stored.pop("head_dropout")  # as earlier versions spelled it
    assert TrialConfig.from_stored(stored).trial_hash == expected


def test_a_field_added_later_enters_the_hash_only_where_it_differs_from_its_default():
    class Extended(TrialConfig):
        clip_norm: float = 0.0

    fields = make_config().to_dict()
    assert Extended(**fields).trial_hash == make_config().trial_hash
    assert Extended(**fields, clip_norm=1.0).trial_hash != make_config().trial_hash


@pytest.mark.parametrize(
    ("is_same", "changes"),
    [
        (True, {"physical_batch_size": 8}),
        (True, {"scaling_rule": "sqrt"}),
        (True, {"scaling_rule": "linear", "base_lr": 2.5e-5, "reference_batch_size": 32}),
        (True, {"dataset": "/elsewhere/imdb"}),  # its digest counts
        (True, {"text_column": "review", "label_column": "sentiment"}),
        (True, {"keep_duplicates": True}),
        (True, {"train_size": 100, "eval_size": 10}),
        (False, {"model": "modernbert-tiny"}),
        (False, {"target_batch_size": 65}),
        (False, {"base_lr": 5.1e-5}),
        (False, {"scaling_rule": "sqrt", "reference_batch_size": 32}),
        (False, {"seed": 43}),
        (False, {"dataset_digest": "abc"}),  # the other fields are in the hashes above
    ],
)
def test_trial_hash_changes_with_what_is_learned_and_with_nothing_else(is_same, changes):
    assert (make_config(**changes).trial_hash == make_config().trial_hash) is is_same


# -- parse_setting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("dropout=0.2", "head_dropout", 0.2),  # its name in earlier versions
        ("base_lr=1e-4", "base_lr", 1e-4),
        ("epochs=3", "epochs", 3),
        ("model=a=b", "model", "a=b"),
        ("keep_duplicates=true", "keep_duplicates", True),
        ("keep_duplicates=False", "keep_duplicates", False),
        ("train_size=all", "train_size", None),
        ("eval_size=none", "eval_size", None),
    ],
)
def test_setting_is_parsed_as_its_field_is_typed(text, name, expected):
    found, value = parse_setting(text)
    assert (found, value, type(value)) == (name, expected, type(expected))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("=3", "unknown configuration key ''"),
        ("epochs=3.5", "epochs must be a valid integer, not '3.5'"),
        ("epochs=", "epochs must be a valid integer, not ''"),
        ("train_size=half", "train_size must be a valid integer, not 'half'"),
        ("keep_duplicates=maybe", "keep_duplicates must be a valid boolean, not 'maybe'"),
    ],
)
def test_setting_that_cannot_be_read_says_why(text, words):
    assert words in refusal(parse_setting, text)
