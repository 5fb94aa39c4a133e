"""A study's folder under ``--storage-path``: what a re-run needs, and who works in it."""

import contextlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from errors import UserError, first_line
from tracking import FORMAT
from trainables.checkpoint import TrialFolder

_MARK = ".batchscale"
_OURS = "batchscale keeps a study here: trials, tune and scratch are its own, and it removes them\n"
_MARK_TEXT = f"{_OURS}format {FORMAT}\n"
_TRIAL = re.compile("[0-9a-f]{12}")
_LOCK = re.compile(r"(process \d+ on .*(\n[0-9a-f]{32}(-\d+)?)?)?")  # empty after a kill
_LONGEST = 1000  # characters that are read; lock and mark are shorter
_GIVE_ANOTHER = "give another --storage-path or --name"


class StudyStorage:
    """``trials/`` holds checkpoints, ``tune/`` what Ray Tune notes, ``scratch/`` temporary files.

    Every machine of a cluster must see the folder under the same path. Nothing is removed from a folder
    without this program's mark. UserError if the path is not a folder, cannot be written, or holds
    something else.
    """

    def __init__(self, storage_path: str, study: str) -> None:
        if "://" in storage_path:
            raise UserError(f"--storage-path {storage_path} is not a folder: give one all nodes can see")
        try:
            root = Path(storage_path).expanduser().resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"--storage-path {storage_path} is no folder: {first_line(error)}") from error
        self.study = study
        self.path = root / study
        self.trials = self.path / "trials"
        self.tune = self.path / "tune"
        self._scratch = self.path / "scratch"
        self._mark = self.path / _MARK
        self._lock = root / f"{study}.lock"
        self._check_ours()
        writable_folder(self.path, "--storage-path")
        # tags by which a command with another storage recognises the one that works here
        self.owner: dict[str, str] = {}

    def trial_folder(self, trial_hash: str) -> TrialFolder:
        """Where the trial keeps its checkpoints."""
        return TrialFolder(self.trials, trial_hash)

    def clear(self) -> None:
        """Remove the checkpoints of every trial, those of another version of this program included."""
        for folder in self._trial_folders():
            shutil.rmtree(folder, ignore_errors=True)
        self._mark.write_text(_MARK_TEXT)

    def check_format(self) -> None:
        """Raise UserError if another version of this program left its unfinished trials here."""
        if _text(self._mark) != _MARK_TEXT:
            raise UserError(
                f"{self.path} holds unfinished trials of another version of this program: give --fresh to "
                "train them anew, or another --name"
            )

    def _trial_folders(self) -> list[Path]:
        return [path for name, path in _names(self.trials).items() if _TRIAL.fullmatch(name)]

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Keep other commands out of the study; UserError, naming the command at work, if there is one.

        The operating system releases the lock when the process ends, however it ends. Meanwhile temporary
        files lie in the storage; the next command removes those that a kill has left.
        """
        process, storage_id = self._holder()
        lock = FileLock(self._lock, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"study '{self.study}' is being run by {process or 'another process'}: "
                "wait until it ends, or give this one another --name"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise UserError(
                f"cannot lock {self._lock} ({first_line(error)}): choose another --storage-path"
            ) from error
        with contextlib.ExitStack() as stack:
            stack.callback(lock.release)
            self._check_ours()  # the command before may have changed the folder
            self._put_mark()
            stack.callback(self._tidy)
            place = f"-{self._lock.stat().st_ino}"  # a copy of the folder is another storage
            storage_id = storage_id if storage_id.endswith(place) else uuid4().hex + place
            process = f"process {os.getpid()} on {platform.node()}"
            self.owner = {"process": process, "storage_id": storage_id}
            self._lock.write_text("\n".join(self.owner.values()))
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir()
            stack.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
            tempfile.tempdir = str(self._scratch)
            yield

    def _check_ours(self) -> None:
        """Raise UserError if something that is not this program's is in the way. Writes nothing."""
        for folder in (self.path, self.trials, self.tune, self._scratch):
            _check_kind(folder, os.path.isdir, "no folder")
        for file in (self._mark, self._lock):
            _check_kind(file, os.path.isfile, "no file")
        lock, mark = _text(self._lock), _text(self._mark)
        if not _LOCK.fullmatch(lock):
            raise UserError(f"{self._lock} is not this program's: {_GIVE_ANOTHER}")
        if not (mark.startswith(_OURS) or _OURS.startswith(mark)):  # a kill may have cut it short
            raise UserError(f"{self._mark} is not this program's: {_GIVE_ANOTHER}")
        names = _names(self.path)
        if names and _MARK not in names:
            some = ", ".join(sorted(names)[:3])
            raise UserError(f"{self.path} holds what is not this program's ({some}): {_GIVE_ANOTHER}")
        for folder in self._trial_folders():
            _check_kind(folder, os.path.isdir, "no folder")

    def _put_mark(self) -> None:
        """Mark the folder, which is empty or this program's, before anything else is written into it."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not _text(self._mark).startswith(_OURS):  # another version's mark stays until ``clear``
            self._mark.write_text(_MARK_TEXT)

    def _tidy(self) -> None:
        """Remove what no re-run reads, and folders that are empty then."""
        for folder in (self.tune, self._scratch):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: unfinished trials
            self.trials.rmdir()
        with contextlib.suppress(OSError):
            if _names(self.path).keys() == {_MARK}:  # else unfinished trials, or somebody's own files
                self._mark.unlink()
                self.path.rmdir()

    def _holder(self) -> tuple[str, str]:
        """The process that holds the lock, or held it last, and this storage's name in MLflow."""
        process, _, storage_id = _text(self._lock).partition("\n")
        return process, storage_id


def _check_kind(path: Path, is_kind: Callable[[Path], bool], otherwise: str) -> None:
    """Raise UserError if the path exists and is a link, or of another kind."""
    if not os.path.lexists(path):  # Path raises for long names
        return
    is_link = path.is_symlink()
    if is_link or not is_kind(path):
        raise UserError(f"{path} is {'a link' if is_link else otherwise}: {_GIVE_ANOTHER}")


def _names(folder: Path) -> dict[str, Path]:
    """What is in a folder; empty if there is no folder, UserError if it cannot be read."""
    try:
        return {path.name: path for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UserError(f"cannot read {folder} ({first_line(error)}): {_GIVE_ANOTHER}") from error


def _text(file: Path) -> str:
    """What a file holds, as far as the program may read it."""
    with contextlib.suppress(OSError), file.open(errors="replace") as opened:
        return opened.read(_LONGEST)
    return ""


def writable_folder(folder: Path, flag: str) -> Path:
    """Create the folder; UserError naming the flag if it cannot be created or written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # without a name, if the file system can
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write to {folder} ({first_line(error)}): choose another {flag}") from error
    return folder
