"""Faults of one trial, without the command around it: hundreds in minutes."""

import itertools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.faults.catalog import damage
from tests.helpers import CPU, learnt, tiny_config, train, weights
from trainables.assets import TrialAssets
from trainables.checkpoint import TrialFolder, verify
from trainables.trial import Trial

EPOCHS = 3


def same(trial: Trial, other: Trial) -> bool:
    """Whether two trials learnt the same, bit for bit, and would hand in the same best weights."""
    pairs = [(weights(trial), weights(other)), (trial._best_weights, other._best_weights)]
    are_equal = all(torch.equal(mine[k], others[k]) for mine, others in pairs for k in others)
    return are_equal and learnt(trial) == learnt(other)


def saved_trial(assets: TrialAssets, storage: Path, epochs: int) -> tuple[TrialFolder, Trial]:
    """A trial that was saved after each of its first so many epochs, and its folder."""
    trial = Trial(tiny_config(epochs=EPOCHS), assets, CPU)
    folder = TrialFolder(storage, trial.config.trial_hash)
    for _ in range(epochs):
        folder.save(trial.run_epoch()["epoch"], trial.save)
    return folder, trial


def resumed(assets: TrialAssets, folder: TrialFolder) -> tuple[Trial, list[str]]:
    """The trial, gone on with as a worker does, and which checkpoints were left out."""
    trial = Trial(tiny_config(epochs=EPOCHS), assets, CPU)
    found = folder.newest(assets.digest)
    if found.folder:
        trial.restore(found.folder)
    return train(trial), found.damaged


def damaged_checkpoints(
    assets: TrialAssets, scratch: Path, count: int, rng: random.Random
) -> Iterator[tuple[str, str]]:
    """Damage the newest checkpoint in ``count`` places; yields what was done, and what is wrong then.

    An epoch is left to be trained, so that a damaged optimizer would lead elsewhere.
    """
    folder, whole = saved_trial(assets, scratch / "whole", epochs=EPOCHS - 1)
    train(whole)
    for number in range(count):
        copy = TrialFolder(scratch / str(number), folder.trial_hash)
        shutil.copytree(folder.path, copy.path)
        files = sorted((copy.path / f"epoch-{EPOCHS - 1:06d}").iterdir())
        done = damage(rng.choice(files), rng)
        trial, left_out = resumed(assets, copy)
        problem = "" if len(left_out) == 1 else f"left out: {left_out}"
        yield done, problem or ("" if same(trial, whole) else "another result")
        shutil.rmtree(copy.path.parent)


def every_byte_range(assets: TrialAssets, scratch: Path, ranges: int) -> Iterator[tuple[str, str]]:
    """Change each of so many ranges of every file, one at a time: none may pass for whole."""
    folder, _ = saved_trial(assets, scratch, EPOCHS)
    newest = folder.path / f"epoch-{EPOCHS:06d}"
    for file in sorted(newest.iterdir()):
        content = file.read_bytes()
        width = max(1, len(content) // ranges)
        for start in range(0, len(content), width):
            changed = bytearray(content)
            changed[start] ^= 1
            file.write_bytes(changed)
            found = folder.newest(assets.digest).folder
            is_previous = found is not None and found.name == f"epoch-{EPOCHS - 1:06d}"
            yield f"{file.name} from byte {start}", "" if is_previous else f"found {found}"
        file.write_bytes(content)
    verify(newest)


def exhausted_memory(assets: TrialAssets, count: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Run out of memory in a random pass; the result must be that of a trial told to halve there."""
    passes = _passes(assets)
    for _ in range(count):
        moment, engine = rng.randrange(1, passes), rng.choice(["torch", "accelerate"])
        starved = _trial(assets, engine)
        window = _starve(starved, moment)
        train(starved)
        told = _trial(assets, engine)
        _halve(told, window[0])
        train(told)
        is_same = same(starved, told) and starved.physical_batch_size == told.physical_batch_size < 16
        yield f"{engine}, pass {moment}", "" if is_same else "another result"


def _trial(assets: TrialAssets, engine: str) -> Trial:
    return Trial(tiny_config(epochs=2, engine=engine), assets, CPU)


def _passes(assets: TrialAssets) -> int:
    trial, calls = _trial(assets, "torch"), itertools.count()

    def count(*_: object) -> None:
        if trial.model.training:
            next(calls)

    trial.model.register_forward_pre_hook(count)
    train(trial)
    return next(calls)


def _starve(trial: Trial, moment: int) -> list[int]:
    """Ask the allocator for more than there is in a forward pass of training; notes the window's number."""
    calls, windows, struck = itertools.count(1), itertools.count(), []
    accumulate, current = trial.accumulate, [0]

    def numbered(window: torch.Tensor, dropout_seed: int, measure: bool):
        current[0] = next(windows)
        return accumulate(window, dropout_seed, measure)

    def hook(*_: object) -> None:
        if trial.model.training and next(calls) == moment:
            struck.append(current[0])
            torch.empty(1 << 60, dtype=torch.uint8)

    trial.accumulate = numbered  # type: ignore[method-assign]
    trial.model.register_forward_pre_hook(hook)
    return struck


def _halve(trial: Trial, window: int) -> None:
    """Set the size that a starved trial ends with, in the window where it starved."""
    accumulate, windows = trial.accumulate, itertools.count()

    def halved(examples: torch.Tensor, dropout_seed: int, measure: bool):
        if next(windows) == window:
            trial.physical_batch_size = min(trial.physical_batch_size, len(examples)) // 2
        return accumulate(examples, dropout_seed, measure)

    trial.accumulate = halved  # type: ignore[method-assign]
