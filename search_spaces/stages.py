"""Stages: what is trained next, given how earlier trials have ended. Plain data in, plain data out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from search_spaces.trial_config import TrialConfig

COMPLETE, STOPPED, DIVERGED = "complete", "stopped", "diverged"
ROLE = "role"  # the tag of a run that names the stage of its trial

Values = dict[str, Any]  # the parameters of one trial of a search: name -> value


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: ``complete``, ``stopped`` early or ``diverged``; val_acc at each evaluation."""

    state: str
    val_accs: tuple[float, ...]

    @property
    def best_val_acc(self) -> float:
        return max(self.val_accs, default=math.nan)


Outcomes = Mapping[str, Outcome]  # by trial hash


@dataclass(frozen=True)
class Proposal:
    """A trial that a stage proposes: the cells that it serves, its name, the tags of its run."""

    cells: Sequence[TrialConfig]  # one at least
    name: str
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> TrialConfig:
        """The configuration that is trained."""
        return self.cells[0]

    @cached_property
    def trial_hash(self) -> str:
        return self.config.trial_hash


class Stage(ABC):
    """A part of a study: its proposals are a function of the space, its seed and earlier outcomes alone.

    So a stage has no state to lose: the same outcomes lead to the same proposals. A trial that failed
    without diverging has no outcome, so the next command proposes it again.
    """

    role: str
    trials: int  # at most
    at_once: int  # the most trials that have checkpoints at the same time
    keeps_models: bool = True  # whether models are kept in MLflow and tested; if not, only outcomes are
    meets_others: bool = True  # whether its best competes with finished trials outside the plan

    @abstractmethod
    def propose(self, outcomes: Outcomes) -> Sequence[Proposal]:
        """All trials so far, in order. Raises StoppedError if the outcomes allow none."""

    def cells(self, outcomes: Outcomes) -> Sequence[TrialConfig]:
        """The cells that the trials so far serve, in reading order."""
        return [cell for each in self.propose(outcomes) for cell in each.cells]

    def proposed(self, outcomes: Outcomes) -> Sequence[Proposal]:
        """All trials so far, as ``propose``, but without deciding on new ones."""
        return self.propose(outcomes)

    @property
    @abstractmethod
    def extent(self) -> str:
        """How much is trained, in words for the plan."""

    def should_stop(self, val_accs: Sequence[float]) -> bool:
        """Whether a trial is ended early, given its val_acc at each evaluation so far."""
        return False

    def lines(self, outcomes: Outcomes) -> list[str]:
        """Lines for the user when the stage begins."""
        return []

    def progress(self, done: int, untested: int, has_begun: bool) -> str:
        """A line for the user on the trials that are finished already; empty if there are none."""
        if done == self.trials:
            return f"all {done} trials are already trained and tested"
        left = self.trials - done - untested
        text = f"resuming: {done} of {self.trials} trials are finished, {untested} lack their test"
        return f"{text}, {left} are to be trained" if has_begun else ""

    def note(self, outcomes: Outcomes) -> None:
        """Called when trials have ended, so that a stage can show them elsewhere."""
        return

    def unfinished(self, outcomes: Outcomes, ended: Set[str]) -> list[Proposal]:
        """The trials so far whose hash is not in ``ended``."""
        return [each for each in self.proposed(outcomes) if each.trial_hash not in ended]

    def is_over(self, outcomes: Outcomes, ended: Set[str]) -> bool:
        return len(self.proposed(outcomes)) >= self.trials and not self.unfinished(outcomes, ended)


class Grid(Stage):
    """A stage whose cells are all known before anything is trained."""

    role = "grid"

    def __init__(self, cells: Iterable[TrialConfig], note: str = "") -> None:
        """``note`` is appended to ``extent``."""
        self._cells = list(cells)
        self._proposals = proposals_of(self._cells)
        self._note = note
        self.trials = self.at_once = len(self._proposals)

    @property
    def extent(self) -> str:
        return f"{len(self._cells)} cells, {self.trials} unique trials{self._note}"

    def cells(self, outcomes: Outcomes) -> Sequence[TrialConfig]:
        return self._cells

    def propose(self, outcomes: Outcomes) -> Sequence[Proposal]:
        return self._proposals


class Proposer(Protocol):
    """Proposes the trials of a search, a generation at a time."""

    def ask(self, generation: int) -> list[Values]:
        """The proposals of a generation; all earlier generations must have been told."""

    def tell(self, proposals: Sequence[Values], outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes of a whole generation, one for each of its proposals."""

    def should_stop(self, val_accs: Sequence[float]) -> bool:
        """Whether a trial is ended early, given its val_acc at each evaluation so far."""


@dataclass(frozen=True)
class Around:
    """What a study gives to its stages.

    ``resolve`` completes a configuration with the fields that depend on data and machine. ``known`` holds
    the generations of a search that are in MLflow; ``keep`` stores a new one before any of it is trained.
    ``proposer`` makes the Proposer of a search, when it is first needed. ``note`` is called when trials of
    a search have ended.
    """

    resolve: Callable[[TrialConfig], TrialConfig]
    proposer: Callable[[Any], Proposer] | None = None
    known: Mapping[int, list[Values]] = field(default_factory=dict)
    keep: Callable[[int, list[Values]], object] = lambda generation, values: None
    note: Callable[[Any, Outcomes], object] = lambda search, outcomes: None


def unique_trials(cells: Iterable[TrialConfig]) -> dict[str, list[TrialConfig]]:
    """Group cells by what they learn: trial hash -> the cells that this trial serves."""
    trials: dict[str, list[TrialConfig]] = {}
    for cell in cells:
        trials.setdefault(cell.trial_hash, []).append(cell)
    return trials


def trial_name(cells: Sequence[TrialConfig], seeds: int = 1) -> str:
    """``modernbert-base · 256 · sqrt``; rules of the same trial are joined, ``fixed=sqrt=linear``."""
    config = cells[0]
    rules = "=".join(dict.fromkeys(cell.scaling_rule for cell in cells))
    parts = [config.model_name, str(config.target_batch_size), rules]
    return " · ".join(parts + ([f"seed {config.seed}"] if seeds > 1 else []))


def proposals_of(cells: Iterable[TrialConfig], tags: Mapping[str, str] | None = None) -> list[Proposal]:
    """A proposal for each unique trial of the cells."""
    cells = list(cells)
    seeds = len({cell.seed for cell in cells})
    return [Proposal(own, trial_name(own, seeds), tags or {}) for own in unique_trials(cells).values()]
