"""A study's folder under ``--storage-path``: what a re-run needs, and who works in it."""

import contextlib
import os
import platform
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from errors import UserError, first_line
from search_spaces import TrialConfig
from sweep.plan import Plan
from sweep.plan_summary import gigabytes
from tracking import sqlite_file
from trainables.checkpoint import TrialFolder

_SCRATCH_COPIES = 3  # of weights: best and last model, and the copy that is uploaded


class StudyStorage:
    """``trials/`` holds checkpoints, ``tune/`` what Ray Tune notes, ``scratch/`` temporary files.

    Every machine of a cluster must see the folder under the same path. UserError where it is not a
    folder or cannot be written.
    """

    def __init__(self, storage_path: str, study: str) -> None:
        if "://" in storage_path:
            raise UserError(f"--storage-path {storage_path} is not a folder: give one all nodes can see")
        try:
            root = Path(storage_path).expanduser().resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"--storage-path {storage_path} is no folder: {first_line(error)}") from error
        self.study = study
        self.path = writable_folder(root / study, "--storage-path")
        self.trials = self.path / "trials"
        self.tune = self.path / "tune"
        self._scratch = self.path / "scratch"
        self._lock = root / f"{study}.lock"
        # tags by which a command with another storage recognises the one that works here
        self.owner: dict[str, str] = {}

    def trial_folder(self, trial_hash: str) -> TrialFolder:
        """Where the trial keeps its checkpoints."""
        return TrialFolder(self.trials, trial_hash)

    def clear(self) -> None:
        """Remove the checkpoints of every trial."""
        shutil.rmtree(self.trials, ignore_errors=True)

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Keep other commands out of the study; a UserError that names the one at work.

        The lock is the operating system's, so it ends with the process, however that ends. Meanwhile
        temporary files lie in the storage, where the next command removes those that a kill has left.
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
        before = tempfile.tempdir
        try:
            place = f"-{self._lock.stat().st_ino}"  # a copy of the folder is another storage
            storage_id = storage_id if storage_id.endswith(place) else uuid4().hex + place
            process = f"process {os.getpid()} on {platform.node()}"
            self.owner = {"process": process, "storage_id": storage_id}
            self._lock.write_text("\n".join(self.owner.values()))
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir(parents=True)
            tempfile.tempdir = str(self._scratch)
            yield
        finally:
            tempfile.tempdir = before
            self._tidy()
            lock.release()

    def _tidy(self) -> None:
        """Remove what no re-run reads, and the folders that nothing is left in."""
        for folder in (self.tune, self._scratch):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.trials, self.path):
            with contextlib.suppress(OSError):  # not empty: unfinished trials, or somebody else's files
                folder.rmdir()

    def _holder(self) -> tuple[str, str]:
        """The process that holds the lock, or held it last, and what this storage is called in MLflow."""
        with contextlib.suppress(OSError, ValueError):
            process, _, storage_id = self._lock.read_text().partition("\n")
            return process, storage_id
        return "", ""


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


def check_disk_space(
    plan: Plan,
    to_train: Sequence[TrialConfig],
    concurrent: int,
    storage: StudyStorage,
    tracking_uri: str,
    *,
    kept: Sequence[TrialConfig],
) -> None:
    """Raise UserError where a disk lacks room for what training writes to it at any one time.

    The models of the trials in ``kept`` stay in MLflow. Checkpoints that these trials have already are part
    of the room there is. More may be needed while MLflow is away, because trained trials then wait:
    ``--dry-run`` says how much at most.
    """
    by_size = sorted(to_train, key=plan.weight_bytes, reverse=True)
    scratch = _SCRATCH_COPIES * max(map(plan.weight_bytes, to_train), default=0)
    checkpoints = plan.checkpoint_bytes(by_size[:concurrent]) + plan.trained_bytes(by_size[concurrent:])
    needs = {storage.path: checkpoints + scratch}
    if sqlite_file(tracking_uri) is not None:  # a server keeps the models on its own disk
        needs[Path.cwd()] = plan.model_bytes(kept)
    hashes = {config.trial_hash for config in to_train}
    going = [folder for folder in storage.trials.glob("*") if folder.name in hashes]
    taken = {storage.path.stat().st_dev: sum(map(_size, going))}
    on_device: defaultdict[int, int] = defaultdict(int)
    for folder, needed in needs.items():
        device = folder.stat().st_dev
        on_device[device] += needed
        free = shutil.disk_usage(folder).free + taken.get(device, 0)
        if on_device[device] > free:
            raise UserError(
                f"the disk of {folder} has {gigabytes(free)} free and the study needs "
                f"{gigabytes(on_device[device])}: make room, or give another --storage-path"
            )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
