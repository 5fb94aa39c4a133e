"""The errors whose message is meant for the person at the keyboard."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake the user can mend; the message is one line that says what is wrong and what to do."""


class StoreAwayError(RuntimeError):
    """The tracking store did not answer for as long as somebody was willing to wait; one line."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a table, with near misses suggested."""
    known = sorted(known)
    near = get_close_matches(given, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
    return UserError(f"unknown {kind} '{given}': {hint}")
