"""What Ray Tune reports while it trains, as events of trials: for MLflow, the screen, gauges, the queue."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from errors import printable
from search_spaces import TrialConfig
from search_spaces.plan import Plan
from search_spaces.stages import COMPLETE, DIVERGED, STOPPED, Outcome, Proposal
from sweep.metrics import ExportedMetrics
from sweep.progress import Progress
from sweep.queue import TrialQueue
from sweep.trial_writer import TrialWriter, best_results
from trainables.trial import Report


class Recorder(tune.Callback):
    """Passes on what happens to trials, and keeps why a trial failed.

    ``failures`` maps the hash of every failed trial to its reason; ``ended`` holds the hashes of trials
    that have ended or failed.
    """

    def __init__(
        self, plan: Plan, queue: TrialQueue, progress: Progress, exported: ExportedMetrics
    ) -> None:
        self.failures: dict[str, str] = {}
        self.ended: set[str] = set()
        self.writer: TrialWriter  # tells this recorder what MLflow refuses
        self._plan = plan
        self._queue = queue
        self._progress = progress
        self._exported = exported
        self._proposals: dict[str, Proposal] = {}
        self._started: set[str] = set()  # hashes of trials that a worker has started
        self._histories: dict[str, list[Report]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for Tuner.restore, which is not how a study resumes

    def failures_by_name(self) -> dict[str, str]:
        return {self._proposals[trial_hash].name: why for trial_hash, why in self.failures.items()}

    def interrupt(self) -> None:
        """Mark the runs of the trials that have not ended."""
        self.writer.interrupt(self._proposals.keys() - self.ended)

    def trial_proposed(self, proposal: Proposal) -> None:
        """Show a trial that is to be trained."""
        self._proposals[proposal.trial_hash] = proposal
        config, epochs = proposal.config, self._plan.spent(proposal.config)["epochs"]
        self._progress.add_trial(proposal.trial_hash, proposal.name, epochs, config.evaluation_count)

    def should_stop(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether the stage has seen enough of a trial, evaluated or about to be resumed."""
        if "failure" in result:
            return False
        trial_hash = TrialConfig.from_dict(result["config"]["trial"]).trial_hash
        return self._queue.stage.should_stop(_val_accs(self._history(trial_hash, result)))

    # -- Tune's events ----------------------------------------------------------------------------

    def on_trial_start(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Open the trial's run."""
        proposal = self._proposal(trial)
        self._started.add(proposal.trial_hash)
        self._progress.trial_started(proposal.trial_hash)
        self.writer.open(proposal)

    def on_trial_result(
        self, iteration: int, trials: list, trial: TuneTrial, result: dict, **info: Any
    ) -> None:
        """Write an evaluation, and the earlier ones of a trial that was resumed."""
        proposal = self._proposal(trial)
        trial_hash = proposal.trial_hash
        if "failure" in result:
            self._stopped_by_itself(proposal, result["failure"], result["diverged"])
            return
        for damage in result["damaged"]:
            self._progress.say(trial_hash, f"{damage}: left out")
        history = self._histories[trial_hash] = self._history(trial_hash, result)
        best = best_results(self._plan, proposal.config, history)
        self._progress.evaluated(trial_hash, history[-1] | best)
        self._exported.evaluated(proposal.name, history[-1])
        self.writer.log(proposal, history)

    def on_trial_complete(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Upload the models, or write how the trial ended; the last checkpoint holds both models."""
        proposal = self._proposal(trial)
        trial_hash = proposal.trial_hash
        history = self._histories.pop(trial_hash, [])
        _forget_averages(trial)
        if trial_hash in self.failures or trial_hash in self.ended:
            self._end(proposal)
            return
        state = COMPLETE if len(history) == proposal.config.evaluation_count else STOPPED
        self._end(proposal, Outcome(state, _val_accs(history)))
        if self._queue.stage.keeps_models:
            self.writer.upload(proposal)
        else:
            self.writer.finish(proposal, state, history)

    def on_trial_recover(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Say that a trial failed and is tried again."""
        trial_hash = trial_hash_of(trial)
        self._started.discard(trial_hash)
        place = "resumed from its last checkpoint" if trial_hash in self._histories else "started again"
        self._progress.say(trial_hash, f"{worker_error(trial)}: {place} (failure {trial.num_failures})")

    def on_trial_error(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        """Keep the reason; a trial whose worker died before the trial started is given to Tune again.

        Tune counts this death twice, and after the second count it does not retry.
        """
        proposal, why = self._proposal(trial), worker_error(trial)
        if proposal.trial_hash not in self._started and self._queue.again(proposal):
            self._progress.say(proposal.trial_hash, f"{why} before it started: it is tried again")
            return
        self._end(proposal)
        self.fail(proposal.trial_hash, why)

    def fail(self, trial_hash: str, why: str, outcome: str = "") -> None:
        """A trial has failed; ``outcome`` is given if a retry would end the same way."""
        self.failures[trial_hash] = why
        self.writer.fail(trial_hash, why, outcome)
        self._progress.trial_failed(trial_hash, why)

    def _stopped_by_itself(self, proposal: Proposal, why: str, has_diverged: bool) -> None:
        """A trial that diverged is done if the stage keeps no models; otherwise it has failed."""
        trial_hash = proposal.trial_hash
        if self._queue.stage.keeps_models or not has_diverged:
            self.fail(trial_hash, why, DIVERGED if has_diverged else "")
            return
        history = self._histories.get(trial_hash, [])
        self._end(proposal, Outcome(DIVERGED, _val_accs(history)))
        self.writer.finish(proposal, DIVERGED, [], why)
        self._progress.trial_failed(trial_hash, why)

    def _end(self, proposal: Proposal, outcome: Outcome | None = None) -> None:
        self.ended.add(proposal.trial_hash)
        self._exported.trial_ended(proposal.name)
        self._queue.end(proposal.trial_hash, outcome)

    def _history(self, trial_hash: str, result: Mapping[str, Any]) -> list[Report]:
        """The reports of a trial's evaluations, the one in ``result`` last."""
        report, known = result["report"], result["earlier"] or self._histories.get(trial_hash, [])
        return [*(each for each in known if each["evaluation"] < report["evaluation"]), report]

    def _proposal(self, trial: TuneTrial) -> Proposal:
        return self._proposals[trial_hash_of(trial)]


def trial_hash_of(trial: TuneTrial) -> str:
    """The hash of the configuration that Tune trains."""
    return TrialConfig.from_dict(trial.config["trial"]).trial_hash


def _val_accs(history: list[Report]) -> tuple[float, ...]:
    return tuple(report["val_acc"] for report in history)


def _forget_averages(trial: TuneTrial) -> None:
    """Drop Tune's running averages of every number: 64 KB a trial, which nothing here reads."""
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
