"""What a study lacks, by what its store holds."""

from collections.abc import Mapping

from search_spaces import TrialConfig
from sweep.assets import ModelAssets
from sweep.plan import Plan
from sweep.storage import StudyStorage
from tracking import TrialRun


def unfinished(plan: Plan, runs: Mapping[str, TrialRun]) -> tuple[list[TrialConfig], list[TrialConfig]]:
    """The trials that lack training, and those that lack only the test."""
    to_train, to_test = [], []
    for trial_hash, cells in plan.trials.items():
        run = runs.get(trial_hash)
        if run is None or not run.is_trained:
            to_train.append(cells[0])
        elif not run.is_tested:
            to_test.append(cells[0])
    return to_train, to_test


def forget_trained(plan: Plan, runs: Mapping[str, TrialRun], storage: StudyStorage) -> None:
    """Remove what a kill between a trial's upload and its removal has left in the storage."""
    for trial_hash in plan.trials:
        if trial_hash in runs and runs[trial_hash].is_trained:
            storage.forget(trial_hash)


def changed_runs(
    plan: Plan, runs: Mapping[str, TrialRun], assets: Mapping[str, ModelAssets]
) -> dict[str, TrialRun]:
    """The runs of the plan whose model or tokens have changed since, finished ones among them.

    Their results say nothing about what is there now, and their models must not be tested on its tokens.
    Models that nothing is left to be done for are not looked at.
    """
    found = {}
    for trial_hash, cells in plan.trials.items():
        run, now = runs.get(trial_hash), assets.get(cells[0].model)
        if run and now and run.assets_digest not in {"", now.trial.digest}:
            found[trial_hash] = run
    return found
