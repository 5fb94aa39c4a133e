"""A user's own space: a Python file with a ``SPACE`` in it, given by its path."""

import runpy
import traceback

from errors import UserError, first_line
from search_spaces.search_space import SearchSpace
from search_spaces.space import Space


def space_in(path: str) -> Space | SearchSpace:
    """Run the file and return its ``SPACE``; UserError for a mistake, with its line if that is known."""
    try:
        found = runpy.run_path(path).get("SPACE")
        if isinstance(found, SearchSpace):
            for _ in found.corners():  # each validates a TrialConfig
                pass
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}{_line(error, path)}: {_reason(error)}") from error
    if found is None:
        raise UserError(f"{path} has no SPACE: write SPACE = Space(...), as search_spaces/grids.py does")
    if not isinstance(found, Space | SearchSpace):
        raise UserError(f"{path}: SPACE is a {type(found).__name__}: make it a Space or a SearchSpace")
    return found


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SyntaxError):
        return error.msg
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {first_line(error)}"


def _line(error: BaseException, path: str) -> str:
    """``, line 7`` if the error arose in the file, else nothing."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""
