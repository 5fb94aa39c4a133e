"""Optuna's side of a search: it proposes generations, and says what those are a function of."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from errors import UserError
from search_spaces import SearchSpace, Space
from search_spaces.optuna_trials import distributions, empty_study, finished_trial
from search_spaces.search_space import DIGITS
from search_spaces.stages import COMPLETE, DIVERGED, Outcome, Values

_IDENTITY = "search"  # the tag of an invocation
_FIRST_JUDGED = 2  # large batches start slowly: after one evaluation nothing is stopped


class Proposer:
    """Optuna's side of a search: asked for a generation, and told how it ended."""

    def __init__(self, space: SearchSpace, chance: float) -> None:
        """``chance`` is the accuracy of guessing, which gp is told of a trial that diverged."""
        self._space = space
        self._chance = chance
        self._box = distributions(space)
        self._study = empty_study()
        self._sequence = empty_study()  # for qmc, whose place in its sequence is what it was asked before
        self._sequence.sampler = optuna.samplers.QMCSampler(
            seed=space.seed, warn_independent_sampling=False
        )
        self._asked: Sequence[optuna.Trial] = ()
        start_up = 2 * space.generation_size
        self._pruner = optuna.pruners.MedianPruner(start_up, n_warmup_steps=_FIRST_JUDGED)

    def ask(self, generation: int) -> list[Values]:
        """The generation's proposals, given that all earlier ones were told."""
        size = self._space.generation_size
        if self._space.sampler == "qmc":
            for _ in range(len(self._sequence.get_trials(deepcopy=False)), generation * size):
                self._sequence.ask(self._box)
            return [self._rounded(self._sequence.ask(self._box).params) for _ in range(size)]
        self._study.sampler = _Rounding(self._sampler(generation))
        self._asked = [self._study.ask(self._box) for _ in range(size)]
        return [trial.params for trial in self._asked]

    def tell(self, proposals: Sequence[Values], outcomes: Sequence[Outcome]) -> None:
        """How a whole generation ended, in its order, whether it was asked for here or earlier."""
        asked, self._asked = self._asked, ()
        for number, (values, outcome) in enumerate(zip(proposals, outcomes, strict=True)):
            shown = outcome
            if outcome.state == DIVERGED and self._space.sampler == "gp":  # it ignores pruned trials
                shown = Outcome(COMPLETE, (self._chance,))
            trial = finished_trial(self._space, values, shown)
            if asked:
                for evaluation, val_acc in trial.intermediate_values.items():
                    asked[number].report(val_acc, evaluation)
                value = trial.value if trial.state == TrialState.COMPLETE else None
                self._study.tell(asked[number], value, trial.state)
            else:
                self._study.add_trial(trial)

    def should_stop(self, val_accs: Sequence[float]) -> bool:
        """Whether a trial with these val_accs is stopped, judged by the trials of earlier generations."""
        if self._space.stopping == "none":
            return False
        values = dict(enumerate(val_accs, start=1))
        trial = create_trial(state=TrialState.RUNNING, intermediate_values=values)
        return self._pruner.prune(self._study, trial)

    def _sampler(self, generation: int) -> BaseSampler:
        # one seed for all generations would give the same random numbers in each
        seed = int(np.random.SeedSequence([self._space.seed, generation]).generate_state(1)[0])
        start_up = 2 * self._space.generation_size
        if self._space.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        if self._space.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=start_up)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=start_up)

    def _rounded(self, values: Values) -> Values:
        return {name: _rounded(value, self._box[name]) for name, value in values.items()}


class _Rounding(BaseSampler):
    """A sampler whose study holds the rounded numbers that trials are trained with."""

    def __init__(self, sampler: BaseSampler) -> None:
        self._sampler = sampler
        self.before_trial = sampler.before_trial  # type: ignore[method-assign]
        self.after_trial = sampler.after_trial  # type: ignore[method-assign]

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Values:
        values = self._sampler.sample_relative(study, trial, search_space)
        return {name: _rounded(value, search_space[name]) for name, value in values.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        value = self._sampler.sample_independent(study, trial, name, distribution)
        return _rounded(value, distribution)


def _rounded(value: Any, distribution: BaseDistribution) -> Any:
    """A fraction to six significant digits, within its range."""
    if not isinstance(distribution, FloatDistribution):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), distribution.low), distribution.high)


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
