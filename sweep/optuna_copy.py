"""A copy of a search for ``optuna-dashboard`` and for people's own Optuna scripts; MLflow has the truth."""

from collections.abc import Sequence

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.pool import NullPool

from addresses import with_credentials
from errors import UserError, first_line
from search_spaces.optuna_trials import finished_trial
from search_spaces.search_stages import Search
from search_spaces.stages import Outcomes
from sweep.terminal import say


class OptunaCopy:
    """The study of this name at ``url``; a search never stops because its copy cannot be written."""

    def __init__(self, url: str, study: str) -> None:
        self._url = url
        self._name = study
        self._study: optuna.Study | None = None
        self._written = 0
        self._is_broken = False

    def update(self, search: Search, outcomes: Outcomes) -> None:
        """Add the trials that have ended since, in their order."""
        if self._is_broken:
            return
        try:
            self._study = self._study or self._open(_ended(search, outcomes, 0))
            for trial in _ended(search, outcomes, self._written):
                self._study.add_trial(trial)
                self._written += 1
        except Exception as error:  # the database, its driver and Optuna each have their own
            self._is_broken = True
            say(f"note: the copy in {self._url} cannot be written ({first_line(error)})")

    def _open(self, trials: Sequence[FrozenTrial]) -> optuna.Study:
        """The study as it is, or an empty one where it holds anything else than these trials."""
        storage = open_storage(self._url)
        names = optuna.get_all_study_names(storage)
        if self._name in names:
            study = optuna.load_study(study_name=self._name, storage=storage)
            there = study.get_trials(deepcopy=False)
            if list(map(_facts, there)) == list(map(_facts, trials[: len(there)])):
                self._written = len(there)
                return study
            if any("trial_hash" not in trial.user_attrs for trial in there):
                raise UserError(f"its study {self._name} holds trials that are not of this search")
            optuna.delete_study(study_name=self._name, storage=storage)
        return optuna.create_study(storage=storage, study_name=self._name, direction="maximize")


def open_storage(url: str) -> RDBStorage:
    """Optuna's storage, whose calls each close the connection that they open: nobody else ever would."""
    return RDBStorage(with_credentials(url), engine_kwargs={"poolclass": NullPool})


def _ended(search: Search, outcomes: Outcomes, start: int) -> list[FrozenTrial]:
    """The trials from number ``start`` up to the first that has not ended."""
    trials = []
    for number, proposal in enumerate(search.opened[start:], start=start):
        outcome = outcomes.get(proposal.trial_hash)
        if outcome is None:
            break
        trial = finished_trial(search.space, search.values(number), outcome)
        trial.set_user_attr("trial_hash", proposal.trial_hash)
        trials.append(trial)
    return trials


def _facts(trial: FrozenTrial) -> tuple:
    return trial.state, trial.values, trial.params, trial.intermediate_values, trial.user_attrs
