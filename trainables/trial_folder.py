"""Where a trial keeps its checkpoints: the newest and the one before it, each found whole or not at all."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from trainables.checkpoint import CorruptCheckpointError, check_origin, verified_files

_NAME = "epoch-{:06d}"
_COMPLETE = "epoch-*[0-9]"
_PARTIAL = "partial-*"


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that can be resumed from, and what is wrong with those that are newer."""

    folder: Path | None
    damaged: list[str] = field(default_factory=list)


class TrialFolder:
    """The checkpoints of one trial, in a folder that every process and machine of a study sees.

    There are never more than two at a time, one of them possibly half-written, so that a crash at any
    moment, and damage to the newest, leave one to go on from.
    """

    def __init__(self, storage: Path, trial_hash: str) -> None:
        self.path = storage / trial_hash
        self.trial_hash = trial_hash
        self._good: Path | None = None  # the one that was found or saved last

    def save(self, epoch: int, write: Callable[[Path], None]) -> Path:
        """Let ``write`` fill a checkpoint; it takes its place only when it is complete and on disk.

        Raises OSError where the disk is full or the folder cannot be written, leaving the last one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        keep = self._good or next(iter(self._newest_first()), None)
        for old in self._newest_first():
            if old != keep:
                shutil.rmtree(old, ignore_errors=True)
        partial = self.path / f"partial-{uuid4().hex}"  # another worker's, cut off, may still be at it
        partial.mkdir()
        try:
            write(partial)
            _flush(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        complete = self.path / _NAME.format(epoch)
        shutil.rmtree(complete, ignore_errors=True)  # only a damaged one is trained again
        self._good = partial.rename(complete)
        return self._good

    def newest(self, assets_digest: str) -> Found:
        """The newest checkpoint that is whole and was trained from these assets."""
        damaged: list[str] = []
        for folder in self._newest_first():
            try:
                verified_files(folder)
                check_origin(folder, self.trial_hash, assets_digest)
                self._good = folder
                return Found(folder, damaged)
            except CorruptCheckpointError as error:
                damaged.append(str(error))
        return Found(None, damaged)

    def remove_unfinished(self) -> None:
        """Remove what a killed worker left half-written; to be called before a trial starts."""
        for partial in self.path.glob(_PARTIAL):
            shutil.rmtree(partial, ignore_errors=True)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self.path.glob(_COMPLETE), reverse=True)


def _flush(folder: Path) -> None:
    """Wait until the files are on disk: a manifest must not outlive a power cut alone."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
