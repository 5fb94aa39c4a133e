"""What becomes of trials goes to MLflow: every evaluation, the models, why a trial failed."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import last_line
from search_spaces import TrialConfig
from search_spaces.plan import Plan
from search_spaces.stages import Proposal
from sweep.storage import StudyStorage
from tracking import BackgroundWriter, ModelFiles, OtherTrainingError, TrialRun
from trainables.assets import TrialAssets
from trainables.checkpoint import read_progress, weight_files
from trainables.exported_model import ClassifierCard, export_model
from trainables.trial import Report, best_evaluation

_PROJECT = Path(__file__).resolve().parent.parent
_LOADER = "trainables.exported_model"
_LOADER_CODE = tuple(
    _PROJECT / name for name in ("trainables", "search_spaces", "errors.py", "addresses.py")
)


class TrialWriter:
    """Writes in the background, in order, so that a store that is slow or away does not hold up training.

    ``runs`` maps the hash of every started trial to its run, which ``open_run`` gives. ``refused`` is told
    why MLflow refused part of a trial, ``finished`` when MLflow has all of a trial, and ``say`` what a user
    should know.
    """

    def __init__(
        self,
        plan: Plan,
        open_run: Callable[[Proposal], TrialRun],
        *,
        assets: Mapping[str, TrialAssets],
        storage: StudyStorage,
        writer: BackgroundWriter,
        refused: Callable[[str, str], None],
        finished: Callable[[str], None],
        say: Callable[[str, str], None],
    ) -> None:
        self.runs: dict[str, TrialRun] = {}
        self._plan = plan
        self._open_run = open_run
        self._assets = assets
        self._storage = storage
        self._writer = writer
        self._refused = refused
        self._finished = finished
        self._say = say
        self._failed: set[str] = set()  # later failures of a trial follow from its first

    def open(self, proposal: Proposal) -> None:
        """Open the trial's run."""

        def write() -> None:
            if proposal.trial_hash not in self.runs:
                self.runs[proposal.trial_hash] = self._open_run(proposal)

        self._submit(proposal.trial_hash, write)

    def log(self, proposal: Proposal, history: Sequence[Report]) -> None:
        """Write the evaluations that MLflow lacks."""

        def write() -> None:
            run = self.runs[proposal.trial_hash]
            try:
                run.log_evaluations(history)
            except OtherTrainingError as error:  # it was trained again without its checkpoints
                self._say(proposal.trial_hash, f"{error}: it gets a new run")
                run.supersede()
                run = self.runs[proposal.trial_hash] = self._open_run(proposal)
                run.log_evaluations(history)

        self._submit(proposal.trial_hash, write)

    def finish(self, proposal: Proposal, state: str, history: Sequence[Report], why: str = "") -> None:
        """Write how a trial without models ended; ``why`` is the reason if it failed for good."""

        def write(trial_hash: str = proposal.trial_hash) -> None:
            results = {} if why else best_results(self._plan, proposal.config, history)
            self.runs[trial_hash].log_outcome(state, results, why)
            self._storage.trial_folder(trial_hash).remove()
            if not why:
                self._finished(trial_hash)

        self._submit_unless_failed(proposal.trial_hash, write)

    def upload(self, proposal: Proposal) -> None:
        """Upload both models from the last checkpoint."""
        self._submit_unless_failed(proposal.trial_hash, lambda: self._upload(proposal.config))

    def fail(self, trial_hash: str, why: str, outcome: str = "") -> None:
        """Write why a trial failed; ``outcome`` is given if a retry would end the same way."""
        self._failed.add(trial_hash)
        self._submit(trial_hash, lambda: self.runs[trial_hash].fail(why, outcome))

    def interrupt(self, trial_hashes: set[str]) -> None:
        """Mark the runs of trials that have not ended."""
        for trial_hash in trial_hashes & self.runs.keys():
            self._submit(trial_hash, self.runs[trial_hash].interrupt)

    def _submit_unless_failed(self, trial_hash: str, write: Callable[[], None]) -> None:
        """MLflow may refuse an evaluation; the checkpoint stays so that the next run can write it."""
        self._submit(trial_hash, lambda: None if trial_hash in self._failed else write())

    def _submit(self, trial_hash: str, write: Callable[[], Any]) -> None:
        def refused(error: Exception) -> None:
            if trial_hash not in self._failed:
                self._refused(trial_hash, f"could not be tracked: {last_line(error)}")

        self._writer.submit(trial_hash, write, refused)

    def _upload(self, config: TrialConfig) -> None:
        trial_hash = config.trial_hash
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
            results = best_results(self._plan, config, history)
            self.runs[trial_hash].log_models(models["best"], last, results)
        folder.keep_newest()
        self._finished(trial_hash)

    def _card(self, config: TrialConfig, evaluation: int, val_acc: float) -> ClassifierCard:
        return ClassifierCard(
            model=config.model_name,
            label_names=self._plan.dataset.label_names,
            max_length=config.max_length,
            dropout=config.head_dropout,
            trial_hash=config.trial_hash,
            epoch=config.position(evaluation, self._plan.train_examples).epoch,
            val_acc=val_acc,
        )


def best_results(plan: Plan, config: TrialConfig, history: Sequence[Report]) -> dict[str, float]:
    """The best evaluation: its position in training and its val_acc."""
    best = best_evaluation(history)
    position = config.position(best, plan.train_examples)
    found = {f"best_{name}": value for name, value in position._asdict().items()}
    return found | {"best_val_acc": history[best - 1]["val_acc"]}
