"""The trials of a stage, one after the other, as Ray Tune asks for them."""

from collections.abc import Callable, MutableMapping, Set

from errors import StoppedError
from search_spaces import Stage
from search_spaces.stages import Outcome, Proposal


class TrialQueue:
    """Which trial of a stage is trained next; ``announce`` gets each proposal once."""

    def __init__(
        self, stage: Stage, outcomes: MutableMapping[str, Outcome], ended: Set[str], max_failures: int
    ) -> None:
        self.stage = stage
        self.error: StoppedError | None = None
        self.announce: Callable[[Proposal], object] = lambda proposal: None
        self._outcomes = outcomes
        self._ended = set(ended)
        self._max_failures = max_failures
        self._waiting: dict[str, Proposal] = {}  # by hash, the next one first
        self._running: set[str] = set()
        self._given: dict[str, int] = {}  # trial hash -> how often

    @property
    def is_over(self) -> bool:
        """Whether no trial waits or runs: all are done, or a failed one keeps the stage from going on."""
        return not self._waiting and not self._running

    def next(self) -> Proposal | None:
        """The next trial; None if none is ready, or all are given out. Raises StoppedError as stages do."""
        known = self._ended | self._waiting.keys() | self._given.keys()
        for each in self.stage.propose(self._outcomes):
            if each.trial_hash not in known:
                known.add(each.trial_hash)  # a generation may propose a trial twice
                self._waiting[each.trial_hash] = each
                self.announce(each)
        if not self._waiting:
            return None
        trial_hash = next(iter(self._waiting))
        self._running.add(trial_hash)
        self._given[trial_hash] = self._given.get(trial_hash, 0) + 1
        return self._waiting.pop(trial_hash)

    def end(self, trial_hash: str, outcome: Outcome | None) -> None:
        """A trial has reached its outcome, or failed without one."""
        self._running.discard(trial_hash)
        if outcome:
            self._ended.add(trial_hash)
            self._outcomes[trial_hash] = outcome

    def again(self, proposal: Proposal) -> bool:
        """Queue again a trial that could not even start; False after more than ``max_failures`` tries."""
        self._running.discard(proposal.trial_hash)
        if self._given.get(proposal.trial_hash, 0) > self._max_failures:
            return False
        self._waiting[proposal.trial_hash] = proposal
        return True
