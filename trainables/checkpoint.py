"""A trial's whole state on disk: complete and verified, or not at all.

A checkpoint is a folder. Its manifest, written last, names every file with its SHA-256. So a folder is
recognised that a crash or a full disk left half-written, or whose files have changed on disk.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from errors import first_line

_MANIFEST = "manifest.json"
_LAST = "last_weights.safetensors"
_BEST = "best_weights.safetensors"
_OPTIMIZER = "optimizer.pt"
_PROGRESS = "progress.json"
_PROGRESS_FIELDS = ("trial_hash", "assets_digest", "history")
_NEEDED = {_LAST, _PROGRESS}
_OPTIONAL = {_BEST, _OPTIMIZER}

Weights = dict[str, Tensor]


class CorruptCheckpointError(RuntimeError):
    """A checkpoint is incomplete, has changed since it was written, or belongs to another trial."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a trial needs to continue exactly where it stopped.

    Generators need no place here: each is a function of the trial's seed, the epoch and the window.
    """

    trial_hash: str
    assets_digest: str
    history: list[dict[str, Any]]  # one report per evaluation, the first one first
    weights: Weights
    best_weights: Weights | None  # None if the best evaluation is the last one
    optimizer: dict[str, Any] | None  # None after a trial's last step, like the scheduler
    scheduler: dict[str, Any] | None

    def save(self, folder: Path) -> None:
        """Write into ``folder``, which must be empty; without its manifest it is worthless."""
        save_file(self.weights, folder / _LAST)
        if self.best_weights is not None:
            save_file(self.best_weights, folder / _BEST)
        if self.optimizer is not None:
            torch.save([self.optimizer, self.scheduler], folder / _OPTIMIZER)
        progress = {name: getattr(self, name) for name in _PROGRESS_FIELDS}
        (folder / _PROGRESS).write_text(json.dumps(progress))
        manifest = {path.name: _sha256(path) for path in folder.iterdir()}
        (folder / _MANIFEST).write_text(json.dumps(manifest))

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Read a checkpoint that ``TrialFolder.newest`` found, which has verified its files.

        Raises CorruptCheckpointError if the files do not hold what ``save`` writes.
        """
        progress = read_progress(folder)
        last, best, state = folder / _LAST, folder / _BEST, folder / _OPTIMIZER
        optimizer = scheduler = None
        try:
            if state.exists():
                optimizer, scheduler = torch.load(state, weights_only=True, map_location="cpu")
            return cls(
                **progress,
                weights=load_file(last),
                best_weights=load_file(best) if best.exists() else None,
                optimizer=optimizer,
                scheduler=scheduler,
            )
        except Exception as error:  # each library raises its own types
            reason = first_line(error)
            raise CorruptCheckpointError(f"{folder} does not hold what a trial saves: {reason}") from error


def read_progress(folder: Path) -> dict[str, Any]:
    """``trial_hash``, ``assets_digest`` and ``history``, without the tensors."""
    try:
        found = json.loads((folder / _PROGRESS).read_text())
        return {name: found[name] for name in _PROGRESS_FIELDS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"{folder} does not say where it comes from") from error


def weight_files(folder: Path) -> dict[str, Path]:
    """A checkpoint's weight files as ``{"best": …, "last": …}``; one file if the weights are the same."""
    last, best = folder / _LAST, folder / _BEST
    return {"best": best if best.exists() else last, "last": last}


def verify(folder: Path) -> None:
    """Raise CorruptCheckpointError unless the files are those that the manifest names, unchanged."""
    try:
        manifest = dict(json.loads((folder / _MANIFEST).read_text()))
        names = {path.name for path in folder.iterdir()} - {_MANIFEST}
    except (OSError, ValueError, TypeError) as error:
        raise CorruptCheckpointError(f"{folder} holds no complete checkpoint") from error
    # the manifest must name no file outside the folder, and every file in it
    if not _NEEDED | names <= manifest.keys() <= _NEEDED | _OPTIONAL:
        raise CorruptCheckpointError(f"{folder} holds no complete checkpoint")
    for name, digest in manifest.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise CorruptCheckpointError(f"{folder / name} cannot be read: {error.strerror}") from error
        if found != digest:
            raise CorruptCheckpointError(f"{folder / name} has changed since it was written")


class Found(NamedTuple):
    """The newest good checkpoint, if any, and what is wrong with each newer one."""

    folder: Path | None
    damaged: list[str]


class TrialFolder:
    """The checkpoints of one trial, in a folder that every process and machine of a study sees.

    There are never more than two at a time, one of them possibly half-written, so that a crash at any
    moment, and damage to the newest, leave one to resume from.
    """

    def __init__(self, storage: Path, trial_hash: str) -> None:
        self.path = storage / trial_hash
        self.trial_hash = trial_hash
        self._good: Path | None = None  # the one that was found or saved last

    def save(self, evaluation: int, write: Callable[[Path], None]) -> Path:
        """Let ``write`` fill a checkpoint; it gets its final name only when it is complete and on disk.

        Raises OSError if the disk is full or the folder cannot be written; the last checkpoint then stays.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        keep = self._good or next(iter(self._newest_first()), None)
        _remove(old for old in self._newest_first() if old != keep)
        partial = self.path / f"partial-{uuid4().hex}"  # a lost worker may still be writing to another one
        partial.mkdir()
        try:
            write(partial)
            _flush(partial)
        except BaseException:
            _remove([partial])
            raise
        complete = self.path / f"evaluation-{evaluation:06d}"
        _remove([complete])  # if it exists, it is damaged: otherwise this evaluation is not trained again
        self._good = partial.rename(complete)
        return self._good

    def newest(self, assets_digest: str) -> Found:
        """The newest checkpoint that is complete and was trained from these assets."""
        damaged: list[str] = []
        for folder in self._newest_first():
            try:
                verify(folder)
                self._check_origin(folder, assets_digest)
                self._good = folder
                return Found(folder, damaged)
            except CorruptCheckpointError as error:
                damaged.append(str(error))
        return Found(None, damaged)

    def keep_newest(self) -> None:
        """Remove all but the newest checkpoint, for a trial that needs no spare one."""
        _remove(self._newest_first()[1:])

    def remove_unfinished(self) -> None:
        """Remove half-written checkpoints of killed workers; to be called before a trial starts."""
        _remove(self.path.glob("partial-*"))

    def remove(self) -> None:
        _remove([self.path])

    def _newest_first(self) -> list[Path]:
        return sorted(self.path.glob("evaluation-*[0-9]"), reverse=True)

    def _check_origin(self, folder: Path, assets_digest: str) -> None:
        found = read_progress(folder)
        other = found["trial_hash"]
        if other != self.trial_hash:
            raise CorruptCheckpointError(f"{folder} belongs to trial {other}, not {self.trial_hash}")
        if found["assets_digest"] != assets_digest:
            raise CorruptCheckpointError(f"{folder} was trained from other pretrained weights or tokens")


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Wait until the files are on disk: after a power cut, no manifest may be there without its files."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
