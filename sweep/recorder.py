"""From Tune's events to MLflow and the progress table: the only writer of a study's store."""

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from search_spaces import TrialConfig
from sweep.plan import Plan
from sweep.progress import Progress
from tracking import ModelFiles, TrialRun
from trainables.checkpoint import read_progress, weight_files
from trainables.encoders import EncoderAssets
from trainables.exported_model import ClassifierCard, export_model
from trainables.trial import best_epoch

_PROJECT = Path(__file__).resolve().parent.parent
_LOADER = "trainables.exported_model"
_LOADER_CODE = (_PROJECT / "trainables", _PROJECT / "search_spaces")


class Recorder(Callback):
    """Writes every epoch, uploads both models when a trial is done, keeps the reason of a failure.

    Writing happens in one thread, in order, so that a slow store does not hold up training. A write
    that fails fails its trial: ``failures`` maps the hash of every failed trial to its reason;
    ``ended`` holds the hashes of those that reached their last epoch or failed. ``open_run`` gives the
    run of the trial that serves some cells.
    """

    def __init__(
        self,
        plan: Plan,
        open_run: Callable[[Sequence[TrialConfig]], TrialRun],
        encoders: dict[str, EncoderAssets],
        progress: Progress,
    ) -> None:
        self.failures: dict[str, str] = {}
        self.ended: set[str] = set()
        self._plan = plan
        self._open_run = open_run
        self._encoders = encoders
        self._progress = progress
        self._runs: dict[str, TrialRun] = {}
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow-writer")
        self._pending: list[Future[None]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for Tuner.restore, which is not how a study resumes

    def drain(self) -> None:
        """Wait until everything is written."""
        for future in self._pending:
            future.result()
        self._writer.shutdown()

    # -- Tune's events ----------------------------------------------------------------------------

    def on_trial_start(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Open the trial's run."""
        trial_hash = _trial_hash(trial)
        self._progress.started(trial_hash)
        self._submit(trial_hash, self._open)

    def on_trial_result(
        self, iteration: int, trials: list, trial: TuneTrial, result: dict, **info: Any
    ) -> None:
        """Write an epoch."""
        trial_hash, report = _trial_hash(trial), dict(result)
        self._progress.epoch(trial_hash, report)
        self._submit(trial_hash, lambda h: self._runs[h].log_epochs([*report["earlier"], report]))

    def on_trial_complete(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Upload the models; the checkpoint of the last epoch holds both."""
        trial_hash = _trial_hash(trial)
        self.ended.add(trial_hash)
        if trial.checkpoint is None:
            self._fail(trial_hash, "Ray kept no checkpoint of the last epoch")
            return
        folder = Path(trial.checkpoint.path)
        self._submit(trial_hash, lambda h: self._upload(h, folder))

    def on_trial_error(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Keep the reason."""
        trial_hash = _trial_hash(trial)
        self.ended.add(trial_hash)
        self._fail(trial_hash, _worker_error(trial))

    # -- writing ----------------------------------------------------------------------------------

    def _submit(self, trial_hash: str, write: Callable[[str], None]) -> None:
        def guarded() -> None:
            if trial_hash in self.failures:
                return
            try:
                write(trial_hash)
            except Exception as error:  # whatever the store raises, the trial must not look finished
                self._fail_now(trial_hash, f"could not be tracked: {reason(error)}")

        self._pending.append(self._writer.submit(guarded))

    def _fail(self, trial_hash: str, why: str) -> None:
        self._pending.append(self._writer.submit(self._fail_now, trial_hash, why))

    def _fail_now(self, trial_hash: str, why: str) -> None:
        self.failures[trial_hash] = why
        self._progress.failed(trial_hash, why)
        run = self._runs.get(trial_hash)
        if run is None:
            return
        try:
            run.fail(why)
        except Exception as error:  # the store itself is gone; the command still ends with exit code 1
            self.failures[trial_hash] = f"{why} (nor could that be tracked: {reason(error)})"

    def _open(self, trial_hash: str) -> None:
        if trial_hash not in self._runs:
            self._runs[trial_hash] = self._open_run(self._plan.trials[trial_hash])

    def _upload(self, trial_hash: str, checkpoint: Path) -> None:
        run = self._runs[trial_hash]
        history = read_progress(checkpoint)["history"]
        best, files = best_epoch(history), weight_files(checkpoint)
        config = self._plan.trials[trial_hash][0]
        with tempfile.TemporaryDirectory() as temporary:
            models = {}
            for which, epoch in {"best": best, "last": len(history)}.items():
                card = self._card(config, epoch, history[epoch - 1]["val_acc"])
                folder = Path(temporary) / which / "classifier"
                export_model(folder, files[which], self._encoders[config.model], card)
                models[which] = ModelFiles(folder, _LOADER, _LOADER_CODE)
            last = None if best == len(history) else models["last"]
            run.log_models(models["best"], last, best, history[best - 1]["val_acc"])
        shutil.rmtree(checkpoint, ignore_errors=True)  # both models are in MLflow now
        self._progress.finished(trial_hash)

    def _card(self, config: TrialConfig, epoch: int, val_acc: float) -> ClassifierCard:
        return ClassifierCard(
            model=config.model_name,
            label_names=self._plan.splits.label_names,
            max_length=config.max_length,
            dropout=config.dropout,
            trial_hash=config.trial_hash,
            epoch=epoch,
            val_acc=val_acc,
        )


def _trial_hash(trial: TuneTrial) -> str:
    return TrialConfig.from_dict(trial.config["trial"]).trial_hash


def _worker_error(trial: TuneTrial) -> str:
    """The message at the end of the traceback that Tune keeps, without the exception's module."""
    text = Path(trial.error_file).read_text() if trial.error_file else ""
    raised = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\w*: (.+)", text, re.MULTILINE)
    return raised[-1].strip() if raised else "the worker ended without saying why"


def reason(error: BaseException) -> str:
    """The last line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
