"""From Tune's events to the journal, MLflow and the progress table: the only writer of a study's store."""

import re
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from errors import last_line
from search_spaces import TrialConfig
from sweep.journal import Report
from sweep.plan import Plan
from sweep.progress import Progress
from sweep.storage import StudyStorage
from sweep.store_writer import StoreWriter
from tracking import (
    EPOCH_METRICS,
    MEMORY_METRICS,
    NOISE_METRICS,
    ModelFiles,
    OtherTrainingError,
    TrialRun,
    now_ms,
)
from trainables.checkpoint import read_progress, weight_files
from trainables.exported_model import ClassifierCard, export_model
from trainables.trial import TrialAssets, best_epoch

_PROJECT = Path(__file__).resolve().parent.parent
_LOADER = "trainables.exported_model"
_LOADER_CODE = tuple(_PROJECT / name for name in ("trainables", "search_spaces", "errors.py"))
_REPORT_KEYS = ("epoch", "step_curve", *EPOCH_METRICS, *NOISE_METRICS, *MEMORY_METRICS)


class Recorder(Callback):
    """Journals and writes every epoch, uploads both models when a trial is done, keeps why one failed.

    Writing happens in the background, in order, so that a store that is slow or away does not hold up
    training. ``failures`` maps the hash of every failed trial to its reason, and ``ended`` holds the
    hashes of those that reached their last epoch or failed. ``open_run`` gives the run of the trial that
    serves some cells.
    """

    def __init__(
        self,
        plan: Plan,
        open_run: Callable[[Sequence[TrialConfig]], TrialRun],
        *,
        assets: dict[str, TrialAssets],
        storage: StudyStorage,
        writer: StoreWriter,
        progress: Progress,
    ) -> None:
        self.failures: dict[str, str] = {}
        self.ended: set[str] = set()
        self._plan = plan
        self._open_run = open_run
        self._assets = assets
        self._storage = storage
        self._writer = writer
        self._progress = progress
        self._runs: dict[str, TrialRun] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for Tuner.restore, which is not how a study resumes

    def interrupt(self) -> None:
        """Mark the runs of the trials that did not come to their end."""
        for trial_hash, run in list(self._runs.items()):
            if trial_hash not in self.ended:
                self._submit(trial_hash, run.interrupt)

    # -- Tune's events ----------------------------------------------------------------------------

    def on_trial_start(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Open the trial's run."""
        trial_hash = _trial_hash(trial)
        self._progress.started(trial_hash)
        self._submit(trial_hash, partial(self._open, trial_hash))

    def on_trial_result(
        self, iteration: int, trials: list, trial: TuneTrial, result: dict, **info: Any
    ) -> None:
        """Journal and write an epoch."""
        trial_hash = _trial_hash(trial)
        if "failure" in result:
            self._fail(trial_hash, result["failure"])
            return
        for damage in result["damaged"]:
            self._progress.say(trial_hash, f"{damage}: left out")
        self._progress.epoch(trial_hash, dict(result))
        reports = self._journaled(trial_hash, [*result["earlier"], result])
        self._submit(trial_hash, partial(self._log, trial_hash, reports))

    def on_trial_complete(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Upload the models; the checkpoint of the last epoch holds both."""
        trial_hash = _trial_hash(trial)
        self.ended.add(trial_hash)
        _forget_averages(trial)
        if trial_hash not in self.failures:
            self._submit(trial_hash, partial(self._upload, trial_hash))

    def on_trial_recover(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Say that a trial failed and is tried again."""
        again = f"{_worker_error(trial)}: goes on from its last epoch"
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
        self._progress.failed(trial_hash, why)
        self._submit(trial_hash, lambda: self._runs[trial_hash].fail(why))

    def _journaled(self, trial_hash: str, results: Sequence[Report]) -> list[Report]:
        reports = [{key: r[key] for key in _REPORT_KEYS if key in r} for r in results]
        try:
            return self._storage.journal.add(trial_hash, reports)
        except OSError as error:  # the checkpoint holds them as well
            self._progress.say(
                trial_hash, f"epoch {reports[-1]['epoch']} is not journaled: {error.strerror}"
            )
            now = now_ms()  # an epoch has one time, however often it is written
            return [report | {"timestamp": now} for report in reports]

    def _open(self, trial_hash: str) -> None:
        if trial_hash not in self._runs:
            self._runs[trial_hash] = self._open_run(self._plan.trials[trial_hash])

    def _log(self, trial_hash: str, reports: Sequence[Report]) -> None:
        try:
            self._runs[trial_hash].log_epochs(reports)
        except OtherTrainingError as error:
            self._progress.say(trial_hash, f"{error}: it gets a new run")
            self._runs[trial_hash].leave_behind()
            run = self._open_run(self._plan.trials[trial_hash])
            run.log_epochs(self._until(trial_hash, reports))
            self._runs[trial_hash] = run  # last, so that all of it is repeated if any of it fails

    def _until(self, trial_hash: str, reports: Sequence[Report]) -> list[Report]:
        """All epochs up to the last of these; what the journal has beyond is of an earlier training."""
        journaled = {report["epoch"]: report for report in self._storage.journal.epochs(trial_hash)}
        known = journaled | {report["epoch"]: report for report in reports}
        return [known[epoch] for epoch in sorted(known) if epoch <= reports[-1]["epoch"]]

    def _upload(self, trial_hash: str) -> None:
        if trial_hash in self.failures:
            return  # an epoch was refused since: its checkpoint is what the next run writes it from
        run = self._runs[trial_hash]
        config = self._plan.trials[trial_hash][0]
        assets = self._assets[config.model]
        checkpoint = self._storage.trial_folder(trial_hash).newest(assets.digest).folder
        history = read_progress(checkpoint)["history"] if checkpoint else []
        if checkpoint is None or len(history) < config.epochs:
            raise RuntimeError("the checkpoint of the last epoch is missing or damaged: run again")
        best, files = best_epoch(history), weight_files(checkpoint)
        with tempfile.TemporaryDirectory() as temporary:
            models = {}
            for which, epoch in {"best": best, "last": len(history)}.items():
                card = self._card(config, epoch, history[epoch - 1]["val_acc"])
                folder = Path(temporary) / which / "classifier"
                export_model(folder, files[which], assets.encoder, card)
                models[which] = ModelFiles(folder, _LOADER, _LOADER_CODE)
            last = None if best == len(history) else models["last"]
            run.log_models(models["best"], last, best, history[best - 1]["val_acc"])
        self._storage.forget(trial_hash)  # all of it is in MLflow now
        self._progress.finished(trial_hash)

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
