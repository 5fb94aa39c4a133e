"""A search as it lies in MLflow, read once: what was proposed, and how it ended."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from errors import UserError
from reports.content import rows
from search_spaces import TrialConfig
from search_spaces.search_space import SearchSpace
from search_spaces.stages import COMPLETE, Outcome
from tracking.study_store import StudyRuns


@dataclass(frozen=True)
class SearchData:
    """A search as it lies in MLflow: what was proposed, by number, and how it ended."""

    space: SearchSpace
    values: Sequence[Mapping[str, Any]]  # of the parameters of each trial
    outcomes: Sequence[Outcome | None]  # None: not ended

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row per trial: number, the parameters, state, best_val_acc, best_epoch, epochs."""
        found = pd.DataFrame({"number": range(len(self.values))})
        for name in self.space.parameters:
            found[name] = [values[name] for values in self.values]
        accuracies = [outcome.val_accs if outcome else () for outcome in self.outcomes]
        found["state"] = [outcome.state if outcome else "" for outcome in self.outcomes]
        found["best_val_acc"] = [max(each, default=math.nan) for each in accuracies]
        between = [c.epochs / c.evaluation_count for c in map(self.config, range(len(self.values)))]
        found["best_epoch"] = [each.index(max(each)) + 1 if each else 0 for each in accuracies]
        found["epochs"] = [len(each) for each in accuracies]
        for name in ("best_epoch", "epochs"):  # to the next whole step of the optimizer
            found[name] *= between
        return found

    @property
    def ended(self) -> int:
        return int((self.trials["state"] != "").sum())

    @cached_property
    def complete(self) -> pd.DataFrame:
        """The trials that came to their last epoch, the best first; ties by number."""
        complete = self.trials[self.trials["state"] == COMPLETE]
        return complete.sort_values(["best_val_acc", "number"], ascending=[False, True])

    @property
    def top(self) -> pd.DataFrame:
        """The ten best; a configuration that was proposed twice counts once."""
        return self.complete.drop_duplicates(list(self.space.parameters)).head(10)

    @property
    def best(self) -> Any:
        """The best complete trial, if there is one."""
        return next(rows(self.complete), None)

    def config(self, number: int) -> TrialConfig:
        return self.space.config(self.values[number])


def read_search(space: SearchSpace, runs: StudyRuns) -> SearchData:
    """The proposals are in the tags of the invocations, the outcomes in the runs of the trials."""
    generations: dict[int, list[dict[str, Any]]] = {}
    for invocation in runs.invocations:
        generations |= invocation.generations
    in_order = [generations[number] for number in sorted(generations)]
    values = [each for generation in in_order for each in generation][: space.trials]
    if not all(map(space.holds, values)):
        raise UserError("the proposals of the search in MLflow are not of its parameters")
    found = [runs.trials.get(space.config(each).trial_hash) for each in values]
    return SearchData(space, values, [run.outcome(with_curve=True) if run else None for run in found])
