"""Train the trials of a stage on Ray Tune."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, MutableMapping, Set
from datetime import datetime
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError
from ray.tune.search import Searcher

from errors import StoppedError, last_line
from search_spaces import Stage
from search_spaces.plan import Plan
from search_spaces.stages import Outcome, Proposal
from sweep.cluster import Resources
from sweep.metrics import ExportedMetrics
from sweep.progress import Progress
from sweep.queue import TrialQueue
from sweep.recorder import Recorder, trial_hash_of
from sweep.storage import StudyStorage
from sweep.trial_writer import TrialWriter
from tracking import LAST_WRITES, BackgroundWriter, TrialRun
from trainables.assets import TrialAssets
from trainables.encoder_trainable import EncoderTrainable
from trainables.evaluation import METRICS


def train(
    stage: Stage,
    outcomes: MutableMapping[str, Outcome],
    ended: Set[str],
    plan: Plan,
    open_run: Callable[[Proposal], TrialRun],
    *,
    assets: dict[str, TrialAssets],
    resources: Resources,
    storage: StudyStorage,
    writer: BackgroundWriter,
    max_failures: int,
) -> Recorder:
    """Train a stage to its end, and wait until MLflow has it all; failed trials are in ``failures``.

    The stage says which trial comes next, and which is stopped early. Trials whose hash is in ``ended`` are
    not trained; ``outcomes`` gets the outcome of each trial that ends. An unfinished trial resumes from its
    newest good checkpoint, after deaths of its worker at most ``max_failures`` times. Raises
    KeyboardInterrupt on Ctrl-C, and StoppedError if Ray, the disk or the tracking store stops training.
    """
    metrics = ["train_loss", "train_acc", *(f"val_{name}" for name in METRICS)]
    expected = stage.trials - sum(each.trial_hash in ended for each in stage.proposed(outcomes))
    with Progress(metrics, resources.concurrent, expected) as progress:
        queue = TrialQueue(stage, outcomes, ended, max_failures)
        recorder = Recorder(plan, queue, progress, ExportedMetrics(plan.study))
        recorder.writer = TrialWriter(
            plan,
            open_run,
            assets=assets,
            storage=storage,
            writer=writer,
            refused=recorder.fail,
            finished=progress.trial_finished,
            say=progress.say,
        )
        queue.announce = recorder.trial_proposed
        try:
            _run_tune(
                queue,
                {model: ray.put(value) for model, value in assets.items()},
                resources,
                recorder=recorder,
                storage=storage,
                max_failures=max_failures,
            )
            writer.finish()
        except (KeyboardInterrupt, OSError, RayError, TuneError) as error:
            recorder.interrupt()
            writer.wait(LAST_WRITES)
            if isinstance(error, KeyboardInterrupt):
                raise
            raise StoppedError(
                f"training stopped ({last_line(error)}): run the same command again to continue"
            ) from error
        finally:
            writer.stop()
    return recorder


def _run_tune(
    queue: TrialQueue,
    assets: dict[str, "ray.ObjectRef[TrialAssets]"],
    resources: Resources,
    *,
    recorder: Recorder,
    storage: StudyStorage,
    max_failures: int,
) -> None:
    """Run one Tune trial per proposal, one ``step()`` per evaluation; returns when none is left running."""
    trainable = tune.with_resources(
        tune.with_parameters(EncoderTrainable, assets=assets, storage=str(storage.trials)),
        resources.for_ray(),
    )
    trainable.__qualname__ = EncoderTrainable.__name__  # what Ray's dashboard calls a worker
    shutil.rmtree(storage.tune, ignore_errors=True)  # left by a command that was killed
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(queue),
            num_samples=-1,  # the queue says when it ends
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
            stop=recorder.should_stop,
            # the trainable saves itself, into a place that the next command knows
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=max_failures),
        ),
    )
    with _quiet_tune():
        tuner.fit()
    if queue.error:
        raise queue.error


class _Searcher(Searcher):
    """Hands Tune the trials of a queue."""

    def __init__(self, queue: TrialQueue) -> None:
        super().__init__()
        self._queue = queue

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as in Recorder

    def suggest(self, trial_id: str) -> Any:
        try:
            proposal = self._queue.next()
        except StoppedError as error:  # raised here, it would be lost in Tune
            self._queue.error = error
            return Searcher.FINISHED
        if proposal is None:
            return Searcher.FINISHED if self._queue.is_over else None
        return {"trial": proposal.config.to_dict()}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The recorder tells the queue how its trials end."""

    def save(self, checkpoint_path: str) -> None:
        """A stage has no state to save."""

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
