"""The study's folder: one invocation at a time, and nothing removed that is not the study's."""

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
from tests.helpers import message

ROOT = Path(__file__).parents[1]
HOLD = (
    "import sys; from sweep.storage import StudyStorage\n"
    "with StudyStorage(sys.argv[1], 'films').lock():\n"
    "    print('locked', flush=True); sys.stdin.read()"
)


@pytest.fixture
def storage(tmp_path):
    return StudyStorage(str(tmp_path), "films")


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked the study."""
    arguments = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_invocation_is_told_who_has_the_study(storage, holder):
    with pytest.raises(UserError) as raised, storage.lock():
        pass
    text = message(raised)
    assert text.startswith(f"study 'films' is being run by process {holder.pid} on ")
    assert "another --name" in text


def test_another_study_is_free(tmp_path, holder):
    with StudyStorage(str(tmp_path), "books").lock():
        assert f"process {os.getpid()} on " in (tmp_path / "books.lock").read_text()
        assert f"process {holder.pid} on " in (tmp_path / "films.lock").read_text()


def test_the_lock_ends_with_its_process_even_when_that_is_killed(storage, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with storage.lock():
        assert str(os.getpid()) in (storage.root / "films.lock").read_text()


def test_a_storage_is_known_by_the_same_id_to_every_invocation(tmp_path, storage):
    again, other = StudyStorage(str(tmp_path), "films"), StudyStorage(str(tmp_path / "other"), "films")
    for one in (storage, again, other):
        with one.lock():
            assert one.holder["process"].startswith(f"process {os.getpid()} on ")
    assert again.holder["storage_id"] == storage.holder["storage_id"] != other.holder["storage_id"]


def test_a_copy_of_a_storage_is_another_one(tmp_path, storage):
    with storage.lock():
        pass
    shutil.copytree(storage.root, tmp_path / "copy")
    copy = StudyStorage(str(tmp_path / "copy"), "films")
    with copy.lock():
        assert copy.holder["storage_id"] != storage.holder["storage_id"]


def test_temporary_files_that_a_kill_left_are_removed_by_the_next_invocation(storage):
    with storage.lock():
        with storage.scratch():
            killed = Path(tempfile.mkdtemp())
        assert not killed.exists()
        killed.mkdir(parents=True)  # as if the process had been killed in there
        with storage.scratch():
            assert not killed.exists()
            assert Path(tempfile.mkdtemp()).parent == killed.parent
        assert not killed.parent.exists()
        assert Path(tempfile.gettempdir()) == killed.parent.parent


def test_a_lock_file_that_cannot_be_opened_is_one_line(storage):
    (storage.root / "films.lock").mkdir()
    with pytest.raises(UserError) as raised, storage.lock():
        pass
    assert "films.lock (Is a directory): choose another --storage-path" in message(raised)


def test_tidying_leaves_unfinished_trials_and_what_others_put_there(storage):
    for trial_hash in ("0123456789ab", "ba9876543210"):
        (storage.trial_folder(trial_hash).path / "epoch-000001").mkdir(parents=True)
        storage.journal.add(trial_hash, [{"epoch": 1}])
    (storage.tune / "state").mkdir(parents=True)
    (storage.path / "thesis.txt").write_text("mine")
    storage.forget("0123456789ab")
    storage.tidy()
    left = {str(path.relative_to(storage.path)) for path in storage.path.rglob("*") if not path.is_dir()}
    assert left == {"journal/ba9876543210.jsonl", "thesis.txt"}
    assert (storage.trial_folder("ba9876543210").path / "epoch-000001").is_dir()
    assert not storage.tune.exists()


def test_nothing_is_left_of_a_finished_study(storage):
    (storage.trial_folder("0123456789ab").path / "epoch-000001").mkdir(parents=True)
    storage.forget("0123456789ab")
    storage.tidy()
    assert not storage.path.exists()


def test_clearing_takes_every_trial(storage):
    (storage.trial_folder("0123456789ab").path / "epoch-000001").mkdir(parents=True)
    storage.journal.add("0123456789ab", [{"epoch": 1}])
    storage.clear()
    assert list(storage.path.iterdir()) == []


@pytest.mark.parametrize("path", ["s3://bucket/folder", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_is_one_line(path):
    with pytest.raises(UserError) as raised:
        StudyStorage(path, "films")
    assert "--storage-path" in message(raised)
