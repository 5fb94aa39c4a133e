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
PASSES, WINDOWS = 13, 4  # of an epoch: three windows of four micro-batches, and one of one
Results = Iterator[tuple[str, str]]  # what was done, and what is wrong then


def same(trial: Trial, other: Trial) -> bool:
    """Whether two trials learnt the same, bit for bit, and would hand in the same best weights."""
    pairs = [(weights(trial), weights(other)), (trial._best_weights, other._best_weights)]
    are_equal = all(torch.equal(mine[k], others[k]) for mine, others in pairs for k in others)
    return are_equal and learnt(trial) == learnt(other)


def new_trial(assets: TrialAssets, **overrides: object) -> Trial:
    return Trial(tiny_config(**{"epochs": EPOCHS} | overrides), assets, CPU)


def saved_trial(assets: TrialAssets, storage: Path, epochs: int) -> tuple[TrialFolder, Trial]:
    """A trial that was saved after each of its first so many epochs, and its folder."""
    trial = new_trial(assets)
    folder = TrialFolder(storage, trial.config.trial_hash)
    for _ in range(epochs):
        folder.save(trial.run_to_evaluation()["evaluation"], trial.save)
    return folder, trial


def damaged_checkpoints(assets: TrialAssets, scratch: Path, count: int, rng: random.Random) -> Results:
    """Damage the newest checkpoint, and resume; the epoch that is left would show a damaged optimizer."""
    folder, whole = saved_trial(assets, scratch / "whole", epochs=EPOCHS - 1)
    train(whole)
    for number in range(count):
        copy = TrialFolder(scratch / str(number), folder.trial_hash)
        shutil.copytree(folder.path, copy.path)
        files = sorted((copy.path / f"evaluation-{EPOCHS - 1:06d}").iterdir())
        done = damage(rng.choice(files), rng)
        trial, found = new_trial(assets), copy.newest(assets.digest)
        if found.folder:
            trial.restore(found.folder)
        problem = "" if len(found.damaged) == 1 else f"left out: {found.damaged}"
        yield done, problem or ("" if same(train(trial), whole) else "another result")
        shutil.rmtree(copy.path.parent)


def every_byte_range(assets: TrialAssets, scratch: Path, ranges: int) -> Results:
    """Change each of so many ranges of every file, one at a time: none may pass for whole."""
    folder, _ = saved_trial(assets, scratch, EPOCHS)
    newest = folder.path / f"evaluation-{EPOCHS:06d}"
    for file in sorted(newest.iterdir()):
        content = file.read_bytes()
        for start in range(0, len(content), max(1, len(content) // ranges)):
            changed = bytearray(content)
            changed[start] ^= 1
            file.write_bytes(changed)
            found = folder.newest(assets.digest).folder
            is_previous = found is not None and found.name == f"evaluation-{EPOCHS - 1:06d}"
            yield f"{file.name} from byte {start}", "" if is_previous else f"found {found}"
        file.write_bytes(content)
    verify(newest)


def exhausted_memory(assets: TrialAssets, count: int, rng: random.Random) -> Results:
    """Run out of memory in a random pass; the result must be that of a trial told to halve there."""
    for _ in range(count):
        moment, engine = rng.randrange(2 * PASSES), rng.choice(["torch", "accelerate"])
        starved, told = (new_trial(assets, epochs=2, engine=engine, noise_every=0) for _ in range(2))
        _starve(starved, moment)
        epoch, position = divmod(moment, PASSES)
        _halve(told, epoch * WINDOWS + position // WINDOWS)
        train(starved)
        train(told)
        is_same = same(starved, told) and starved.physical_batch_size == told.physical_batch_size < 16
        yield f"{engine}, pass {moment}", "" if is_same else "another result"


def _starve(trial: Trial, moment: int) -> None:
    """Ask the allocator for more than there is in this forward pass of training, counted from 0."""
    calls = itertools.count()

    def hook(*_: object) -> None:
        if trial.model.training and next(calls) == moment:
            torch.empty(1 << 60, dtype=torch.uint8)

    trial.model.register_forward_pre_hook(hook)


def _halve(trial: Trial, window: int) -> None:
    """Set the size that a starved trial ends with, in the window where it starved."""
    accumulate, windows = trial.accumulate, itertools.count()

    def halved(examples: torch.Tensor, *how: object):
        if next(windows) == window:
            trial.physical_batch_size = min(trial.physical_batch_size, len(examples)) // 2
        return accumulate(examples, *how)

    trial.accumulate = halved  # type: ignore[method-assign]
