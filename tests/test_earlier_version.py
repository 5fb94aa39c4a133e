"""A study that an earlier version (51ccaba) wrote, and was killed in, is finished and reported by this one.

Of two trials one was tested; the other has one of its three epochs in a checkpoint. The CSV files are
what that version itself made of the study after it had finished it.
"""

import contextlib
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from reports.inside import write_inside
from tests.test_study import run

HERE = Path(__file__).parent / "earlier_version"
COMMAND = (
    "--space fixed_lr --demo --name earlier --models bert-tiny --dataset reviews.csv --epochs 3 "
    "--base-lr 3e-3 --max-length 16 --precision fp32 --max-concurrent 1 --target-batch-sizes 64 256 "
    "--take-over"  # it was killed in a storage of which this one is a copy
).split()
_PLACES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of the study, finished by this version."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(HERE / "study.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as store:
        for table, column in _PLACES.items():  # MLflow keeps absolute paths
            store.execute(f"update {table} set {column} = replace({column}, '/study', '{folder}')")
        store.commit()
    code, text = run(folder, *COMMAND)
    assert code == 0, text
    assert "resuming: 1 of 2 trials are finished" in text
    return folder


def test_it_is_finished_to_the_same_results(study):
    found = pd.read_csv(study / "results" / "earlier" / "results.csv")
    expected = pd.read_csv(HERE / "results.csv")
    pd.testing.assert_frame_equal(found[expected.columns], expected, rtol=1e-9)


def test_its_comparisons_are_the_same(study):
    """Intervals and sentences are those of today, the rest is of then."""
    found = pd.read_csv(study / "results" / "earlier" / "comparisons.csv")
    expected = pd.read_csv(HERE / "comparisons.csv")
    pd.testing.assert_frame_equal(found[expected.columns], expected, rtol=1e-9)


def test_its_models_are_looked_into(study, tmp_path, monkeypatch):
    shutil.copytree(study, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(study)
    section, _ = write_inside(f"sqlite:///{study}/mlflow.db", "earlier", str(tmp_path / "results"))
    assert "On 228 of 228 predictions the reloaded models repeat" in section.prose[0]
