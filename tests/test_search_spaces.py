import dataclasses

import pytest
from pydantic import ValidationError

from errors import UserError
from search_spaces import SPACES, TrialConfig, find_space, unique_trials
from search_spaces.lr_scaling import scaled_learning_rate
from search_spaces.optimization import SCHEDULERS, learning_rate_factor
from search_spaces.trial_config import FIELDS, parse_setting
from tests.helpers import make_config, message

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
        assert scaled_learning_rate(rule, 5e-5, batch, 64) == pytest.approx(learning_rate, rel=1e-12)
        config = make_config(scaling_rule=rule, target_batch_size=batch)
        assert config.learning_rate == pytest.approx(learning_rate, rel=1e-12)
    assert scaled_learning_rate(rule, 3e-5, 96, 96) == 3e-5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: scaled_learning_rate("cubic", 5e-5, 64, 64),
            "rule 'cubic': choose from fixed, linear, sqrt",
        ),
        (lambda: make_config(scaling_rule="liner"), "unknown scaling rule 'liner': did you mean linear?"),
        (lambda: make_config(scheduler="constnat"), "scheduler 'constnat': did you mean constant"),
        (lambda: find_space("batch_lr_gird"), "space 'batch_lr_gird': did you mean batch_lr_grid?"),
        (lambda: stored(target_batchsize=64), "'target_batchsize': did you mean target_batch_size"),
        (lambda: stored(epochs=0), "epochs"),
        (lambda: stored(without=("seed", "head_dropout")), "configuration lacks seed, head_dropout"),
    ],
)
def test_what_there_is_not_is_refused_with_the_near_miss(call, words):
    with pytest.raises(UserError) as raised:
        call()
    assert words in message(raised)


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


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_a_question_about_valid_cells(name):
    space = find_space(name)
    cells = space.cells()
    assert space.name == name
    assert space.question.endswith("?")
    assert len(cells) == len(space.models) * len(space.target_batch_sizes) * len(space.scaling_rules)
    assert all(0 < cell.learning_rate <= 8e-4 for cell in cells)


def test_linear_ablation_compares_one_learning_rate_with_four_times_as_much_at_256():
    cells = SPACES["linear_ablation"].cells()
    assert {cell.target_batch_size for cell in cells} == {256}
    for model in ("bert-base", "modernbert-base"):
        rates = [cell.learning_rate for cell in cells if cell.model == model]
        assert rates == pytest.approx([5e-5, 2e-4])


def test_settings_of_a_space_reach_every_cell():
    settings = {"epochs": 1, "head_dropout": 0.0}
    space = dataclasses.replace(SPACES["batch_lr_grid"], target_batch_sizes=(64, 128), settings=settings)
    found = {(c.epochs, c.head_dropout, c.target_batch_size) for c in space.cells()}
    assert found == {(1, 0, 64), (1, 0, 128)}


# -- TrialConfig -----------------------------------------------------------------------------------

BAD_VALUES = [
    *((name, value) for name in ("target_batch_size", "physical_batch_size") for value in (0, -64)),
    *((name, "64") for name in ("target_batch_size", "physical_batch_size", "reference_batch_size")),
    *((name, True) for name in ("target_batch_size", "epochs", "seed", "max_length", "train_size")),
    *((name, None) for name in ("model", "target_batch_size", "base_lr", "epochs", "head_dropout")),
    *((name, 2.0) for name in ("target_batch_size", "epochs", "seed", "eval_size")),
    *(("base_lr", value) for value in (0.0, -5e-5, float("nan"), float("inf"), -float("inf"), "5e-5")),
    *(("head_dropout", value) for value in (1.0, -0.1, 1.5, float("nan"), True)),
    *(("warmup_ratio", value) for value in (1.0, -0.1, float("nan"))),
    *(("weight_decay", value) for value in (-0.01, float("inf"))),
    *((name, 0) for name in ("reference_batch_size", "epochs", "train_size", "eval_size")),
    *((name, -1) for name in ("epochs", "seed", "split_seed", "max_length", "train_size")),
    *((name, "") for name in ("model", "dataset", "text_column", "label_column", "engine")),
    ("max_length", 2),
    ("seed", 2**63),
    ("split_seed", 2**32),
    ("keep_duplicates", 1),
    ("keep_duplicates", "false"),
    ("engine", "deepspeed"),
    ("engine", ["torch"]),
    ("precision", "fp16"),
    ("optimizer", "sgd"),
    ("scheduler", "constnat"),
    ("scaling_rule", "cubic"),
    ("model", 7),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_bad_value_is_refused_in_one_line_that_names_the_field(field, value):
    with pytest.raises(UserError) as raised:
        make_config(**{field: value})
    assert field in message(raised).replace("scaling rule", "scaling_rule")


def test_whole_numbers_are_accepted_where_fractions_are_meant():
    config = make_config(base_lr=1, head_dropout=0)
    assert (type(config.base_lr), type(config.head_dropout)) == (float, float)
    assert config == make_config(base_lr=1.0, head_dropout=0.0)
    assert config.trial_hash == make_config(base_lr=1.0, head_dropout=0.0).trial_hash


def test_config_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        make_config().seed = 1


def test_config_survives_the_round_trip_through_a_dict():
    config = make_config(train_size=10, head_dropout=0.3, dataset_digest="abc", keep_duplicates=True)
    assert TrialConfig.from_dict(config.to_dict()) == config
    assert tuple(config.to_dict()) == FIELDS


def test_accumulation_steps_is_the_number_of_micro_batches_of_a_full_window():
    for target, physical, steps in ((64, 64, 1), (64, 100, 1), (256, 64, 4), (1024, 48, 22), (65, 64, 2)):
        config = make_config(target_batch_size=target, physical_batch_size=physical)
        assert config.accumulation_steps == steps


def test_steps_per_epoch_counts_the_short_last_window():
    for examples, target, steps in (
        (40_000, 64, 625),
        (8_530, 64, 134),
        (65, 64, 2),
        (64, 64, 1),
        (5, 64, 1),
    ):
        assert make_config(target_batch_size=target).steps_per_epoch(examples) == steps


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("bert-base", "bert-base"),
        ("nreimers/MiniLM-L6", "MiniLM-L6"),
        ("/data/encoders/minilm/", "minilm"),
        ("/site-packages/minilm/model", "minilm/model"),
        ("minilm/checkpoint/", "minilm/checkpoint"),
        ("model", "model"),
    ],
)
def test_model_name_is_the_last_meaningful_part(model, name):
    assert make_config(model=model).model_name == name


def test_the_current_folder_has_a_model_name():
    assert make_config(model=".").model_name


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


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_without_warm_up_training_starts_at_the_full_rate_and_ends_above_nothing(scheduler):
    assert learning_rate_factor(scheduler, 0, 0, 4) == 1
    assert learning_rate_factor(scheduler, 3, 0, 4) > 0


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
        (True, {"scaling_rule": "linear"}),
        (True, {"scaling_rule": "linear", "base_lr": 2.5e-5, "reference_batch_size": 32}),
        (True, {"dataset": "/elsewhere/imdb"}),  # its digest counts
        (True, {"text_column": "review", "label_column": "sentiment"}),
        (True, {"keep_duplicates": True}),
        (True, {"train_size": 100, "eval_size": 10}),
        (False, {"model": "modernbert-tiny"}),
        (False, {"target_batch_size": 65}),
        (False, {"base_lr": 5.1e-5}),
        (False, {"scaling_rule": "sqrt", "reference_batch_size": 32}),
        (False, {"epochs": 6}),
        (False, {"seed": 43}),
        (False, {"optimizer": "adamw"}),
        (False, {"weight_decay": 0.01}),
        (False, {"scheduler": "linear"}),
        (False, {"scheduler": "linear", "warmup_ratio": 0.1}),
        (False, {"head_dropout": 0.2}),
        (False, {"engine": "accelerate"}),
        (False, {"precision": "bf16"}),
        (False, {"max_length": 127}),
        (False, {"dataset_digest": "abc"}),
    ],
)
def test_trial_hash_changes_with_what_is_learned_and_with_nothing_else(is_same, changes):
    assert (make_config(**changes).trial_hash == make_config().trial_hash) is is_same


def test_trial_hash_knows_the_learning_rate_however_it_came_about():
    rules = [make_config(target_batch_size=256, scaling_rule=rule) for rule in ("fixed", "sqrt", "linear")]
    assert len({config.trial_hash for config in rules}) == 3
    by_hand = make_config(target_batch_size=256, scaling_rule="fixed", base_lr=1e-4)
    assert by_hand.trial_hash == rules[1].trial_hash


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
        ("dropout", "'dropout' is not of the form key=value"),
        ("drop_out=0.2", "did you mean head_dropout?"),
        ("=3", "unknown configuration key ''"),
        ("epochs=3.5", "epochs must be a valid integer, not '3.5'"),
        ("epochs=", "epochs must be a valid integer, not ''"),
        ("head_dropout=a lot", "head_dropout must be a valid number, not 'a lot'"),
        ("train_size=half", "train_size must be a valid integer, not 'half'"),
        ("keep_duplicates=maybe", "keep_duplicates must be a valid boolean, not 'maybe'"),
    ],
)
def test_setting_that_cannot_be_read_says_why(text, words):
    with pytest.raises(UserError) as raised:
        parse_setting(text)
    assert words in message(raised)
