"""The stages of a search: generations of trials, then the best of them again under fresh seeds."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from errors import StoppedError, UserError
from search_spaces.stages import (
    COMPLETE,
    ROLE,
    Around,
    Outcomes,
    Proposal,
    Proposer,
    Stage,
    Values,
    proposals_of,
)

if TYPE_CHECKING:  # search_space.py imports this module
    from search_spaces.search_space import SearchSpace


class Search(Stage):
    """Proposes generations of trials, each a function of how the trials of earlier ones ended.

    A generation is stored in MLflow before any of it is trained, because on another machine rounding may
    lead to other proposals.
    """

    role = "search"
    keeps_models = False

    def __init__(self, space: "SearchSpace", around: Around) -> None:
        self.space = space
        self.trials = space.trials
        self.at_once = min(space.generation_size, space.trials)
        self._around = around
        self.opened: list[Proposal] = []  # the proposals of all generations so far
        self._values: list[Values] = []  # the parameters of each proposal in ``opened``

    @cached_property
    def _proposer(self) -> Proposer:
        assert self._around.proposer, "a plan alone proposes nothing"
        return self._around.proposer(self.space)

    def propose(self, outcomes: Outcomes) -> Sequence[Proposal]:
        self._advance(outcomes, may_ask=True)
        return self.opened

    def proposed(self, outcomes: Outcomes) -> Sequence[Proposal]:
        self._advance(outcomes, may_ask=False)
        return self.opened

    def progress(self, done: int, untested: int, has_begun: bool) -> str:
        if done == self.trials:
            return f"all {done} trials of the search have ended"
        return f"resuming: {done} of {self.trials} trials of the search have ended" if done else ""

    def should_stop(self, val_accs: Sequence[float]) -> bool:
        return self._proposer.should_stop(val_accs)

    def note(self, outcomes: Outcomes) -> None:
        self._around.note(self, outcomes)

    @property
    def extent(self) -> str:
        space = self.space
        return (
            f"{space.trials} trials in generations of {space.generation_size}, sampler {space.sampler}, "
            f"stopping {space.stopping}"
        )

    def values(self, number: int) -> Values:
        """The parameters of a trial, by its number from 0."""
        return self._values[number]

    def winner(self, outcomes: Outcomes) -> Proposal:
        """The complete trial with the highest val_acc, the earliest on ties; StoppedError without one."""
        ended = [each for each in self.opened if each.trial_hash in outcomes]
        complete = [each for each in ended if outcomes[each.trial_hash].state == COMPLETE]
        if not complete:
            raise StoppedError(
                "no trial of the search came to its last epoch: search smaller learning rates"
            )
        return max(complete, key=lambda each: outcomes[each.trial_hash].best_val_acc)

    def _advance(self, outcomes: Outcomes, may_ask: bool) -> None:
        """Open generations until one has a trial to train; unless ``may_ask``, only those in MLflow."""
        size = self.space.generation_size
        while len(self.opened) < self.trials:
            opened, rest = divmod(len(self.opened), size)
            newest = self.opened[-size:] if opened else []
            assert not rest  # only the last generation is cut short
            if any(each.trial_hash not in outcomes for each in newest):
                return
            if opened not in self._around.known and not may_ask:
                return
            if newest:
                ended = [outcomes[each.trial_hash] for each in newest]
                self._proposer.tell(self._values[-size:], ended)
            self._open(opened, outcomes)

    def _open(self, generation: int, outcomes: Outcomes) -> None:
        space, first = self.space, len(self.opened)
        values = self._around.known.get(generation)
        if values is None:
            values = self._proposer.ask(generation)
            self._around.keep(generation, values)
            self.note(outcomes)
        if len(values) != space.generation_size or not all(map(space.holds, values)):
            raise UserError(f"generation {generation} in MLflow is not of this search: give --fresh")
        for number, each in enumerate(values[: self.trials - first], start=first):
            config = self._around.resolve(space.config(each))
            name = f"#{number} · {config.model_name} · {config.target_batch_size}"
            tags = {ROLE: self.role, "generation": str(generation), "number": str(number)}
            self.opened.append(Proposal([config], name, tags))
            self._values.append(each)


class Confirm(Stage):
    """Trains the best trial of a search again with fresh seeds; those trials are tested."""

    role = "confirm"
    meets_others = False

    def __init__(self, search: Search, seeds: int) -> None:
        self._search = search
        self.trials = self.at_once = seeds

    def propose(self, outcomes: Outcomes) -> Sequence[Proposal]:
        if not self._search.is_over(outcomes, outcomes.keys()):
            return []
        best = self._search.winner(outcomes).config
        seeds = range(best.seed + 1, best.seed + 1 + self.trials)
        return proposals_of([best.replace(seed=seed) for seed in seeds], {ROLE: self.role})

    @property
    def extent(self) -> str:
        return f"the best is trained again with {self.trials} seeds and tested"

    def lines(self, outcomes: Outcomes) -> list[str]:
        best = self._search.winner(outcomes)
        val_acc = outcomes[best.trial_hash].best_val_acc
        seeds = ", ".join(str(each.config.seed) for each in self.propose(outcomes))
        return [
            f"best of {self._search.trials}: {best.name}, val_acc {val_acc:.4f}",
            f"trained again with seeds {seeds}",
        ]
