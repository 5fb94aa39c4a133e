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
from sweep.storage import StudyStorage, writable_folder
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


def test_temporary_files_that_a_kill_left_are_removed_by_the_next_command(storage, holder):
    before = tempfile.gettempdir()
    left = storage.path / "scratch" / "model"
    left.mkdir()
    holder.kill()
    holder.wait()
    with storage.owned():
        assert not left.exists()
        assert Path(tempfile.mkdtemp()).parent == left.parent
    assert not storage.path.exists()
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
    assert {path.name for path in storage.path.iterdir()} == {".batchscale", "trials", "thesis.txt"}
    assert "batchscale keeps a study here" in (storage.path / ".batchscale").read_text()
    storage.clear()
    (storage.path / "thesis.txt").unlink()
    with storage.owned():
        pass
    assert [path.name for path in storage.path.parent.iterdir()] == ["films.lock"]


@pytest.mark.parametrize(
    "path", ["s3://bucket/folder", "/proc/nowhere", "a\0b", "~nobody-at-all/x", "x" * 5000, "/dev/null/x"]
)
def test_a_place_that_cannot_be_written_is_one_line(path):
    reason = refusal(StudyStorage, path, "films")
    assert "--storage-path" in reason
    assert reason.isprintable()


# -- a folder that has the study's name and is somebody's own --------------------------------------


def everything(folder):
    """Each file with its content, each folder, each link with its target."""
    found = {}
    for path in folder.rglob("*"):
        found[str(path)] = path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
    return found


def own_scratch(films):
    (films / "scratch").mkdir(parents=True)
    (films / "scratch" / "notes.txt").write_text("mine")


def own_scratch_beside_our_lock(films):
    own_scratch(films)
    films.with_suffix(".lock").write_text(OUR_LOCK)


def own_trials(films):
    (films / "trials" / "0123456789ab").mkdir(parents=True)  # of whatever it is


def own_file(films):
    films.mkdir()
    (films / ".writable").write_text("mine")


def own_mark(films):
    films.mkdir()
    (films / ".batchscale").write_text("my settings")


def linked_mark(films):
    films.mkdir()
    (films / ".batchscale").symlink_to(films.parent / "elsewhere")


def linked_study(films):
    (films.parent / "disk").mkdir()
    films.symlink_to(films.parent / "disk")


def linked_part(name):
    def make(films):
        (films.parent / "disk").mkdir()
        (films.parent / "disk" / "mine.txt").write_text("mine")
        part = marked(films) / name
        part.parent.mkdir(exist_ok=True)
        part.symlink_to(films.parent / "disk")

    return make


def file_for_a_folder(films):
    (marked(films) / "tune").write_text("mine")


def own_lock(films):
    films.with_suffix(".lock").write_text("the key is under the mat")


def linked_lock(films):
    (films.parent / "mine.txt").write_text("process 7 on here")
    films.with_suffix(".lock").symlink_to(films.parent / "mine.txt")


def study_that_is_a_file(films):
    films.write_text("mine")


def marked(films):
    """What a command that was killed early leaves."""
    films.mkdir()
    (films / ".batchscale").touch()
    return films


OUR_LOCK = "process 25816 on vm\n843110100c904849a2ae082b450eff01-11599881"
_PARTS = ("trials", "tune", "scratch", "trials/0123456789ab")


@pytest.mark.parametrize(
    "make",
    [
        own_scratch,
        own_scratch_beside_our_lock,
        own_trials,
        own_file,
        own_mark,
        linked_mark,
        linked_study,
        *(pytest.param(linked_part(name), id=f"linked {name}") for name in _PARTS),
        file_for_a_folder,
        own_lock,
        linked_lock,
        study_that_is_a_file,
    ],
)
def test_what_is_not_this_programs_is_refused_and_left_as_it_is(make, tmp_path):
    make(tmp_path / "films")
    before = everything(tmp_path)
    reason = refusal(StudyStorage, str(tmp_path), "films")
    assert reason.endswith("give another --storage-path or --name")
    assert str(tmp_path / "films") in reason
    assert everything(tmp_path) == before


def test_what_came_there_since_the_first_look_is_left_as_well(storage, tmp_path):
    own_scratch(tmp_path / "films")
    before = everything(tmp_path)
    with pytest.raises(UserError) as raised, storage.owned():
        pass
    assert "scratch" in message(raised)
    assert everything(tmp_path / "films") == {k: v for k, v in before.items() if "films/" in k}


def test_only_trials_are_cleared(storage):
    with storage.owned():
        (storage.trials / "0123456789ab" / "evaluation-000001").mkdir(parents=True)
        (storage.trials / "notes.txt").write_text("mine")
        storage.clear()
    assert [path.name for path in storage.trials.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("other", ["", "format 0\n"], ids=["no number", "another number"])
def test_unfinished_trials_of_another_version_are_refused_until_they_are_cleared(storage, other):
    with storage.owned():
        (storage.trials / "0123456789ab" / "evaluation-000001").mkdir(parents=True)
    mark = storage.path / ".batchscale"
    mark.write_text(mark.read_text().splitlines(keepends=True)[0] + other)
    before = everything(storage.path)
    for _ in range(2):  # a command that was refused has left it as it was
        with storage.owned():
            reason = refusal(storage.check_format)
        assert "unfinished trials of another version of this program" in reason
        assert "--fresh to train them anew, or another --name" in reason
        assert everything(storage.path) == before
    with storage.owned():
        storage.clear()
        storage.check_format()


def test_whether_a_folder_can_be_written_is_tried_beside_what_is_in_it(tmp_path):
    (tmp_path / ".writable").write_text("mine")
    writable_folder(tmp_path, "--results-path")
    assert everything(tmp_path) == {str(tmp_path / ".writable"): b"mine"}


KILLED_AT_ANY_MOMENT = """
import os, signal, sys
from pathlib import Path
from sweep.storage import StudyStorage

CHANGES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename"}

def killed(root, moment):
    # owns a study, and is killed before that change to the file system; False where it ended before
    def watch(event, arguments):
        nonlocal moment
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(root) in str(arguments[0]):
            moment -= 1
            if moment < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        sys.addaudithook(watch)
        with (storage := StudyStorage(str(root), "films")).owned():
            storage.tune.mkdir()
            (storage.trials / "0123456789ab").mkdir(parents=True)
            storage.clear()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

moment = 0
while killed(root := Path(sys.argv[1], str(moment)), moment):
    with (storage := StudyStorage(str(root), "films")).owned():
        storage.clear()
    print(moment, *(path.name for path in root.iterdir()))
    moment += 1
"""


def test_after_a_kill_at_any_moment_the_study_goes_on(tmp_path):
    # the libraries have threads, of which Python 3.12 warns before a fork; none is needed behind it
    quiet = ("-W", "ignore:This process:DeprecationWarning")
    command = [sys.executable, *quiet, "-c", KILLED_AT_ANY_MOMENT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) > 10
    assert lines == [f"{moment} films.lock" for moment in range(len(lines))]
