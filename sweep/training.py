"""Train the trials of a plan, or of a search, on Ray Tune."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from threading import Thread
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError
from ray.tune.search import Searcher

from errors import StoppedError, last_line
from search_spaces import TrialConfig
from sweep.cluster import Resources
from sweep.plan import Plan
from sweep.progress import Progress
from sweep.recorder import Recorder, trial_hash_of
from sweep.search import Search
from sweep.storage import StudyStorage
from tracking import BackgroundWriter, TrialRun
from trainables.assets import TrialAssets
from trainables.encoder_trainable import EncoderTrainable
from trainables.evaluation import METRICS

_LAST_WRITES = 3.0  # seconds for MLflow to take what is left when the user wants to stop


def train(
    trials: Sequence[TrialConfig] | Search,
    plan: Plan,
    open_run: Callable[[TrialConfig], TrialRun],
    *,
    assets: dict[str, TrialAssets],
    resources: Resources,
    storage: StudyStorage,
    writer: BackgroundWriter,
    max_failures: int,
) -> Recorder:
    """Train to the end, and wait until all of it is in MLflow; what failed is in ``failures``.

    A search says which trial comes next, and which is stopped early. A trial that was left unfinished, by
    an earlier command or by a worker that died, resumes from its newest good checkpoint, the latter up to
    ``max_failures`` times. Raises KeyboardInterrupt on Ctrl-C, and StoppedError where Ray, the disk or the
    tracking store stops training.
    """
    search = trials if isinstance(trials, Search) else None
    expected = trials.left if isinstance(trials, Search) else len(trials)
    metrics = ["train_loss", "train_acc", *(f"val_{name}" for name in METRICS)]
    with Progress(metrics, resources.concurrent, expected) as progress:
        recorder = Recorder(
            plan,
            open_run,
            search=search,
            assets=assets,
            storage=storage,
            writer=writer,
            progress=progress,
        )
        for config in () if isinstance(trials, Search) else trials:
            recorder.trial_proposed(config, plan.name(config.trial_hash))
        try:
            _run_tune(
                trials,
                {model: ray.put(value) for model, value in assets.items()},
                resources,
                recorder=recorder,
                storage=storage,
                max_failures=max_failures,
            )
            writer.finish()
        except (KeyboardInterrupt, OSError, RayError, TuneError) as error:
            recorder.interrupt()
            writer.wait(_LAST_WRITES)
            if isinstance(error, KeyboardInterrupt):
                raise
            raise StoppedError(
                f"training stopped ({last_line(error)}): run the same command again to continue"
            ) from error
        finally:
            writer.stop()
    return recorder


def _run_tune(
    trials: Sequence[TrialConfig] | Search,
    assets: dict[str, "ray.ObjectRef[TrialAssets]"],
    resources: Resources,
    *,
    recorder: Recorder,
    storage: StudyStorage,
    max_failures: int,
) -> None:
    """Run one Tune trial per config, one ``step()`` per evaluation; returns when none is left running."""
    trainable = tune.with_resources(
        tune.with_parameters(EncoderTrainable, assets=assets, storage=str(storage.trials)),
        resources.for_ray(),
    )
    trainable.__qualname__ = EncoderTrainable.__name__  # what Ray's dashboard calls a worker
    shutil.rmtree(storage.tune, ignore_errors=True)  # of a command that was killed
    queue, grid = None, {}
    if isinstance(trials, Search):
        queue = _Queue(trials, recorder)
    else:
        grid = {"trial": tune.grid_search([config.to_dict() for config in trials])}
    tuner = tune.Tuner(
        trainable,
        param_space=grid,
        tune_config=tune.TuneConfig(
            search_alg=queue,
            num_samples=-1 if queue else 1,  # the queue says when it ends
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
            trial_name_creator=trial_hash_of,
            trial_dirname_creator=trial_hash_of,
        ),
        run_config=tune.RunConfig(
            name=datetime.now().strftime("%Y%m%d-%H%M%S-%f"),
            storage_path=str(storage.tune),
            verbose=0,
            callbacks=[recorder],
            stop=recorder.should_stop if queue else None,
            # the trainable saves itself, into a place that the next command knows
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=max_failures),
        ),
    )
    with _quiet_tune():
        tuner.fit()
    if queue and queue.error:
        raise queue.error


class _Queue(Searcher):
    """Hands Tune the trials of a search, as they are proposed."""

    def __init__(self, search: Search, recorder: Recorder) -> None:
        super().__init__()
        self.error: StoppedError | None = None
        self._search = search
        self._recorder = recorder

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as in Recorder

    def suggest(self, trial_id: str) -> Any:
        try:
            config = self._search.next()
        except StoppedError as error:  # raised here, it would be lost in Tune
            self.error = error
            return Searcher.FINISHED
        if config is None:
            return Searcher.FINISHED if self._search.is_over else None
        self._recorder.trial_proposed(config, self._search.name(config.trial_hash))
        return {"trial": config.to_dict()}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The recorder tells the search how its trials end."""

    def save(self, checkpoint_path: str) -> None:
        """A search has no state to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune reports failed trials on its own; the recorder has already said so in one line each."""
    os.environ["TUNE_WARN_THRESHOLD_S"] = "30"
    # Tune's own handler waits for every running step() to end, which may be many minutes
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def in_time(call: Callable[[], None]) -> None:
    """Give a last call to MLflow some seconds: a server that hangs must not hold up Ctrl-C."""

    def attempt() -> None:
        with contextlib.suppress(Exception):
            call()

    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(_LAST_WRITES)
