"""``--physical-batch-size auto``: measured once, remembered, and never in the way of a study."""

import json
from dataclasses import replace
from io import StringIO

import pytest
import ray
from rich.console import Console
from sweep.assets import prepare_assets
from sweep.physical_batch import (
    FILE_NAME,
    FittingSize,
    measured_sizes,
    read_sizes,
    resized,
    with_measured_sizes,
    write_sizes,
)

from sweep.cluster import Resources
from sweep.options import SweepOptions
from sweep.plan import make_plan, plan_tables

CPU = Resources(gpus=0, cpus=1, concurrent=1)
GPU = Resources(gpus=1, cpus=1, concurrent=1)


@pytest.fixture(scope="module")
def plan():
    options = SweepOptions(
        space="batch_lr_grid",
        demo=True,
        models=["bert-tiny"],
        target_batch_sizes=[8, 64, 256],
        scaling_rules=["fixed"],
        precision="fp32",
        settings={"train_size": 100, "eval_size": 20, "max_length": 16},
    )
    return make_plan(options, bf16_available=False)


@pytest.fixture(scope="module")
def model_assets(plan):
    return {"bert-tiny": prepare_assets(plan.cells[0], plan.splits)}


@pytest.fixture(scope="module")
def machine():
    """Ray that believes in a GPU which PyTorch cannot find."""
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def shown(plan):
    console = Console(file=StringIO(), width=200)
    console.print(plan_tables(plan)[1])
    return console.file.getvalue()


# -- the file --------------------------------------------------------------------------------------


def test_sizes_are_read_as_they_were_written_and_added_to(tmp_path):
    path = tmp_path / FILE_NAME
    assert read_sizes(path) == {}
    one, other = FittingSize(512, 1024), FittingSize(64, 64)
    write_sizes(path, {"bert": one})
    write_sizes(path, {"modernbert": other})
    assert read_sizes(path) == {"bert": one, "modernbert": other}
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"64"', "\x00"])
def test_a_file_that_makes_no_sense_is_no_memory_and_is_replaced(tmp_path, text):
    path = tmp_path / FILE_NAME
    path.write_text(text)
    assert read_sizes(path) == {}
    write_sizes(path, {"bert": FittingSize(8, 16)})
    assert read_sizes(path) == {"bert": FittingSize(8, 16)}


@pytest.mark.parametrize(
    "entry",
    [64, None, {}, {"physical_batch_size": 64}]
    + [{"physical_batch_size": size, "limit": 64} for size in (0, -1, 1.5, "8", True, None)],
    ids=json.dumps,
)
def test_entries_that_make_no_sense_are_left_out(tmp_path, entry):
    good = {"physical_batch_size": 8, "limit": 64}
    (tmp_path / FILE_NAME).write_text(json.dumps({"bad": entry, "good": good}))
    assert read_sizes(tmp_path / FILE_NAME) == {"good": FittingSize(8, 64)}


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path):
    write_sizes(tmp_path / "absent" / FILE_NAME, {"bert": FittingSize(8, 16)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "limit", "asked", "answers"),
    [
        (512, 1024, 1024, True),
        (512, 1024, 4096, True),
        (64, 64, 64, True),
        (64, 64, 32, True),
        (64, 64, 128, False),
    ],
)
def test_a_search_that_ended_at_its_limit_knows_nothing_beyond(size, limit, asked, answers):
    assert FittingSize(size, limit).answers(asked) is answers


# -- in a study ------------------------------------------------------------------------------------


def test_on_the_cpu_auto_stays_64_and_nothing_is_measured(plan, tmp_path):
    assert {cell.physical_batch_size for cell in plan.cells} == {64}
    waiting = replace(plan, measures_physical=True)
    assert with_measured_sizes(waiting, plan.cells, {}, CPU, tmp_path) == waiting
    assert list(tmp_path.iterdir()) == []


def test_a_given_size_is_not_measured(plan, tmp_path):
    given = replace(plan, measures_physical=False)
    assert with_measured_sizes(given, plan.cells, {}, GPU, tmp_path) == given


def test_sizes_reach_every_trial_and_exceed_no_target_batch_size(plan):
    larger = resized(replace(plan, measures_physical=True), {"bert-tiny": 128})
    assert [(c.target_batch_size, c.physical_batch_size) for c in larger.cells] == [
        (8, 8),
        (64, 64),
        (256, 128),
    ]
    assert larger.trials.keys() == plan.trials.keys()
    assert resized(plan, {}).cells == plan.cells


def test_the_plan_shows_auto_until_the_size_is_known(plan):
    assert "auto" not in shown(plan)
    waiting = replace(plan, measures_physical=True)
    assert shown(waiting).count("auto") == 2 * len(plan.trials)
    assert "auto" not in shown(resized(waiting, {"bert-tiny": 128}))


def test_what_was_measured_is_remembered_until_more_is_asked(plan, model_assets, machine, tmp_path, capsys):
    small, large = plan.cells[:1], plan.cells

    def ask(cells):
        sizes = measured_sizes(cells, model_assets, CPU, tmp_path)
        return sizes["bert-tiny"], capsys.readouterr().out.split("(")[-1].strip()

    assert ask(small) == (8, "measured)")
    assert ask(small) == (8, "remembered)")
    assert ask(large) == (100, "measured)")  # the training examples: no window has more
    assert ask(small) == (100, "remembered)")
    (key,) = read_sizes(tmp_path / FILE_NAME)
    assert all(part in key for part in ("bert-tiny", "16 tokens", "CPU", "fp32", "adam", "torch 2"))


def test_a_gpu_that_cannot_be_measured_does_not_stop_the_study(
    plan, model_assets, machine, tmp_path, capsys
):
    waiting = replace(plan, measures_physical=True)
    after = with_measured_sizes(waiting, plan.cells[1:], model_assets, GPU, tmp_path)
    assert after == replace(plan, measures_physical=False)
    assert list(tmp_path.iterdir()) == []
    printed = " ".join(capsys.readouterr().out.split())
    assert "physical batch size of bert-tiny: 64, not measured" in printed
    assert "PyTorch cannot use" in printed
