"""Save and load a trial's whole state: complete and verified, or not at all.

A checkpoint is a folder. Its manifest, written last, names every file with its SHA-256, so a folder
that a crash or a full disk left half-written is recognised, never half-loaded.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from errors import first_line

_MANIFEST = "manifest.json"
_LAST = "last_weights.safetensors"
_BEST = "best_weights.safetensors"
_OPTIMIZER = "optimizer.pt"
_PROGRESS = "progress.json"

Weights = dict[str, Tensor]


class CorruptCheckpointError(RuntimeError):
    """A checkpoint that is incomplete or has changed since it was written."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a trial needs to go on exactly where it stopped.

    Generators need no place here: each is a function of the trial's seed and the epoch.
    """

    trial_hash: str
    assets_digest: str
    history: list[dict[str, Any]]  # one report per finished epoch, the first epoch first
    weights: Weights
    best_weights: Weights | None  # None where the best epoch is the last one
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write into ``folder``, which must exist; without its manifest the folder is worthless."""
        (folder / _MANIFEST).unlink(missing_ok=True)
        files: dict[str, Callable[[Path], Any]] = {
            _LAST: lambda path: save_file(self.weights, path),
            _OPTIMIZER: lambda path: torch.save([self.optimizer, self.scheduler], path),
            _PROGRESS: lambda path: path.write_text(
                json.dumps(
                    {
                        "trial_hash": self.trial_hash,
                        "assets_digest": self.assets_digest,
                        "history": self.history,
                    }
                )
            ),
        }
        best = self.best_weights
        if best is not None:
            files[_BEST] = lambda path: save_file(best, path)
        for name, write in files.items():
            write(folder / name)
        manifest = {name: _sha256(folder / name) for name in files}
        partial = folder / f"{_MANIFEST}.partial"
        partial.write_text(json.dumps(manifest))
        partial.replace(folder / _MANIFEST)

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Read and verify; raises CorruptCheckpointError for anything but what ``save`` wrote."""
        files = verified_files(folder)
        try:
            optimizer, scheduler = torch.load(files[_OPTIMIZER], weights_only=True, map_location="cpu")
            return cls(
                **read_progress(folder),
                weights=load_file(files[_LAST]),
                best_weights=load_file(files[_BEST]) if _BEST in files else None,
                optimizer=optimizer,
                scheduler=scheduler,
            )
        except Exception as error:  # a manifest says that files are whole, not what is in them
            reason = first_line(error)
            raise CorruptCheckpointError(f"{folder} does not hold what a trial saves: {reason}") from error


def verified_files(folder: Path) -> dict[str, Path]:
    """The files of a complete, unchanged checkpoint by name; raises CorruptCheckpointError otherwise."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(f"{folder} holds no complete checkpoint") from error
    needed = {_LAST, _OPTIMIZER, _PROGRESS}
    if not isinstance(manifest, dict) or not needed <= manifest.keys() <= needed | {_BEST}:
        raise CorruptCheckpointError(f"{folder} holds no complete checkpoint")
    files = {name: folder / name for name in manifest}
    for name, path in files.items():
        try:
            is_whole = path.is_file() and _sha256(path) == manifest[name]
        except OSError as error:
            raise CorruptCheckpointError(f"{path} cannot be read: {error.strerror}") from error
        if not is_whole:
            raise CorruptCheckpointError(f"{path} is missing or has changed since it was written")
    return files


def check_origin(folder: Path, trial_hash: str, assets_digest: str) -> None:
    """Raise CorruptCheckpointError where another trial, or other weights or tokens, led to it."""
    found = read_progress(folder)
    if found["trial_hash"] != trial_hash:
        raise CorruptCheckpointError(f"{folder} belongs to trial {found['trial_hash']}, not {trial_hash}")
    if found["assets_digest"] != assets_digest:
        raise CorruptCheckpointError(f"{folder} was trained from other pretrained weights or tokens")


def weight_files(folder: Path) -> dict[str, Path]:
    """The verified weight files as ``{"best": …, "last": …}``; one file where the epochs agree."""
    files = verified_files(folder)
    return {"best": files.get(_BEST, files[_LAST]), "last": files[_LAST]}


def read_progress(folder: Path) -> dict[str, Any]:
    """``trial_hash``, ``assets_digest`` and ``history``, without the tensors."""
    try:
        found = json.loads((folder / _PROGRESS).read_text())
        return {name: found[name] for name in ("trial_hash", "assets_digest", "history")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"{folder} does not say where it comes from") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
