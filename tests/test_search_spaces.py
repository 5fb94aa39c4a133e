import itertools
from dataclasses import replace

import pytest

from search_spaces import SPACES, SearchSpace, Space, TrialConfig, find_space
from search_spaces.given import first_said
from search_spaces.search_space import LogUniform
from search_spaces.stages import unique_trials
from search_spaces.update import SCALING_RULES, learning_rate_factor
from sweep.options import SweepOptions, parse_setting
from sweep.resolve import resolve_space
from tests.helpers import TINY_MODELS, make_config, refusal

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
    cells = SPACES["batch_lr_grid"].replace(seeds=tuple(range(seeds))).cells()
    assert len(cells) == len({(c.model, c.target_batch_size, c.scaling_rule, c.seed) for c in cells})
    trials = unique_trials(cells).values()
    assert (len(cells), len(trials)) == (18 * seeds, 14 * seeds)
    shared = [cell.target_batch_size for group in trials if len(group) > 1 for cell in group]
    assert set(shared) == {64}  # the reference batch size, where the rules are the same


@pytest.mark.parametrize("name", [name for name in SPACES if name not in {"best_config", "seeds"}])
def test_every_grid_is_a_question_about_valid_cells(name):
    space = find_space(name)
    cells = space.cells()
    assert space.name == name
    assert space.question.endswith("?")
    assert len(cells) == len(space.models) * len(space.target_batch_sizes) * len(space.scaling_rules)
    assert all(0 < cell.learning_rate <= 8e-4 for cell in cells)


def make_space(**changes):
    values = {"name": "mine", "question": "Is it?", "models": ("bert-tiny", "modernbert-tiny")}
    values |= {"target_batch_sizes": (64, 256), "scaling_rules": ("fixed", "sqrt")}
    return Space(**values | {"baselines": {"target_batch_size": 64, "scaling_rule": "fixed"}} | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": "bert-tiny"}, "models must be a valid tuple, not 'bert-tiny'"),
        ({"models": ()}, "models is empty"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": (True,)}, "seeds must be a valid integer, not True"),
        ({"seeds": (1, -2)}, "seed must be greater than or equal to 0"),
        ({"target_batch_sizes": ("64",)}, "target_batch_sizes must be a valid integer, not '64'"),
        ({"target_batch_sizes": (64, 64)}, "target batch sizes are named twice: 64, 64"),
        ({"target_batch_sizes": (0,), "baselines": {}}, "target_batch_size must be greater than 0, not 0"),
        ({"scaling_rules": ("fixed", "sqr")}, "unknown scaling rule 'sqr': did you mean sqrt?"),
        ({"scaling_rule": ("fixed",)}, "unknown field of Space 'scaling_rule': did you mean scaling_rules"),
        ({"settings": {"epoch": 3}}, "unknown configuration key 'epoch': did you mean epochs?"),
        ({"settings": {"epochs": "3"}}, "epochs must be a valid integer, not '3'"),
        ({"settings": {"seed": 3}}, "settings cannot have a seed: name it in seeds"),
        ({"baselines": {"batch_size": 64}}, "unknown axis of baselines 'batch_size'"),
        ({"baselines": {"seed": 42}}, "unknown axis of baselines 'seed'"),
        ({"baselines": {"target_batch_size": 128}}, "the baseline 128 is none of the target_batch_sizes"),
        ({"margin": 0}, "margin must be greater than 0"),
        ({"margin": float("nan")}, "margin must be a finite number"),
        ({"control_seeds": 2, "seeds": (1, 2, 3)}, "2 control seeds are fewer than the 3 seeds"),
        ({"control_seeds": 2, "baselines": {}}, "control seeds need baselines"),
        ({"control_seeds": 10**9}, "control_seeds must be less than or equal to 100"),
    ],
)
def test_a_space_that_cannot_be_is_refused_in_one_line(changes, words):
    assert words in refusal(make_space, **changes)


def make_search(**changes):
    values = {"name": "mine", "question": "Is it?", "parameters": {"base_lr": LogUniform(1e-5, 1e-3)}}
    settings = {"model": "bert-tiny", "scaling_rule": "fixed", "target_batch_size": 64}
    return SearchSpace(**values | {"settings": settings} | changes)


@pytest.mark.parametrize("space", [make_space, make_search])
def test_a_question_is_one_line_that_can_be_shown(space):
    assert space(question="Is 32\n    as good?").question == "Is 32 as good?"
    assert "cannot be shown" in refusal(space, question="Is \x1b[31m32 as good?")


def test_a_space_without_its_question_says_so():
    assert refusal(Space, name="mine", models=["bert-tiny"]) == (
        "Space lacks question, target_batch_sizes, scaling_rules"
    )


def test_lists_are_as_good_as_tuples():
    assert make_space(models=["bert-tiny"]) == make_space(models=("bert-tiny",))


def seeds_by_point(space):
    found = {}
    for cell in space.cells():
        point = (cell.model, cell.target_batch_size, cell.scaling_rule)
        found[point] = (*found.get(point, ()), cell.seed)
    return found


def test_the_control_cell_alone_has_more_seeds_and_all_cells_of_its_trials_have_them():
    space = make_space(seeds=(7, 2), control_seeds=4)
    for (_, batch, _), seeds in seeds_by_point(space).items():
        # at the reference batch size both rules are one trial
        assert seeds == ((7, 2, 8, 9) if batch == 64 else (7, 2))
    assert len(unique_trials(space.cells())) == 2 * (4 + 2 * 2)


def test_where_no_cells_share_a_trial_one_has_more_seeds():
    baselines = {"target_batch_size": 256, "scaling_rule": "sqrt"}
    found = seeds_by_point(make_space(baselines=baselines, control_seeds=3, seeds=(1, 2)))
    assert {point[1:] for point, seeds in found.items() if seeds == (1, 2, 3)} == {(256, "sqrt")}
    assert {seeds for point, seeds in found.items() if point[1:] != (256, "sqrt")} == {(1, 2)}


def test_with_one_seed_no_cell_has_more():
    several = "control seeds need two seeds or more of the other cells"
    assert refusal(make_space, control_seeds=3, seeds=(1,)).startswith(several)
    options = SweepOptions(space="seeds", seeds=[5])
    assert {cell.seed for cell in resolve_space(options, bf16_available=False).cells()} == {5}


def test_the_space_of_seeds_is_the_grid_with_twice_the_seeds_of_its_control_cells():
    space, grid = SPACES["seeds"], SPACES["batch_lr_grid"]
    assert space.control_seeds == 2 * len(space.seeds) == 6
    assert (space.models, space.baselines) == (grid.models, grid.baselines)
    trials = unique_trials(space.cells())
    assert (len(space.cells()), len(trials)) == (18 * 3 + 2 * 3 * 3, 14 * 3 + 2 * 3)


def test_small_batches_and_large_ones_are_compared_with_the_largest_that_is_not_accumulated():
    space = SPACES["small_batch"]
    assert space.target_batch_sizes == (1, 4, 16, 64, 256, 1024)
    assert space.baselines == {"target_batch_size": 64}
    accumulated = {cell.target_batch_size: cell.accumulation_steps > 1 for cell in space.cells()}
    assert accumulated == {1: False, 4: False, 16: False, 64: False, 256: True, 1024: True}


# -- spaces in files -------------------------------------------------------------------------------

OWN = """\
from search_spaces import Space

SPACE = Space(
    name="mine",
    question="Is 256 as good as 64?",
    models=["bert-tiny"],
    target_batch_sizes=(64, 256),
    scaling_rules=("fixed",),
    baselines={"target_batch_size": 64},
)
"""
OWN_SEARCH = """\
from search_spaces.search_space import Choice, LogUniform, SearchSpace

SPACE = SearchSpace(
    name="box",
    question="Which is best?",
    parameters={"base_lr": LogUniform(1e-5, 1e-3), "model": Choice(("bert-tiny",))},
    settings={"scaling_rule": "fixed", "target_batch_size": 64},
)
"""


def written(folder, text):
    file = folder / "mine.py"
    file.write_text(text)
    return str(file)


def test_a_file_of_ones_own_holds_a_grid_or_a_search(tmp_path):
    assert find_space(written(tmp_path, OWN)).target_batch_sizes == (64, 256)
    search = find_space(written(tmp_path, OWN_SEARCH))
    assert isinstance(search, SearchSpace)
    assert search.models == ("bert-tiny",)


@pytest.mark.parametrize(
    ("text", "there", "instead", "words"),
    [
        (OWN, "models=", "models=,", ", line 6: "),  # the words are the interpreter's
        (OWN, "question", "qestion", ", line 3: unknown field of Space 'qestion': did you mean question"),
        (OWN, '("fixed",)', '("fixd",)', ", line 3: unknown scaling rule 'fixd': did you mean fixed?"),
        (OWN, "(64, 256)", '("64", 256)', ", line 3: target_batch_sizes must be a valid integer, not '64'"),
        (OWN, "= Space(", "= Spce(", ", line 3: NameError: name 'Spce' is not defined"),
        (OWN, "import Space", "import Spaec", ", line 1: ImportError: cannot import name 'Spaec'"),
        (OWN, "import Space", "import Space; exit(3)", ", line 1: SystemExit: 3"),
        (OWN, "(64, 256)", "(64, 1 // 0)", ", line 7: ZeroDivisionError"),
        (OWN, "SPACE =", "SPCE =", " has no SPACE: write SPACE = Space(...)"),
        (OWN, "= Space(", "= dict(", ": SPACE is a dict: make it a Space or a SearchSpace"),
        (OWN, '"mine"', '"fixed_lr"', ": fixed_lr is the name of another space: choose another"),
        (OWN, "SPACE", "\0", ": source code string cannot contain null bytes"),
        (OWN_SEARCH, "settings", "setings", ", line 3: unknown field of SearchSpace 'setings'"),
        (OWN_SEARCH, "1e-5, 1e-3", "1e-5", ", line 6: TypeError: LogUniform() missing 1 required"),
        (OWN_SEARCH, "1e-5, 1e-3", "1e-3, 1e-5", ", line 3: base_lr has a range from 0.001 to 1e-05"),
        (OWN_SEARCH, '"fixed"', '"fixd"', ": unknown scaling rule 'fixd': did you mean fixed?"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_the_file_and_the_line(tmp_path, text, there, instead, words):
    file = written(tmp_path, text.replace(there, instead))
    assert refusal(find_space, file).startswith(file + words)


def test_a_command_runs_the_file_once(tmp_path, capsys):
    options = SweepOptions(space=written(tmp_path, OWN + "print('run')"))
    assert resolve_space(options, bf16_available=False).name == options.study == "mine"
    assert capsys.readouterr().out.split() == ["run"]


def test_a_file_that_is_not_there_says_so():
    assert refusal(find_space, "nowhere/mine.py") == "nowhere/mine.py: No such file or directory"


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
    *((name, "sometimes") for name in ("duplicates", "splits", "encoding")),
    ("encoding", "base64"),  # of Python's, and no encoding of text
    ("max_length", 2),
    ("seed", 2**63),
    ("split_seed", 2**32),
    ("engine", ["torch"]),
    ("model", 7),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_bad_value_is_refused_in_one_line_that_names_the_field(field, value):
    reason = refusal(make_config, **{field: value})
    spelled = {
        "scaling rule": "scaling_rule",
        "way with duplicates": "duplicates",
        "kind of splits": "splits",
    }
    for words, name in spelled.items():
        reason = reason.replace(words, name)
    assert field in reason


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
        (True, {"duplicates": "keep", "splits": "own", "encoding": "cp1252", "group_column": "film"}),
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
        ("head_dropout=0.2", "head_dropout", 0.2),
        ("base_lr=1e-4", "base_lr", 1e-4),
        ("epochs=3", "epochs", 3),
        ("model=a=b", "model", "a=b"),
        ("group_column=patient", "group_column", "patient"),
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
        ("duplicates=fold", "unknown way with duplicates 'fold': did you mean folded?"),
    ],
)
def test_setting_that_cannot_be_read_says_why(text, words):
    assert words in refusal(parse_setting, text)


# -- who says what ---------------------------------------------------------------------------------

RANKS = ("flag", "own", "demo", "default")


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(RANKS, 2)])
def test_of_two_that_say_it_the_first_in_rank_is_heard(first, second):
    nobody = {rank: {} for rank in RANKS}
    said = first_said(**nobody | {first: {"epochs": 1, "base_lr": 1.0}, second: {"epochs": 2, "seed": 2}})
    assert said == {"epochs": 1, "base_lr": 1.0, "seed": 2}


def resolved(**options):
    return resolve_space(SweepOptions(**options), bf16_available=True)


SAYS = 'settings={"base_lr": 3e-5, "physical_batch_size": 8},'


def test_the_demo_changes_what_a_file_of_ones_own_does_not_say(tmp_path):
    file = written(
        tmp_path, OWN.replace("bert-tiny", "ours").replace("    baselines", f"    {SAYS}\n    baselines")
    )
    space = resolved(space=file, demo=True)
    assert space.models == ("ours",)
    (cell, *_) = space.cells()
    assert (cell.base_lr, cell.physical_batch_size) == (3e-5, 8)
    assert (cell.dataset, cell.precision) == ("demo-reviews", "fp32")
    assert resolved(space=file, demo=True, models=["other"], base_lr=1.0).cells()[0].base_lr == 1.0
    assert resolved(space=file).cells()[0].precision == "bf16"
    says_nothing = resolved(space=written(tmp_path, OWN), demo=True)
    assert says_nothing.cells()[0].base_lr == 5e-4
    says_more = SAYS.replace("8", '8, "precision": "bf16", "dataset": "mine.csv"')
    (cell, *_) = resolved(
        space=written(tmp_path, OWN.replace("    baselines", f"    {says_more}\n    baselines")), demo=True
    ).cells()
    assert (cell.dataset, cell.precision) == ("mine.csv", "bf16")


@pytest.mark.parametrize("said", [{"assignments": ["base_lr=0.002", "epochs=3"]}, {"base_lr": 0.002}])
def test_the_demo_does_not_change_what_set_or_a_flag_says(tmp_path, said):
    """Without, base_lr would be the demo's 5e-4, or the file's 3e-5, or searched."""
    own = written(tmp_path, OWN.replace("    baselines", f"    {SAYS}\n    baselines"))
    for space in ("batch_lr_grid", own):
        assert {cell.base_lr for cell in resolved(space=space, demo=True, **said).cells()} == {0.002}
    own = written(tmp_path, OWN_SEARCH.replace('("bert-tiny",)', '("a", "b")'))
    for space in ("best_config", own):
        search = resolved(space=space, demo=True, **said)
        assert "base_lr" not in search.parameters
        assert search.settings["base_lr"] == 0.002


def test_the_demo_changes_what_the_spaces_here_say():
    (cell, *_) = resolved(space="batch_lr_grid", demo=True).cells()
    assert (cell.model, cell.base_lr, cell.dataset) == ("bert-tiny", 5e-4, "demo-reviews")
    assert resolved(space="search_spaces/best_config.py", demo=True).models == TINY_MODELS  # by its path


def test_the_demo_searches_in_the_box_of_ones_own(tmp_path):
    found = resolved(space=written(tmp_path, OWN_SEARCH.replace('("bert-tiny",)', '("a", "b")')), demo=True)
    assert found.models == ("a", "b")
    assert found.parameters["base_lr"].ends == (1e-5, 1e-3)
    assert found.settings["dataset"] == "demo-reviews"
    shipped = resolved(space="best_config", demo=True)
    assert shipped.models == TINY_MODELS
    assert shipped.parameters["base_lr"].ends == (1e-4, 1e-2)


# -- a rule that moves more than the learning rate --------------------------------------------------


def test_whatever_a_rule_sets_is_hashed_and_what_no_optimizer_takes_is_refused(monkeypatch):
    def moving(base, ratio):
        return replace(base, beta2=1 - ratio * (1 - base.beta2), weight_decay=base.weight_decay / ratio)

    monkeypatch.setitem(SCALING_RULES, "moving", moving)
    fixed, moved = (make_config(scaling_rule=rule, weight_decay=0.1) for rule in ("fixed", "moving"))
    assert fixed.trial_hash == moved.trial_hash  # at the reference batch size
    fixed, moved = (config.replace(target_batch_size=256) for config in (fixed, moved))
    assert moved.update.arguments() == {
        "lr": fixed.learning_rate,
        "weight_decay": 0.025,
        "betas": (0.9, pytest.approx(0.996)),
        "eps": 1e-8,
    }
    without_decay = moved.replace(weight_decay=0.0)
    assert len({config.trial_hash for config in (fixed, moved, without_decay)}) == 3
    assert "which no optimizer takes" in refusal(moved.replace, target_batch_size=128_000)
