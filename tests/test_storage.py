"""The study's folder: one command at a time, and nothing removed that is not the study's."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from errors import UserError
from sweep.storage import StudyStorage
from tests.helpers import message, refusal

ROOT = Path(__file__).parents[1]
HOLD = (
    "import sys; from sweep.storage import StudyStorage\n"
    "with StudyStorage(sys.argv[1], 'films').owned():\n"
    "    print('owned', flush=True); sys.stdin.read()"
)


@pytest.fixture
def storage(tmp_path):
    return StudyStorage(str(tmp_path), "films")


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the study."""
    arguments = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "owned\n"
        yield process
        process.kill()


def test_a_second_command_is_told_who_has_the_study_and_another_study_is_free(storage, holder, tmp_path):
    with pytest.raises(UserError) as raised, storage.owned():
        pass
    text = message(raised)
    assert text.startswith(f"study 'films' is being run by process {holder.pid} on ")
    assert "another --name" in text
    with StudyStorage(str(tmp_path), "books").owned():
        pass


def test_the_lock_ends_with_its_process_even_when_that_is_killed(storage, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with storage.owned():
        assert storage.owner["process"].startswith(f"process {os.getpid()} on ")


def storage_id(folder):
    with (storage := StudyStorage(str(folder), "films")).owned():
        return storage.owner["storage_id"]


def test_a_storage_is_known_by_the_same_id_to_every_command_and_a_copy_is_another_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    found = storage_id(one)
    assert storage_id(one) == found != storage_id(two)
    shutil.copy(one / "films.lock", two / "films.lock")
    assert storage_id(two) != found


def test_temporary_files_that_a_kill_left_are_removed_by_the_next_command(storage):
    before = tempfile.gettempdir()
    left = storage.path / "scratch" / "model"
    left.mkdir(parents=True)
    with storage.owned():
        assert not left.exists()
        assert Path(tempfile.mkdtemp()).parent == left.parent
    assert not left.parent.exists()
    assert tempfile.gettempdir() == before


def test_a_lock_file_that_cannot_be_opened_is_one_line(storage, tmp_path):
    (tmp_path / "films.lock").mkdir()
    with pytest.raises(UserError) as raised, storage.owned():
        pass
    assert "choose another --storage-path" in message(raised)


def test_only_unfinished_trials_and_what_others_put_there_are_left(storage):
    with storage.owned():
        checkpoint = storage.trial_folder("0123456789ab").path / "evaluation-000001"
        checkpoint.mkdir(parents=True)
        (storage.tune / "state").mkdir(parents=True)
        (storage.path / "thesis.txt").write_text("mine")
    assert checkpoint.is_dir()
    assert {path.name for path in storage.path.iterdir()} == {"trials", "thesis.txt"}


@pytest.mark.parametrize(
    "path", ["s3://bucket/folder", "/proc/nowhere", "a\0b", "~nobody-at-all/x", "x" * 5000, "/dev/null/x"]
)
def test_a_place_that_cannot_be_written_is_one_line(path):
    reason = refusal(StudyStorage, path, "films")
    assert "--storage-path" in reason
    assert reason.isprintable()
