"""Train the trials of a plan on Ray Tune, and write what they report to MLflow while they train."""

import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from errors import last_line
from search_spaces import TrialConfig
from sweep.cluster import Resources
from sweep.plan import Plan
from sweep.progress import Progress
from sweep.storage import StudyStorage
from tracking import BackgroundWriter, ModelFiles, OtherTrainingError, TrialRun
from trainables.assets import TrialAssets
from trainables.checkpoint import read_progress, weight_files
from trainables.encoder_trainable import EncoderTrainable
from trainables.exported_model import ClassifierCard, export_model
from trainables.trial import best_epoch

_PROJECT = Path(__file__).resolve().parent.parent
_LOADER = "trainables.exported_model"
_LOADER_CODE = tuple(_PROJECT / name for name in ("trainables", "search_spaces", "errors.py"))

Report = dict[str, Any]


def train(
    configs: Sequence[TrialConfig],
    assets: dict[str, TrialAssets],
    resources: Resources,
    storage: StudyStorage,
    *,
    recorder: "Recorder",
    max_failures: int,
) -> None:
    """Run one Tune trial per config, one ``step()`` per epoch; returns when none is left running.

    A trial that was left unfinished, by an earlier command or by a worker that died, resumes from its
    newest good checkpoint, the latter up to ``max_failures`` times. What fails in the end is in
    ``recorder.failures``. Raises KeyboardInterrupt on Ctrl-C.
    """
    references = {model: ray.put(value) for model, value in assets.items()}
    trainable = tune.with_resources(
        tune.with_parameters(EncoderTrainable, assets=references, storage=str(storage.trials)),
        resources.for_ray(),
    )
    shutil.rmtree(storage.tune, ignore_errors=True)  # of a command that was killed
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([config.to_dict() for config in configs])},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_hash,
            trial_dirname_creator=_trial_hash,
        ),
        run_config=tune.RunConfig(
            name=datetime.now().strftime("%Y%m%d-%H%M%S-%f"),
            storage_path=str(storage.tune),
            verbose=0,
            callbacks=[recorder],
            # the trainable saves itself, into a place that the next command knows
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=max_failures),
        ),
    )
    with _quiet_tune():
        tuner.fit()


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


class Recorder(tune.Callback):
    """Writes every epoch, uploads both models when a trial is trained, keeps why a trial failed.

    Writing happens in the background, in order, so that a store that is slow or away does not hold up
    training. ``failures`` maps the hash of every failed trial to its reason, ``runs`` those that have
    started to their runs, and ``ended`` holds those that reached their last epoch or failed. ``open_run``
    gives the run of a trial.
    """

    def __init__(
        self,
        plan: Plan,
        open_run: Callable[[str], TrialRun],
        *,
        assets: dict[str, TrialAssets],
        storage: StudyStorage,
        writer: BackgroundWriter,
        progress: Progress,
    ) -> None:
        self.failures: dict[str, str] = {}
        self.runs: dict[str, TrialRun] = {}
        self.ended: set[str] = set()
        self._plan = plan
        self._open_run = open_run
        self._assets = assets
        self._storage = storage
        self._writer = writer
        self._progress = progress
        self._histories: dict[str, list[Report]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for Tuner.restore, which is not how a study resumes

    def interrupt(self) -> None:
        """Mark the runs of the trials that did not come to their end."""
        for trial_hash, run in list(self.runs.items()):
            if trial_hash not in self.ended:
                self._submit(trial_hash, run.interrupt)

    # -- Tune's events ----------------------------------------------------------------------------

    def on_trial_start(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Open the trial's run."""
        trial_hash = _trial_hash(trial)
        self._progress.trial_started(trial_hash)
        self._submit(trial_hash, partial(self._open, trial_hash))

    def on_trial_result(
        self, iteration: int, trials: list, trial: TuneTrial, result: dict, **info: Any
    ) -> None:
        """Write an epoch, and the earlier ones of a trial that was resumed."""
        trial_hash = _trial_hash(trial)
        if "failure" in result:
            self._fail(trial_hash, result["failure"])
            return
        for damage in result["damaged"]:
            self._progress.say(trial_hash, f"{damage}: left out")
        report = result["report"]
        known = result["earlier"] or self._histories.get(trial_hash, [])
        history = [*(earlier for earlier in known if earlier["epoch"] < report["epoch"]), report]
        self._histories[trial_hash] = history
        best = best_epoch(history)
        best_so_far = {"best_epoch": best, "best_val_acc": history[best - 1]["val_acc"]}
        self._progress.epoch_finished(trial_hash, report | best_so_far)
        self._submit(trial_hash, partial(self._log, trial_hash, history))

    def on_trial_complete(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Upload the models; the checkpoint of the last epoch holds both."""
        trial_hash = _trial_hash(trial)
        self.ended.add(trial_hash)
        self._histories.pop(trial_hash, None)
        _forget_averages(trial)
        if trial_hash not in self.failures:
            self._submit(trial_hash, partial(self._upload, trial_hash))

    def on_trial_recover(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Say that a trial failed and is tried again."""
        again = f"{_worker_error(trial)}: resumed from its last epoch"
        self._progress.say(_trial_hash(trial), f"{again} (failure {trial.num_failures})")

    def on_trial_error(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Keep the reason."""
        trial_hash = _trial_hash(trial)
        self.ended.add(trial_hash)
        self._fail(trial_hash, _worker_error(trial))

    # -- writing ----------------------------------------------------------------------------------

    def _submit(self, trial_hash: str, write: Callable[[], None]) -> None:
        def refused(error: Exception) -> None:
            if trial_hash not in self.failures:  # what follows the first one follows from it
                self._fail(trial_hash, f"could not be tracked: {last_line(error)}")

        self._writer.submit(trial_hash, write, refused)

    def _fail(self, trial_hash: str, why: str) -> None:
        self.failures[trial_hash] = why
        self._submit(trial_hash, lambda: self.runs[trial_hash].fail(why))
        self._progress.trial_failed(trial_hash, why)

    def _open(self, trial_hash: str) -> None:
        if trial_hash not in self.runs:
            self.runs[trial_hash] = self._open_run(trial_hash)

    def _log(self, trial_hash: str, history: Sequence[Report]) -> None:
        try:
            self.runs[trial_hash].log_epochs(history)
        except OtherTrainingError as error:  # it was trained again without its checkpoints
            self._progress.say(trial_hash, f"{error}: it gets a new run")
            self.runs[trial_hash].supersede()
            self.runs[trial_hash] = self._open_run(trial_hash)
            self.runs[trial_hash].log_epochs(history)

    def _upload(self, trial_hash: str) -> None:
        if trial_hash in self.failures:
            return  # an epoch was refused since: its checkpoint is what the next run writes it from
        config = self._plan.configs[trial_hash]
        assets = self._assets[config.model]
        folder = self._storage.trial_folder(trial_hash)
        checkpoint = folder.newest(assets.digest).folder
        history = read_progress(checkpoint)["history"] if checkpoint else []
        if checkpoint is None or len(history) < config.epochs:
            raise RuntimeError("the checkpoint of the last epoch is missing or damaged: run again")
        best, weights = best_epoch(history), weight_files(checkpoint)
        with tempfile.TemporaryDirectory() as temporary:
            models = {}
            for which, epoch in {"best": best, "last": len(history)}.items():
                card = self._card(config, epoch, history[epoch - 1]["val_acc"])
                classifier = Path(temporary) / which / "classifier"
                export_model(classifier, weights[which], assets.encoder, card)
                models[which] = ModelFiles(classifier, _LOADER, _LOADER_CODE)
            last = None if best == len(history) else models["last"]
            self.runs[trial_hash].log_models(models["best"], last, best, history[best - 1]["val_acc"])
        folder.keep_newest()
        self._progress.trial_finished(trial_hash)

    def _card(self, config: TrialConfig, epoch: int, val_acc: float) -> ClassifierCard:
        return ClassifierCard(
            model=config.model_name,
            label_names=self._plan.splits.label_names,
            max_length=config.max_length,
            dropout=config.head_dropout,
            trial_hash=config.trial_hash,
            epoch=epoch,
            val_acc=val_acc,
        )


def _trial_hash(trial: TuneTrial) -> str:
    return TrialConfig.from_dict(trial.config["trial"]).trial_hash


def _forget_averages(trial: TuneTrial) -> None:
    """Tune keeps running averages of every number to its end: 64 KB a trial, which nothing here reads."""
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()


def _worker_error(trial: TuneTrial) -> str:
    """The message at the end of the traceback that Tune keeps, without the exception's module."""
    text = Path(trial.error_file).read_text() if trial.error_file else ""
    raised = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt)\w*)(?:: (.+))?$", text, re.MULTILINE)
    name, message = raised[-1] if raised else ("", "")
    if not name or "ActorDied" in name or "ActorUnavailable" in name:
        return "its worker died"
    return message.strip() or name
