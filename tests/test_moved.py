"""A study whose whole folder was moved elsewhere goes on there."""

import shutil
from collections import OrderedDict
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking._tracking_service import utils as mlflow_caches

from reports import write_report
from sweep.options import SweepOptions
from sweep.plan import make_plan
from sweep.testing import register_best
from tests.helpers import make_config, refusal
from tests.small_study import OPTIONS, STUDY, copy_study
from tracking import StudyStore


def hashes(*folders):
    options = SweepOptions(space="fixed_lr", demo=True, models=[str(folder) for folder in folders])
    return [*make_plan(options, bf16_available=False).plan.trials]


@pytest.fixture
def encoder(encoder_folder, tmp_path):
    return shutil.copytree(encoder_folder, tmp_path / "encoder")


def test_a_local_model_is_known_by_what_is_in_it_wherever_it_lies(encoder, tmp_path):
    before = hashes(encoder)
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(encoder, tmp_path / "elsewhere" / "renamed"))
    assert hashes(moved) == before
    (moved / "README.md").write_text("a note decides nothing")
    assert hashes(moved) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_another_content_is_another_trial(encoder, name):
    before = hashes(encoder)
    content = (encoder / name).read_bytes()
    # in JSON a blank more is the same model, in weights the last bytes are those of a number
    changed = content + b"\n" if name.endswith(".json") else content[:-4] + b"\0\0\0\0"
    (encoder / name).write_bytes(changed)
    assert not set(hashes(encoder)) & set(before)


def test_models_of_the_table_and_of_the_hub_are_known_by_their_names():
    assert make_config(model="bert-base").trial_hash == "798ec82e4c7f"
    assert make_config(model="some-org/some-encoder").trial_hash == "6afb40d9dfc5"
    assert hashes("bert-tiny")[0] == "c3480f9fcf62"


def test_two_folders_with_the_same_in_them_are_refused(encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "copy")
    line = refusal(hashes, encoder, tmp_path / "copy")
    assert line == f"models '{encoder}' and '{tmp_path}/copy' are the same, file by file: name one of them"


@pytest.fixture
def study(small_study, tmp_path, monkeypatch):
    """The folder of a study, which may be moved."""
    # MLflow keeps artifact repositories by run, and each run is now in two stores of this process
    monkeypatch.setattr(mlflow_caches, "_artifact_repos_cache", OrderedDict())
    copy_study(small_study, tmp_path / "before")
    return tmp_path / "before"


def test_what_a_moved_store_keeps_is_found_where_it_is_now(study, tmp_path):
    there = tmp_path / "after"
    shutil.move(study, there)
    said = []
    uri = f"sqlite:///{there}/mlflow.db"
    store = StudyStore(uri, STUDY, say=said.append)
    assert said == [f"the study's artifacts were moved: they are in {there}/mlruns/1 now"]
    for run in store.read_runs().trials.values():
        assert len(run.predictions("best")) == OPTIONS["eval_size"]
        assert run.download_model("best", tmp_path / run.run_id).is_dir()
    plan = make_plan(SweepOptions(**OPTIONS), bf16_available=False).plan
    register_best(plan, store.read_runs().trials, store, meets_others=True)
    assert write_report(uri, STUDY, str(there / "results")).page.is_file()
    mlflow.set_tracking_uri(uri)
    assert len(mlflow.pyfunc.load_model(f"models:/{STUDY}@best").predict(["a fine film"])) == 1
    assert StudyStore(uri, STUDY, say=said.append)
    assert len(said) == 1


def test_a_store_that_lost_its_artifacts_is_told_nothing(study, tmp_path, monkeypatch):
    """Such as those on a disk that is not mounted: the folder mlruns here is another store's."""
    (study / "mlruns").rename(tmp_path / "unmounted")
    (tmp_path / "mlruns" / "1" / "somebody-elses-run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    said = []
    store = StudyStore(f"sqlite:///{study}/mlflow.db", STUDY, say=said.append)
    assert said == []
    assert store.client.get_experiment("1").artifact_location == f"{study}/mlruns/1"
