"""Train the trials of a plan on Ray Tune."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime

import ray
from ray import tune

from search_spaces import TrialConfig
from sweep.cluster import Resources
from sweep.recorder import Recorder
from sweep.storage import StudyStorage
from trainables.encoder_trainable import EncoderTrainable
from trainables.trial import TrialAssets


def train(
    configs: Sequence[TrialConfig],
    assets: dict[str, TrialAssets],
    resources: Resources,
    storage: StudyStorage,
    *,
    recorder: Recorder,
    max_failures: int,
) -> None:
    """Run one Tune trial per config, one ``step()`` per epoch; returns when none is left running.

    A trial that was left unfinished, by an earlier invocation or by a worker that died, goes on from its
    newest good checkpoint, the latter up to ``max_failures`` times. What fails in the end is in
    ``recorder.failures``. Raises KeyboardInterrupt on Ctrl-C.
    """
    references = {model: ray.put(value) for model, value in assets.items()}
    trainable = tune.with_resources(
        tune.with_parameters(EncoderTrainable, assets=references, storage=str(storage.trials)),
        resources.for_ray(),
    )
    shutil.rmtree(storage.tune, ignore_errors=True)  # of an invocation that was killed
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([config.to_dict() for config in configs])},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=datetime.now().strftime("%Y%m%d-%H%M%S-%f"),
            storage_path=str(storage.tune),
            verbose=0,
            callbacks=[recorder],
            # the trainable saves itself, into a place that the next invocation knows
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=max_failures),
        ),
    )
    with _quiet_tune():
        tuner.fit()


def _trial_name(trial: tune.experiment.Trial) -> str:
    return TrialConfig.from_dict(trial.config["trial"]).trial_hash


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune reports failed trials on its own; the recorder has already said so in one line each."""
    os.environ["TUNE_WARN_THRESHOLD_S"] = "30"
    # Tune's own handler waits for every running epoch to end, which may be many minutes
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
