"""Bad input: one clear line, exit code 2, before anything is trained or written."""

import errno
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import tune_main
from errors import StoppedError
from sweep.jobs import project_with
from sweep.options import SweepOptions, parse_options
from sweep.plan import make_plan
from tests.helpers import outcome, refused_command
from tests.test_search_spaces import OWN
from trainables.encoders import load_config

DEMO = ["--space", "fixed_lr", "--demo"]


def said(argv):
    code, out, err = outcome(argv)
    assert code == 0, err
    return out


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


NO_CLUSTER = ["--address", f"http://127.0.0.1:{closed_port()}"]
SHARED = ["--storage-path", "/shared/checkpoints", "--results-path", "/shared/results"]
SHARED += ["--tracking-uri", "http://127.0.0.1:5000", "--precision", "fp32"]

SUBMIT = ["submit", *NO_CLUSTER, *DEMO, *SHARED]
SQLITE = ["--tracking-uri", "sqlite:///mlflow.db"]
TWO_SEEDS = ["--seed", "1", "2"]

BAD_INPUT = {
    "no address": (["submit", *DEMO], "--address"),
    "no cluster": (SUBMIT, "the job server at http://127.0.0.1"),
    "no cluster to ask": (["status", *NO_CLUSTER], "the job server at http://127.0.0.1"),
    "no job server": (["status", "--address", "127.0.0.1:8265"], "give http://HOST:8265"),
    "port": (["status", "--address", "http://127.0.0.1:99999"], "the job server at http://127.0.0.1:99999"),
    "a job's own database": ([*SUBMIT, *SQLITE], "must be a server that the cluster reaches"),
    "a job's name": ([*SUBMIT, "--name", "not/allowed"], "study name"),
    "a job's own folder": (["submit", *NO_CLUSTER, *DEMO], "--storage-path must be an absolute path"),
    "space of a job": (["submit", *NO_CLUSTER, "--space", "batch_lr_gird"], "did you mean batch_lr_grid"),
    "nothing": ([], "give --space NAME"),
    "flag": (["--space", "fixed_lr", "--epoch", "3"], "did you mean --epochs"),
    "number": ([*DEMO, "--epochs", "three"], "invalid int value"),
    "no name": (["report"], "--name"),
    "space": (["--space", "batch_lr_gird"], "did you mean batch_lr_grid"),
    "model folder": ([*DEMO, "--models", "./no_such_folder"], "./no_such_folder"),
    "model": ([*DEMO, "--models", "bert-bse"], "bert-bse"),
    "rule": ([*DEMO, "--scaling-rules", "sqr"], "did you mean sqrt"),
    "engine": ([*DEMO, "--engine", "troch"], "did you mean torch"),
    "precision": ([*DEMO, "--precision", "fp61"], "precision"),
    "budget": ([*DEMO, "--budget", "step"], "did you mean steps"),
    "budget of a search": (["--space", "best_config", "--budget", "steps"], "--budget steps is for a grid"),
    "steps": ([*DEMO, "--set", "steps=100"], "use --budget steps with --epochs"),
    "evaluations": ([*DEMO, "--evaluations", "21"], "21 evaluations are more than the 20 steps"),
    "epochs": ([*DEMO, "--epochs", "0"], "epochs must be greater than 0"),
    "learning rate": ([*DEMO, "--base-lr", "nan"], "--base-lr must be a finite number"),
    "physical batch size": ([*DEMO, "--physical-batch-size", "big"], "must be a number or auto"),
    "setting": ([*DEMO, "--set", "droput=0.2"], "did you mean head_dropout"),
    "setting value": ([*DEMO, "--set", "head_dropout=much"], "head_dropout must be a valid number"),
    "setting form": ([*DEMO, "--set", "dropout"], "key=value"),
    "setting of an axis": ([*DEMO, "--set", "seed=3"], "use --seed"),
    "a file": (["--space", "./nowhere.py", "--demo"], "./nowhere.py: No such file or directory"),
    "a job's file": (["submit", *NO_CLUSTER, "--space", "nowhere.py", *SHARED], "nowhere.py: No such file"),
    "control seeds": ([*DEMO, *TWO_SEEDS, "--control-seeds", "1"], "1 control seeds are fewer than"),
    "no control seeds": ([*DEMO, "--control-seeds", "0"], "--control-seeds must be greater than or equal"),
    "control of a search": (["--space", "best_config", "--control-seeds", "3"], "is for a grid"),
    "twice": ([*DEMO, "--target-batch-sizes", "64", "64"], "named twice"),
    "data file": ([*DEMO, "--dataset", "reviews.csv"], "no such data set"),
    "study name": ([*DEMO, "--name", "../escape"], "study name"),
    "storage": ([*DEMO, "--storage-path", "/proc/nowhere"], "choose another --storage-path"),
    "tracking": ([*DEMO, "--tracking-uri", "file:mlruns"], "sqlite:///"),
    "server": ([*DEMO, "--tracking-uri", f"http://127.0.0.1:{closed_port()}"], "does not answer"),
    "train size": ([*DEMO, "--train-size", "4000000"], "--train-size 4000000"),
    "max length": ([*DEMO, "--max-length", "2000"], "more than the 512 positions of bert-tiny"),
    "warmup": ([*DEMO, "--set", "warmup_ratio=0.1"], "does nothing under scheduler constant"),
    "gpus": ([*DEMO, "--gpus-per-trial", "2"], "--gpus-per-trial must be less than or equal to 1"),
    "cpus": ([*DEMO, "--cpus-per-trial", "0"], "--cpus-per-trial must be greater than 0"),
    "concurrency": ([*DEMO, "--max-concurrent", "0"], "--max-concurrent must be greater than"),
    "cluster": (["--space", "fixed_lr", "--ray-address", "127.0.0.1:1"], "say --precision"),
    "hub data": (["--space", "fixed_lr", "--models", "bert-tiny"], "'stanfordnlp/imdb' cannot be read"),
    "hub model": (["--space", "fixed_lr", "--dataset", "demo-reviews"], "cannot be loaded"),
    "report": (["report", "--name", "nothing"], "there is no mlflow.db here"),
    "analyze": (["analyze", "--name", "nothing"], "there is no mlflow.db here"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(case, tmp_path):
    argv, expected = BAD_INPUT[case]
    assert expected in refused_command(argv)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_list_spaces_names_every_question():
    names = (
        "batch_lr_grid best_config equal_steps fixed_lr linear_ablation seeds small_batch sqrt_lr".split()
    )
    assert [line.split()[0] for line in said(["--list-spaces"]).splitlines()] == names


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("--space best_config --trials 9", "9 trials in generations of 4, sampler tpe, stopping median"),
        ("--space best_config --trials 9", "0.0001 to 0.01, by its logarithm"),
        ("--space fixed_lr", "torch engine, fp32"),  # on every machine
        ("--space fixed_lr --precision bf16", "torch engine, bf16"),  # flags beat --demo
    ],
)
def test_a_dry_run_says_what_is_planned(words, shown):
    assert shown in said([*words.split(), "--demo", "--dry-run"])


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    out = said(["--space", "batch_lr_grid", "--demo", "--dry-run"])
    assert "18 cells, 14 unique trials" in out
    assert "3,200 train, 400 val, 400 test\n" in out
    assert "  rows read: 4,000\n  left out: 0 exact duplicates\n  class shares: negative" in out
    assert "checkpoints" in out
    assert "fixed, sqrt, linear" in out
    # target 1024 at physical 64; linear: 16 times 5e-4; 5 epochs of 4 steps, the last one of 128 examples
    row = next(line for line in out.splitlines() if "0.008" in line)
    numbers = ["1024", "64", "0.008", "20", "5", "16,000", "×1.000", "128", "42"]
    assert [cell.strip() for cell in row.strip("│").split("│")][3:] == numbers
    assert not list(tmp_path.iterdir())


def planned(argv):
    return make_plan(parse_options(SweepOptions, argv), bf16_available=False).plan


@pytest.mark.parametrize(
    ("given", "seeds", "control"),
    [
        ([], {1, 2, 3}, {1, 2, 3, 4, 5, 6}),
        (["--seed", "5", "4"], {4, 5}, {4, 5, 6, 7}),  # as many times those of the others
        (["--control-seeds", "4"], {1, 2, 3}, {1, 2, 3, 4}),
        (["--seed", "9", "8", "--control-seeds", "3"], {8, 9}, {8, 9, 10}),
        (["--seed", "9"], {9}, {9}),  # one training each: no cell has more
    ],
)
def test_seeds_and_those_of_the_control_cell(given, seeds, control):
    cells = [cell.config for cell in planned(["--space", "seeds", "--demo", *given]).cells]
    assert {cell.seed for cell in cells if cell.target_batch_size == 64} == control
    assert {cell.seed for cell in cells if cell.target_batch_size != 64} == seeds


def test_where_flags_leave_the_baseline_out_the_first_value_takes_its_place():
    words = "--target-batch-sizes 256 1024 --seed 1 2 --control-seeds 3".split()
    plan = planned([*DEMO, *words])
    assert plan.baselines == {"target_batch_size": 256}
    found = {(cell.config.target_batch_size, cell.config.seed) for cell in plan.cells}
    assert found == {(256, 1), (256, 2), (256, 3), (1024, 1), (1024, 2)}


def test_a_baseline_among_models_is_called_as_the_cells_call_it(tmp_path):
    load_config("bert-tiny").save_pretrained(tmp_path / "encoders" / "ours")
    text = OWN.replace('["bert-tiny"]', '("./encoders/ours", "bert-tiny")')
    text = text.replace('{"target_batch_size": 64}', '{"model": "./encoders/ours"}')
    (tmp_path / "mine.py").write_text(text)
    models = ["--models", "bert-tiny", "./encoders/ours"]
    plan = planned(["--space", "mine.py", *models, "--dataset", "demo-reviews"])
    assert plan.baselines == {"model": "ours"}
    assert "ours" in {cell.config.model_name for cell in plan.cells}


README = (Path(tune_main.__file__).parent / "README.md").read_text()


def test_the_space_of_the_readme_is_planned_as_it_says(tmp_path):
    text = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "SPACE" in block)
    command = re.search(r"python tune_main.py (--space \./my_space.py .*)", README)[1]
    assert len(text.splitlines()) == 10
    (tmp_path / "my_space.py").write_text(text)
    out = said([*command.split(), "--demo", "--models", "bert-tiny", "--dry-run"])
    assert "study my_space-demo: Is 32 as good as 256 for my reviews?" in out
    assert "18 cells, 18 unique trials (6 seeds of a control cell, 3 of any other)" in out
    plan = planned([*command.split(), "--demo", "--models", "bert-tiny"])
    assert (plan.space.name, plan.margin) == ("my_space", 1.0)
    assert plan.baselines == {"target_batch_size": 256}


def test_a_space_of_ones_own_travels_with_the_job(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    study = SweepOptions(space=str(file), demo=True)
    with project_with(study) as (folder, words):
        there = [sys.executable, "tune_main.py", *words, "--dry-run"]
        planned_there = subprocess.run(there, cwd=folder, check=True, capture_output=True, text=True)
    assert "study mine-demo:" in planned_there.stdout


def test_explicit_flags_beat_demo():
    out = said([*DEMO, "--base-lr", "0.5", "--models", "bert-tiny", "--dry-run"])
    assert "0.5" in out
    assert "modernbert-tiny" not in out
    assert "demo-reviews" in out


def test_verify_passes_and_exits_zero():
    assert "20 of 20 gradients equal the whole window's" in said(["verify", "--models", "bert-tiny"])


def let_sweeps_raise(error, monkeypatch):
    def sweep(options):
        raise error

    monkeypatch.setitem(tune_main.COMMANDS, "sweep", (SweepOptions, sweep))


def test_an_error_that_the_user_cannot_mend_keeps_its_traceback(monkeypatch):
    let_sweeps_raise(FileNotFoundError("a file of this program"), monkeypatch)
    with pytest.raises(FileNotFoundError):
        tune_main.main(DEMO)


def test_after_fresh_the_advice_is_to_continue_without_it(monkeypatch):
    let_sweeps_raise(StoppedError("training stopped: run the same command again to continue"), monkeypatch)
    code, _, err = outcome([*DEMO, "--fresh"])
    assert code == 1
    assert err.endswith("to continue, without --fresh if it has said that it starts anew\n")


def test_a_full_disk_is_one_line(monkeypatch):
    let_sweeps_raise(OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    code, _, err = outcome(DEMO)
    assert code == 1
    assert err == "error: [Errno 28] No space left on device\n"


def test_options_are_given_on_as_they_were_given():
    words = [*DEMO, "--seed", "1", "2", "--fresh", "--base-lr", "0.001", "--set", "a=1", "--set", "b=2"]
    options = parse_options(SweepOptions, words)
    assert sorted(options.words()) == sorted(words)
    assert parse_options(SweepOptions, options.words()) == options
