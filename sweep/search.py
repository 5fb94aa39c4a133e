"""A search proposes generations of trials, each a function of how the trials of earlier ones ended.

So a search has no state to lose: the same outcomes lead to the same proposals. A generation is kept in
MLflow all the same before any of it is trained, because another machine may round otherwise.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from errors import UserError
from search_spaces import TrialConfig
from search_spaces.optuna_trials import distributions, empty_study, finished_trial
from search_spaces.search_space import COMPLETE, DIGITS, DIVERGED, Outcome, SearchSpace

Values = dict[str, Any]  # of the parameters of one trial

IDENTITY = "search"  # the tag of an invocation
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


class Proposal(NamedTuple):
    """A trial of a search, by its number, counted from 0."""

    number: int
    values: Values
    config: TrialConfig

    @property
    def name(self) -> str:
        """``#7 · modernbert-base · 256``."""
        return f"#{self.number} · {self.config.model_name} · {self.config.target_batch_size}"


def identity(space: SearchSpace) -> str:
    """What the proposals of a search are a function of, as JSON; the parameters in their order."""
    order = {"order of parameters": list(space.parameters)}
    return json.dumps({"Optuna": optuna.__version__} | order | space.identity(), sort_keys=True)


def check_same_search(ours: Mapping[str, str], earlier: Iterable[Mapping[str, str]]) -> None:
    """Raise UserError where an earlier invocation, by its tags, began another search."""
    now = json.loads(ours[IDENTITY])
    for tags in earlier:
        before = _identity(tags.get(IDENTITY, ""))
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
        values = value.get("values", (value.get("low"), value.get("high")))
        return (", " if value.get("kind") == "choice" else " to ").join(map(str, values))
    return "the default" if value is None else str(value)


class Search:
    """The state of a search: its proposals so far, their outcomes, and what is to be trained next.

    ``resolve`` makes a trial of its parameters. ``known`` are the generations that are in MLflow; ``keep``
    gets a new one before any of it is trained. ``outcomes``, by trial hash, are those of earlier commands,
    and grow. A trial that failed otherwise than by diverging has no outcome, and its generation stays open.
    """

    def __init__(
        self,
        space: SearchSpace,
        proposer: Proposer,
        *,
        resolve: Callable[[Values], TrialConfig],
        known: Mapping[int, list[Values]],
        outcomes: dict[str, Outcome],
        keep: Callable[["Search", int, list[Values]], object],
    ) -> None:
        self.space = space
        self.outcomes = outcomes
        self.proposals: list[Proposal] = []
        self._proposer = proposer
        self._resolve = resolve
        self._known = known
        self._keep = keep
        self._generation: list[Proposal] = []  # the open one
        self._next_generation = 0
        self._waiting: deque[TrialConfig] = deque()
        self._running: set[str] = set()
        self._first: dict[str, Proposal] = {}  # trial hash -> its first proposal
        self._advance(may_ask=False)

    @property
    def is_over(self) -> bool:
        """Whether ``next`` has nothing more to give, all being done or something having failed."""
        return not self._waiting and not self._running

    @property
    def left(self) -> int:
        """How many trials are still to be trained, at most."""
        return self.space.trials - len(self.proposals) + len(self.lacking)

    def name(self, trial_hash: str) -> str:
        return self._first[trial_hash].name

    def cells_of(self, trial_hash: str) -> Sequence[TrialConfig]:
        return [self._first[trial_hash].config]

    def tags(self, trial_hash: str) -> dict[str, str]:
        """What MLflow shows of a trial's place in the search."""
        number = self._first[trial_hash].number
        generation = number // self.space.generation_size
        return {"role": "search", "generation": str(generation), "number": str(number)}

    @property
    def is_finished(self) -> bool:
        return len(self.proposals) == self.space.trials and not self.lacking

    @property
    def lacking(self) -> set[str]:
        """The hashes of the open generation's trials that have not ended."""
        return {each.config.trial_hash for each in self._generation} - self.outcomes.keys()

    def next(self) -> TrialConfig | None:
        """The next trial to be trained; None where there is none yet, or the search is over."""
        if not self._waiting:
            self._advance()
        if not self._waiting:
            return None
        config = self._waiting.popleft()
        self._running.add(config.trial_hash)
        return config

    def ended(self, trial_hash: str, outcome: Outcome | None) -> None:
        """A trial has come to its outcome, or failed without."""
        self._running.discard(trial_hash)
        if outcome:
            self.outcomes[trial_hash] = outcome

    def should_stop(self, val_accs: Sequence[float]) -> bool:
        return self._proposer.should_stop(val_accs)

    def winner(self) -> Proposal | None:
        """The complete trial with the highest val_acc, the earliest on ties."""
        complete = [p for p in self.proposals if self._outcome(p) and self._outcome(p).state == COMPLETE]
        return max(complete, key=lambda p: self._outcome(p).best_val_acc, default=None)

    def _outcome(self, proposal: Proposal) -> Any:
        return self.outcomes.get(proposal.config.trial_hash)

    def _advance(self, may_ask: bool = True) -> None:
        """Open generations until one has something to train; else only those that are known."""
        size = self.space.generation_size
        while not self._waiting and not self.lacking and len(self.proposals) < self.space.trials:
            if not may_ask and self._next_generation not in self._known:
                return
            if self._generation:
                values = [each.values for each in self._generation]
                self._proposer.tell(values, [self._outcome(each) for each in self._generation])
            generation, self._next_generation = self._next_generation, self._next_generation + 1
            proposed = self._known.get(generation)
            if proposed is None:
                proposed = self._proposer.ask(generation)
                self._keep(self, generation, proposed)
            if len(proposed) != size or not all(map(self.space.holds, proposed)):
                raise UserError(f"generation {generation} in MLflow is not of this search: give --fresh")
            first = generation * size
            self._generation = [
                Proposal(first + place, values, self._resolve(values))
                for place, values in enumerate(proposed)
                if first + place < self.space.trials
            ]
            self.proposals += self._generation
            for each in self._generation:
                self._first.setdefault(each.config.trial_hash, each)
            new = {each.config.trial_hash: each.config for each in self._generation}
            self._waiting.extend(c for trial_hash, c in new.items() if trial_hash not in self.outcomes)
