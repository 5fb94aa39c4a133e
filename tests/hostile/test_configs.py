"""Configurations and plans from any values: a valid one, or a UserError in one line."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from errors import UserError, printable
from search_spaces import SPACES, SearchSpace, TrialConfig
from search_spaces.plan import Plan
from search_spaces.trial_config import FIELDS
from sweep.options import SweepOptions, parse_setting
from sweep.plan import make_plan
from sweep.plan_summary import plan_summary, plan_tables
from sweep.resolve import resolve_space
from tests.helpers import TINY_MODELS, make_config, refusal, refused_command
from tests.hostile.junk import texts, values
from trainables.encoders import ENCODERS

VALID = make_config().to_dict()
LIKELY = {
    "target_batch_size": st.integers(1, 4096),
    "physical_batch_size": st.integers(1, 4096),
    "reference_batch_size": st.integers(1, 4096),
    "scaling_rule": st.sampled_from(["fixed", "sqrt", "linear"]),
    "base_lr": st.floats(1e-8, 1.0) | st.floats(0, allow_infinity=False),
    "seed": st.integers(0, 2**63 - 1),
    "head_dropout": st.floats(0, 1),
}


def one_line_or(build, *arguments, **keywords):
    """What was built, or None after a UserError that a terminal shows as one line of plain letters."""
    try:
        return build(*arguments, **keywords)
    except UserError as error:
        text = str(error)
        assert text == printable(text)
        assert 0 < len(text) < 1100
        return None


@st.composite
def configurations(draw):
    """A valid configuration, with some of its fields replaced."""
    junk = draw(st.dictionaries(st.sampled_from(FIELDS), values, max_size=2))
    likely = {name: draw(strategy) for name, strategy in LIKELY.items() if draw(st.booleans())}
    return VALID | likely | junk


@given(configurations())
def test_any_fields_are_a_valid_configuration_or_one_line(fields):
    config = one_line_or(TrialConfig, **fields)
    if config is None:
        return
    assert TrialConfig.from_dict(config.to_dict()) == config
    assert TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))).trial_hash == config.trial_hash
    assert 0 < config.learning_rate < math.inf
    examples = (config.accumulation_steps - 1) * config.physical_batch_size
    assert examples < config.target_batch_size <= examples + config.physical_batch_size
    assert config.model_name
    for name in ("model", "dataset", "text_column", "label_column"):
        value = getattr(config, name)
        assert value == printable(value)  # a store and a file can hold it, a terminal and a page show it


@given(st.dictionaries(texts | st.integers() | st.sampled_from(FIELDS), values, max_size=4))
def test_a_dict_that_is_not_a_configuration_is_one_line(fields):
    assert one_line_or(TrialConfig.from_dict, fields) is None


@given(st.builds("{}={}".format, st.sampled_from(FIELDS) | texts, texts) | texts)
def test_any_setting_is_a_field_and_a_value_or_one_line(text):
    found = one_line_or(parse_setting, text)
    assert found is None or found[0] in FIELDS


def axis(good, junk=values):
    return st.none() | st.lists(good, min_size=1, max_size=3) | st.lists(good | junk, max_size=3)


ANY_SPACE = st.sampled_from([*SPACES]) | texts
FURTHER = {
    "demo": st.booleans(),
    "models": axis(st.sampled_from([*ENCODERS, "./x"]), texts),
    "target_batch_sizes": axis(st.integers(1, 5000)),
    "scaling_rules": axis(st.sampled_from(["fixed", "sqrt", "linear"]), texts),
    "seeds": axis(st.integers(0, 99)),
    "physical_batch_size": st.just("auto") | st.integers().map(str) | texts,
    "precision": st.sampled_from(["auto", "fp32"]) | texts,
    "assignments": st.lists(st.builds("{}={}".format, st.sampled_from(FIELDS), texts), max_size=1),
    "gpus_per_trial": st.none() | st.floats(),
    "cpus_per_trial": st.none() | st.floats(),
    "max_concurrent": st.none() | st.integers(),
    "storage_path": st.just("x") | texts,
}


@given(st.fixed_dictionaries({"space": ANY_SPACE}, optional=FURTHER))
def test_any_options_are_a_space_of_distinct_valid_cells_or_one_line(options):
    space = one_line_or(lambda: resolve_space(SweepOptions(**options), bf16_available=False))
    if space is not None:
        cells = list(space.corners()) if isinstance(space, SearchSpace) else space.cells()
        assert len({tuple(cell.to_dict().values()) for cell in cells}) == len(cells) > 0


GRID = {
    "models": st.lists(st.sampled_from(TINY_MODELS), min_size=1, unique=True),
    "target_batch_sizes": st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=3, unique=True),
    "scaling_rules": st.lists(st.sampled_from(["fixed", "sqrt", "linear"]), min_size=1, unique=True),
    "seeds": st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=2, unique=True),
}
SIZES = {
    "physical_batch_size": st.integers(1, 2**63 - 1).map(str),
    "train_size": st.integers(0, 4000),
    "eval_size": st.integers(0, 500),
    "max_length": st.integers(0, 600),
}


@given(st.fixed_dictionaries(GRID), st.fixed_dictionaries({}, optional=SIZES))
def test_a_plan_serves_every_cell_once_and_counts_its_steps(grid, sizes):
    flags = SweepOptions(space="batch_lr_grid", demo=True, **grid, **sizes)
    study = one_line_or(make_plan, flags, bf16_available=False)
    if study is None:
        return
    plan = study.plan
    served = [cell for cells in plan.trials.values() for cell in cells]
    assert sorted(id(cell.config) for cell in plan.cells) == sorted(map(id, served))
    assert len(served) == math.prod(map(len, grid.values()))
    for trial_hash, cells in plan.trials.items():
        assert {cell.trial_hash for cell in cells} == {trial_hash}
        assert len({cell.replace(scaling_rule="fixed") for cell in cells}) == 1
        train, target = plan.train_examples, cells[0].target_batch_size
        steps = cells[0].steps_per_epoch(train)
        assert (steps - 1) * target < train <= steps * target
    assert plan_summary(study)
    assert plan_tables(plan)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_a_folder_whose_name_steers_a_terminal_is_to_be_renamed(tmp_path, encoder_folder):
    folder = tmp_path / "a\x1b]0;owned\x07"
    folder.symlink_to(encoder_folder)
    start = ["--space", "fixed_lr", "--demo", "--dry-run"]
    for argv in (
        [*start, "--models", str(folder)],
        [*start, "--set", f"dataset={folder}"],
        ["verify", "--models", str(folder)],
    ):
        said = refused_command(argv)
        assert "a\\x1b]0;owned\\x07' holds a character that cannot be shown" in said
        assert "rename a folder" in said
        assert "\x1b" not in said


def test_two_folders_of_one_name_are_refused(tmp_path, encoder_folder):
    places = [tmp_path / parent / "encoder-a" for parent in ("first", "second")]
    for place in places:
        place.parent.mkdir()
        place.symlink_to(encoder_folder)
    options = SweepOptions(space="fixed_lr", demo=True, models=[*map(str, places)])
    assert "are both called encoder-a" in refusal(make_plan, options, bf16_available=False)
