"""Space -> cells -> unique trials."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from errors import UserError, unknown
from search_spaces.trial_config import TrialConfig

BUDGETS = ("examples", "steps")
AXES = ("model", "target_batch_size", "scaling_rule", "seed")


@dataclass(frozen=True, kw_only=True)
class Space:
    """A question, and the cells, budget and seeds that answer it. Plain data.

    ``settings`` are the TrialConfig fields that every cell shares where they differ from the defaults.
    ``baselines`` says which differences the question is about: an axis, and the value on it that every
    other value is compared with, all else equal. ``budget`` is what all cells spend alike: the examples of
    ``epochs`` epochs, or the optimizer steps that those take at the reference batch size. Raises
    UserError for another one.
    """

    name: str
    question: str
    models: tuple[str, ...]
    target_batch_sizes: tuple[int, ...]
    scaling_rules: tuple[str, ...]
    seeds: tuple[int, ...] = (42,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: str = "examples"
    baselines: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise unknown("budget", self.budget, BUDGETS)
        if "steps" in self.settings:
            raise UserError('a space sets no steps: give it budget="steps", and epochs in its settings')

    def axis_values(self, axis: str) -> tuple[Any, ...]:
        """The values of ``model``, ``target_batch_size``, ``scaling_rule`` or ``seed``, as listed."""
        return getattr(self, f"{axis}s")

    def cells(self) -> list[TrialConfig]:
        """Every point of the grid under every seed, in reading order: rule, model, batch, seed."""
        grid = itertools.product(self.scaling_rules, self.models, self.target_batch_sizes, self.seeds)
        return [
            TrialConfig(model=model, target_batch_size=batch, scaling_rule=rule, seed=seed, **self.settings)
            for rule, model, batch, seed in grid
        ]


def unique_trials(cells: Iterable[TrialConfig]) -> dict[str, list[TrialConfig]]:
    """Group cells by what they learn: trial hash -> the cells that this one trial serves."""
    trials: dict[str, list[TrialConfig]] = {}
    for cell in cells:
        trials.setdefault(cell.trial_hash, []).append(cell)
    return trials


def trial_name(cells: Sequence[TrialConfig], seeds: int = 1) -> str:
    """``modernbert-base · 256 · sqrt``; rules that agree are joined, ``fixed=sqrt=linear``."""
    config = cells[0]
    rules = "=".join(dict.fromkeys(cell.scaling_rule for cell in cells))
    parts = [config.model_name, str(config.target_batch_size), rules]
    return " · ".join(parts + ([f"seed {config.seed}"] if seeds > 1 else []))
