"""A study's folder under ``--storage-path``: whatever a re-run needs and MLflow may not have yet."""

import contextlib
import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO
from uuid import uuid4

from errors import UserError, first_line
from sweep.journal import Journal
from tracking import PROCESS, STORAGE_ID
from trainables.trial_folder import TrialFolder


class StudyStorage:
    """``trials/`` holds checkpoints, ``journal/`` epoch reports, ``tune/`` what Ray Tune writes.

    Every machine of a cluster must see the folder under the same path. UserError where it is not a
    folder or cannot be written.
    """

    def __init__(self, storage_path: str, study: str) -> None:
        if "://" in storage_path:
            raise UserError(f"--storage-path {storage_path} is not a folder: give one all nodes can see")
        try:
            self.root = Path(storage_path).expanduser().resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"--storage-path {storage_path} is no folder: {first_line(error)}") from error
        self.study = study
        self.path = writable_folder(self.root / study, "--storage-path")
        self.journal = Journal(self.path / "journal")
        # tags by which an invocation with another storage recognises the one that holds the lock
        self.holder: dict[str, str] = {}

    @property
    def trials(self) -> Path:
        """The folder of the trials' folders."""
        return self.path / "trials"

    @property
    def tune(self) -> Path:
        """What Ray Tune notes while it runs; no re-run reads it."""
        return self.path / "tune"

    def trial_folder(self, trial_hash: str) -> TrialFolder:
        """Where the trial keeps its checkpoints."""
        return TrialFolder(self.trials, trial_hash)

    def forget(self, trial_hash: str) -> None:
        """Remove what there is of a trial that is safe in MLflow, or that is to start anew."""
        self.trial_folder(trial_hash).remove()
        self.journal.forget(trial_hash)

    def clear(self) -> None:
        """Remove what there is of every trial."""
        for folder in (self.trials, self.journal.folder, self.tune):
            shutil.rmtree(folder, ignore_errors=True)

    def tidy(self) -> None:
        """Remove Tune's notes, and the folders that nothing is left in."""
        shutil.rmtree(self.tune, ignore_errors=True)
        for folder in (self.trials, self.journal.folder, self.path):
            with contextlib.suppress(OSError):  # not empty: unfinished trials, or somebody else's files
                folder.rmdir()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[None]:
        """Where this process's temporary files go while the lock is held.

        Copies of models that a kill has left lie where the next invocation removes them.
        """
        folder = Path(tempfile.gettempdir()) / f"batchscale-{self.holder[STORAGE_ID]}"
        before = tempfile.tempdir
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other invocations of the study out; a UserError that names the one at work.

        The lock is the operating system's, so it ends with the process, however that ends.
        """
        path = self.root / f"{self.study}.lock"
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open(path, "r+", opener=_made))
                self._take(file)
            except OSError as error:
                raise UserError(
                    f"cannot lock {path} ({error.strerror}): choose another --storage-path"
                ) from error
            yield

    def _take(self, file: TextIO) -> None:
        """Lock the file, and write into it who has it: the process, and the id of this storage."""
        is_free = _locked(file)
        process, _, storage_id = file.read().partition("\n")
        place = f"-{os.fstat(file.fileno()).st_ino}"  # a copy of the folder is another storage
        if not is_free:
            raise UserError(
                f"study '{self.study}' is being run by {process or 'another process'}: "
                "wait until it ends, or give this one another --name"
            )
        self.holder = {
            PROCESS: f"process {os.getpid()} on {platform.node()}",
            STORAGE_ID: storage_id if storage_id.endswith(place) else uuid4().hex + place,
        }
        file.seek(0)
        file.write("\n".join(self.holder.values()))
        file.truncate()
        file.flush()


def _made(path: str, flags: int) -> int:
    """Open a file that may not be there yet, without emptying it."""
    return os.open(path, flags | os.O_CREAT, 0o666)


def _locked(file: TextIO) -> bool:
    """Whether the lock is this process's now; OSError where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def writable_folder(folder: Path, flag: str) -> Path:
    """Create the folder; UserError naming the flag where that, or writing into it, is impossible."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write to {folder} ({first_line(error)}): choose another {flag}") from error
    return folder
