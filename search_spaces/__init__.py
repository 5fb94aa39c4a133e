"""WHAT is tried: plain data. A question is an entry of ``grids.py``, or a module with a ``SPACE`` in it."""

import importlib
import pkgutil

from errors import UserError, unknown
from search_spaces import grids
from search_spaces.search_space import SearchSpace
from search_spaces.space import Space
from search_spaces.space_file import space_in
from search_spaces.stages import Stage
from search_spaces.trial_config import TrialConfig

_MODULES = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))

_FOUND = [*grids.SPACES, *(module.SPACE for module in _MODULES if hasattr(module, "SPACE"))]
SPACES: dict[str, Space | SearchSpace] = {
    space.name: space for space in sorted(_FOUND, key=lambda s: s.name)
}


def find_space(name: str) -> Space | SearchSpace:
    """The space of this name, or in this ``.py`` file; UserError if there is none, with similar names."""
    if name.endswith(".py"):
        space = space_in(name)
        if space != SPACES.get(space.name, space):
            raise UserError(f"{name}: {space.name} is the name of another space: choose another")
        return space
    if name not in SPACES:
        raise unknown("space", name, SPACES)
    return SPACES[name]


__all__ = ["SPACES", "SearchSpace", "Space", "Stage", "TrialConfig", "find_space"]
