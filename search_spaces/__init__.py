"""WHAT is tried: plain data. Add a question: a new module with a ``SPACE``, and its line here."""

from search_spaces import batch_lr_grid, fixed_lr, linear_ablation, sqrt_lr
from search_spaces.errors import (
    StoppedError,
    StoreAwayError,
    StoreFailedError,
    UserError,
    first_line,
    last_line,
    printable,
    unknown,
)
from search_spaces.space import Space, unique_trials
from search_spaces.trial_config import TrialConfig

SPACES: dict[str, Space] = {
    module.SPACE.name: module.SPACE for module in (batch_lr_grid, fixed_lr, sqrt_lr, linear_ablation)
}


def find_space(name: str) -> Space:
    """The space of this name, or a UserError that suggests near misses."""
    if name not in SPACES:
        raise unknown("space", name, SPACES)
    return SPACES[name]


__all__ = [
    "SPACES",
    "Space",
    "StoppedError",
    "StoreAwayError",
    "StoreFailedError",
    "TrialConfig",
    "UserError",
    "find_space",
    "first_line",
    "last_line",
    "printable",
    "unique_trials",
    "unknown",
]
