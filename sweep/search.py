"""Optuna's side of a search: it proposes generations, says what those follow from, and gets a copy."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.pool import NullPool

from addresses import with_credentials
from errors import UserError, first_line
from search_spaces import SearchSpace, Space
from search_spaces.optuna_trials import distributions, empty_study, finished_trial
from search_spaces.search_space import DIGITS
from search_spaces.search_stages import Search
from search_spaces.stages import COMPLETE, DIVERGED, Outcome, Outcomes, Values
from sweep.terminal import say

_IDENTITY = "search"  # the tag of an invocation
_FIRST_JUDGED = 2  # large batches start slowly: after one evaluation nothing is stopped


class Proposer:
    """Optuna's side of a search: asked for a generation, and told how it ended."""

    def __init__(self, space: SearchSpace, chance: float) -> None:
        """``chance`` is the accuracy of guessing, which gp is told of a trial that diverged."""
        self._space = space
        self._chance = chance
        self._box = distributions(space)
        self._told = empty_study()
        start_up = 2 * space.generation_size
        self._pruner = optuna.pruners.MedianPruner(start_up, n_warmup_steps=_FIRST_JUDGED)

    def ask(self, generation: int) -> list[Values]:
        """The generation's proposals, given that all earlier ones were told."""
        size = self._space.generation_size
        if self._space.sampler == "qmc":  # its place in its sequence is how often its study was asked
            sequence = empty_study(self._sampler(generation))
            return [self._rounded(sequence) for _ in range((generation + 1) * size)][-size:]
        # samplers look at running trials too: at the rounded numbers that these are trained with
        known, sampler = self._told.get_trials(deepcopy=False), self._sampler(generation)
        found: list[Values] = []
        for _ in range(size):
            study = empty_study(sampler)
            study.add_trials(known)
            found.append(self._rounded(study))
            running = create_trial(state=TrialState.RUNNING, params=found[-1], distributions=self._box)
            known.append(running)
        return found

    def tell(self, proposals: Sequence[Values], outcomes: Sequence[Outcome]) -> None:
        """How a whole generation ended, in its order, whether it was asked for here or earlier."""
        for values, outcome in zip(proposals, outcomes, strict=True):
            shown = outcome
            if outcome.state == DIVERGED and self._space.sampler == "gp":  # it ignores pruned trials
                shown = Outcome(COMPLETE, (self._chance,))
            self._told.add_trial(finished_trial(self._space, values, shown))

    def should_stop(self, val_accs: Sequence[float]) -> bool:
        """Whether a trial with these val_accs is stopped, judged by the trials of earlier generations."""
        if self._space.stopping == "none":
            return False
        values = dict(enumerate(val_accs, start=1))
        trial = create_trial(state=TrialState.RUNNING, intermediate_values=values)
        return self._pruner.prune(self._told, trial)

    def _sampler(self, generation: int) -> BaseSampler:
        if self._space.sampler == "qmc":
            return optuna.samplers.QMCSampler(seed=self._space.seed, warn_independent_sampling=False)
        # one seed for all generations would give the same random numbers in each
        seed = int(np.random.SeedSequence([self._space.seed, generation]).generate_state(1)[0])
        start_up = 2 * self._space.generation_size
        if self._space.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        if self._space.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=start_up)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=start_up)

    def _rounded(self, study: optuna.Study) -> Values:
        """What the study's sampler proposes: fractions to six significant digits, within their range."""
        values = study.ask(self._box).params
        for name, kind in self._box.items():
            if isinstance(kind, FloatDistribution):
                values[name] = min(max(float(f"{values[name]:.{DIGITS}g}"), kind.low), kind.high)
        return values


class OptunaCopy:
    """A copy for ``optuna-dashboard`` and people's own Optuna scripts: the study of this name at ``url``.

    MLflow has the truth, and a search never stops because its copy cannot be written.
    """

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


def identity(space: Space | SearchSpace, dataset_digest: str = "") -> dict[str, str]:
    """What proposals follow from beside outcomes, as a tag of an invocation; none without a search."""
    own = space.identity()
    if not own:
        return {}
    found = {"Optuna": optuna.__version__, "order of parameters": list(space.parameters)}
    return {_IDENTITY: json.dumps(found | own | {"dataset_digest": dataset_digest}, sort_keys=True)}


def check_same_search(ours: Mapping[str, str], earlier: Iterable[Mapping[str, str]]) -> None:
    """Raise UserError where an earlier invocation, by its tags, began another search."""
    if _IDENTITY not in ours:
        return
    now = json.loads(ours[_IDENTITY])
    for tags in earlier:
        before = _identity(tags.get(_IDENTITY, ""))
        if key := next((key for key in before | now if before.get(key) != now.get(key)), ""):
            raise UserError(
                f"this search was begun with another {key}, {_shown(before.get(key))} and not "
                f"{_shown(now.get(key))}: go on with the same, or give --fresh or another --name"
            )


def _identity(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError("the search in MLflow is not one that this program stores: give --fresh") from error


def _shown(value: Any) -> str:
    if isinstance(value, dict):  # a parameter's values
        return (", " if value.get("kind") == "choice" else " to ").join(map(str, value.get("values", ())))
    return "the default" if value is None else str(value)
