"""What Ray Tune reports while it trains goes to MLflow, to the screen and to the search."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from errors import last_line, printable
from search_spaces import TrialConfig
from search_spaces.search_space import COMPLETE, DIVERGED, STOPPED, Outcome
from sweep.metrics import ExportedMetrics
from sweep.plan import Plan
from sweep.progress import Progress
from sweep.search import Search
from sweep.storage import StudyStorage
from tracking import BackgroundWriter, ModelFiles, OtherTrainingError, TrialRun
from trainables.assets import TrialAssets
from trainables.checkpoint import read_progress, weight_files
from trainables.exported_model import ClassifierCard, export_model
from trainables.trial import best_evaluation

_PROJECT = Path(__file__).resolve().parent.parent
_LOADER = "trainables.exported_model"
_LOADER_CODE = tuple(
    _PROJECT / name for name in ("trainables", "search_spaces", "errors.py", "addresses.py")
)

Report = dict[str, Any]


class Recorder(tune.Callback):
    """Writes every evaluation, uploads both models when a trial is trained, keeps why a trial failed.

    Writing happens in the background, in order, so that a store that is slow or away does not hold up
    training. ``failures`` maps the hash of every failed trial to its reason, ``runs`` those that have
    started to their runs, and ``ended`` holds those that reached their last step or failed. ``open_run``
    gives the run of a trial. Trials of a ``search`` keep no models; the search hears how they end.
    """

    def __init__(
        self,
        plan: Plan,
        open_run: Callable[[TrialConfig], TrialRun],
        *,
        search: Search | None = None,
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
        self._search = search
        self._assets = assets
        self._storage = storage
        self._writer = writer
        self._progress = progress
        self._exported = ExportedMetrics(plan.study)
        self._names: dict[str, str] = {}
        self._histories: dict[str, list[Report]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for Tuner.restore, which is not how a study resumes

    def interrupt(self) -> None:
        """Mark the runs of the trials that did not come to their end."""
        for trial_hash, run in list(self.runs.items()):
            if trial_hash not in self.ended:
                self._submit(trial_hash, run.interrupt)

    def trial_proposed(self, config: TrialConfig, name: str) -> None:
        """Show a trial that is to be trained."""
        self._names[config.trial_hash] = name
        epochs = self._plan.spent(config)["epochs"]
        self._progress.add_trial(config.trial_hash, name, epochs, config.evaluation_count)

    def should_stop(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether the search has seen enough of a trial, evaluated or about to be resumed."""
        if self._search is None or "failure" in result:
            return False
        trial_hash = TrialConfig.from_dict(result["config"]["trial"]).trial_hash
        return self._search.should_stop(_val_accs(self._history(trial_hash, result)))

    # -- Tune's events ----------------------------------------------------------------------------

    def on_trial_start(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Open the trial's run."""
        config = _config(trial)
        self._progress.trial_started(config.trial_hash)
        self._submit(config.trial_hash, partial(self._open, config))

    def on_trial_result(
        self, iteration: int, trials: list, trial: TuneTrial, result: dict, **info: Any
    ) -> None:
        """Write an evaluation, and the earlier ones of a trial that was resumed."""
        config = _config(trial)
        trial_hash = config.trial_hash
        if "failure" in result:
            self._stopped_by_itself(trial_hash, result)
            return
        for damage in result["damaged"]:
            self._progress.say(trial_hash, f"{damage}: left out")
        history = self._histories[trial_hash] = self._history(trial_hash, result)
        self._progress.evaluated(trial_hash, history[-1] | self._best(config, history))
        self._exported.evaluated(self._names[trial_hash], history[-1])
        self._submit(trial_hash, partial(self._log, config, history))

    def on_trial_complete(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Upload the models; the last checkpoint holds both."""
        config = _config(trial)
        trial_hash = config.trial_hash
        history = self._histories.pop(trial_hash, [])
        _forget_averages(trial)
        if trial_hash in self.failures or trial_hash in self.ended:
            self._end(trial_hash)
        elif self._search:
            state = COMPLETE if len(history) == config.evaluation_count else STOPPED
            self._end(trial_hash, Outcome(state, _val_accs(history)))
            self._submit(trial_hash, partial(self._finish, trial_hash, state, self._best(config, history)))
        else:
            self._end(trial_hash)
            self._submit(trial_hash, partial(self._upload, config))

    def on_trial_recover(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Say that a trial failed and is tried again."""
        again = f"{worker_error(trial)}: resumed from its last checkpoint"
        self._progress.say(trial_hash_of(trial), f"{again} (failure {trial.num_failures})")

    def on_trial_error(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Keep the reason."""
        trial_hash = trial_hash_of(trial)
        self._end(trial_hash)
        self._fail(trial_hash, worker_error(trial))

    def _stopped_by_itself(self, trial_hash: str, result: Mapping[str, Any]) -> None:
        """In a search a trial that diverged is done; in a grid it has failed, and its run says of what."""
        why = result["failure"]
        if self._search is None or not result["diverged"]:
            self._fail(trial_hash, why, DIVERGED if result["diverged"] else "")
            return
        history = self._histories.get(trial_hash, [])
        self._end(trial_hash, Outcome(DIVERGED, _val_accs(history)))
        self._submit(trial_hash, partial(self._finish, trial_hash, DIVERGED, {}, why))
        self._progress.trial_failed(trial_hash, why)

    def _end(self, trial_hash: str, outcome: Outcome | None = None) -> None:
        self.ended.add(trial_hash)
        self._exported.trial_ended(self._names[trial_hash])
        if self._search:
            self._search.ended(trial_hash, outcome)

    def _history(self, trial_hash: str, result: Mapping[str, Any]) -> list[Report]:
        """The reports of a trial's evaluations, the one in ``result`` last."""
        report, known = result["report"], result["earlier"] or self._histories.get(trial_hash, [])
        return [*(each for each in known if each["evaluation"] < report["evaluation"]), report]

    # -- writing ----------------------------------------------------------------------------------

    def _submit(self, trial_hash: str, write: Callable[[], None]) -> None:
        def refused(error: Exception) -> None:
            if trial_hash not in self.failures:  # what follows the first one follows from it
                self._fail(trial_hash, f"could not be tracked: {last_line(error)}")

        self._writer.submit(trial_hash, write, refused)

    def _fail(self, trial_hash: str, why: str, outcome: str = "") -> None:
        self.failures[trial_hash] = why
        self._submit(trial_hash, lambda: self.runs[trial_hash].fail(why, outcome))
        self._progress.trial_failed(trial_hash, why)

    def _open(self, config: TrialConfig) -> None:
        if config.trial_hash not in self.runs:
            self.runs[config.trial_hash] = self._open_run(config)

    def _log(self, config: TrialConfig, history: Sequence[Report]) -> None:
        trial_hash = config.trial_hash
        try:
            self.runs[trial_hash].log_evaluations(history)
        except OtherTrainingError as error:  # it was trained again without its checkpoints
            self._progress.say(trial_hash, f"{error}: it gets a new run")
            self.runs[trial_hash].supersede()
            self.runs[trial_hash] = self._open_run(config)
            self.runs[trial_hash].log_evaluations(history)

    def _finish(self, trial_hash: str, state: str, results: dict[str, float], why: str = "") -> None:
        if trial_hash in self.failures:
            return  # as in _upload
        self.runs[trial_hash].log_outcome(state, results, why)
        self._storage.trial_folder(trial_hash).remove()
        if not why:
            self._progress.trial_finished(trial_hash)

    def _upload(self, config: TrialConfig) -> None:
        trial_hash = config.trial_hash
        if trial_hash in self.failures:
            return  # an evaluation was refused since: its checkpoint is what the next run writes it from
        assets = self._assets[config.model]
        folder = self._storage.trial_folder(trial_hash)
        checkpoint = folder.newest(assets.digest).folder
        history = read_progress(checkpoint)["history"] if checkpoint else []
        if checkpoint is None or len(history) < config.evaluation_count:
            raise RuntimeError("the last checkpoint is missing or damaged: run again")
        best, weights = best_evaluation(history), weight_files(checkpoint)
        with tempfile.TemporaryDirectory() as temporary:
            models = {}
            for which, evaluation in {"best": best, "last": len(history)}.items():
                card = self._card(config, evaluation, history[evaluation - 1]["val_acc"])
                classifier = Path(temporary) / which / "classifier"
                export_model(classifier, weights[which], assets.encoder, card)
                models[which] = ModelFiles(classifier, _LOADER, _LOADER_CODE)
            last = None if best == len(history) else models["last"]
            self.runs[trial_hash].log_models(models["best"], last, self._best(config, history))
        folder.keep_newest()
        self._progress.trial_finished(trial_hash)

    def _best(self, config: TrialConfig, history: Sequence[Report]) -> dict[str, float]:
        """The best evaluation: its position in training and its val_acc."""
        best = best_evaluation(history)
        position = config.position(best, self._plan.train_examples)
        found = {f"best_{name}": value for name, value in position._asdict().items()}
        return found | {"best_val_acc": history[best - 1]["val_acc"]}

    def _card(self, config: TrialConfig, evaluation: int, val_acc: float) -> ClassifierCard:
        return ClassifierCard(
            model=config.model_name,
            label_names=self._plan.splits.label_names,
            max_length=config.max_length,
            dropout=config.head_dropout,
            trial_hash=config.trial_hash,
            epoch=config.position(evaluation, self._plan.train_examples).epoch,
            val_acc=val_acc,
        )


def _config(trial: TuneTrial) -> TrialConfig:
    return TrialConfig.from_dict(trial.config["trial"])


def trial_hash_of(trial: TuneTrial) -> str:
    """The hash of the configuration that Tune trains."""
    return _config(trial).trial_hash


def _val_accs(history: Sequence[Report]) -> tuple[float, ...]:
    return tuple(report["val_acc"] for report in history)


def _forget_averages(trial: TuneTrial) -> None:
    """Tune keeps running averages of every number to its end: 64 KB a trial, which nothing here reads."""
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()


def worker_error(trial: TuneTrial) -> str:
    """The message at the end of the traceback that Tune keeps, without the exception's module."""
    text = Path(trial.error_file).read_text() if trial.error_file else ""
    raised = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt)\w*)(?:: (.+))?$", text, re.MULTILINE)
    name, message = raised[-1] if raised else ("", "")
    if not name or "ActorDied" in name or "ActorUnavailable" in name:
        return "its worker died"
    return printable(message.strip()) or name
