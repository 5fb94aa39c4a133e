"""Room on the disk: what a study may write, all of it, is counted before anything is trained."""

import re
import shutil
from dataclasses import replace

import pytest

import tune_main
from sweep.footprint import check_disk_space
from sweep.options import SweepOptions
from sweep.plan import make_plan
from sweep.storage import StudyStorage
from tests.helpers import refusal

DEMO = "--demo --models bert-tiny --target-batch-sizes 64 --dry-run".split()
GRID = [*"--space fixed_lr --seed".split(), *map(str, range(9)), *DEMO]
SEARCH = ["--space", "best_config", *DEMO]


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MLflow keeps models, beside its database
    with (storage := StudyStorage(str(tmp_path / "ray_results"), "films")).owned():
        yield storage


def test_checkpoints_and_models_on_one_disk_need_room_together(storage, tmp_path):
    options = SweepOptions(space="fixed_lr", demo=True, models=["bert-tiny"], target_batch_sizes=[64, 256])
    planned = make_plan(options, bf16_available=False)
    configs = list(planned.plan.configs.values())
    # bytes for each parameter: 52 for two checkpoints of four tensors (a trial in training), one of two (a
    # trained one) and three copies of weights; 104 for thirteen times two models. The disk has 130
    large = replace(planned.footprint, parameters={"bert-tiny": shutil.disk_usage(tmp_path).free // 130})
    kept, here = [configs[0]] * 13, "sqlite:///mlflow.db"
    assert "make room" in refusal(check_disk_space, large, configs, 1, storage, here, kept=kept)
    check_disk_space(large, configs, 1, storage, here, kept=[])
    check_disk_space(large, [], 1, storage, here, kept=kept)
    check_disk_space(large, configs, 1, storage, "http://127.0.0.1:5000", kept=kept)  # a disk of its own


def room(capsys, arguments):
    """What the dry run says of checkpoints and of models."""
    assert tune_main.main(arguments) == 0
    text = " ".join(capsys.readouterr().out.split())
    return re.search(
        r"disk: checkpoints ([\d.]+ .B) at most.*; models in MLflow ([\d.]+ .B)", text
    ).groups()


def test_a_search_needs_room_for_the_trials_that_confirm_its_best(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints, models = room(capsys, GRID)  # nine trials of the model
    nine = ["--confirm-seeds", "9"]
    assert room(capsys, [*SEARCH, *nine, "--generation-size", "2"]) == (checkpoints, models)
    assert room(capsys, [*SEARCH, *nine, "--generation-size", "9"]) == (checkpoints, models)
    searched, confirmed = room(capsys, [*SEARCH, "--confirm-seeds", "2", "--generation-size", "9"])
    assert searched == checkpoints
    assert confirmed != models
