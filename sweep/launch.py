"""Train the trials of a plan on Ray Tune."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import ray
from ray import tune

from search_spaces import TrialConfig, UserError, first_line
from sweep.cluster import Resources
from sweep.console import console
from sweep.recorder import Recorder
from trainables.checkpoint import CorruptCheckpointError, check_origin, verified_files
from trainables.encoder_trainable import EncoderTrainable
from trainables.trial import TrialAssets


def train(
    configs: Sequence[TrialConfig],
    assets: dict[str, TrialAssets],
    resources: Resources,
    storage: Path,
    recorder: Recorder,
) -> None:
    """Run one Tune trial per config, one ``step()`` per epoch; returns when none is left running.

    A trial that an earlier invocation left unfinished goes on from its newest good checkpoint. What
    fails is in ``recorder.failures``. Raises KeyboardInterrupt after a clean stop on Ctrl-C.
    """
    references = {model: ray.put(value) for model, value in assets.items()}
    checkpoints = {
        config.trial_hash: str(folder)
        for config in configs
        if (folder := newest_checkpoint(storage, config, assets[config.model].digest))
    }
    if checkpoints:
        console.print(f"{len(checkpoints)} trials go on from their last finished epoch")
    trainable = tune.with_resources(
        tune.with_parameters(EncoderTrainable, assets=references, checkpoints=checkpoints),
        resources.for_ray(),
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([config.to_dict() for config in configs])},
        tune_config=tune.TuneConfig(
            metric="val_acc",
            mode="max",
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=datetime.now().strftime("%Y%m%d-%H%M%S-%f"),
            storage_path=str(storage),
            verbose=0,
            callbacks=[recorder],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1),
        ),
    )
    with _quiet_tune():
        tuner.fit()
    # on Ctrl-C Tune stops its trials and returns as if nothing had happened
    if not {config.trial_hash for config in configs} <= recorder.ended:
        raise KeyboardInterrupt


def newest_checkpoint(storage: Path, config: TrialConfig, digest: str) -> Path | None:
    """The newest checkpoint of a trial that is whole and from these assets, of any invocation."""
    folders = storage.glob(f"*/{config.trial_hash}/checkpoint_*")
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(CorruptCheckpointError):
            verified_files(folder)
            check_origin(folder, config.trial_hash, digest)
            return folder
    return None


def study_storage(storage_path: str, study: str) -> Path:
    """The study's folder for checkpoints, checked to be writable by everyone who needs it."""
    if "://" in storage_path:
        raise UserError(f"--storage-path {storage_path} is not a folder: give one all nodes can see")
    try:
        folder = Path(storage_path).expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--storage-path {storage_path} is no folder: {first_line(error)}") from error
    return writable_folder(folder / study, "--storage-path")


def remove_checkpoints(storage: Path, trial_hashes: Iterable[str]) -> None:
    """Remove what is left of finished trials, and nothing else that may lie in the study's folder."""
    for trial_hash in trial_hashes:
        for folder in storage.glob(f"*/{trial_hash}"):
            shutil.rmtree(folder, ignore_errors=True)
    for marker in list(storage.glob("*/tuner.pkl")):
        if not any(path.is_dir() for path in marker.parent.iterdir()):
            shutil.rmtree(marker.parent, ignore_errors=True)
    with contextlib.suppress(OSError):  # somebody else's files keep the folder
        storage.rmdir()


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


def _trial_name(trial: tune.experiment.Trial) -> str:
    return TrialConfig.from_dict(trial.config["trial"]).trial_hash


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune reports failed trials on its own; the recorder has already said so in one line each."""
    os.environ["TUNE_WARN_THRESHOLD_S"] = "30"
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
