"""The errors whose message is meant for the person at the keyboard."""

import errno
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from addresses import redacted

_LONGEST = 1000  # characters of a message
_LONGEST_COMPARED = 200  # characters of a name; the time to compare names grows with the square of it
_JOINERS = "\u200c\u200d"  # not printable to Python, but Persian words and many emoji are written with them


class UserError(ValueError):
    """A mistake the user can mend; the message is one line that says what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(redacted(message))))


class StoppedError(RuntimeError):
    """Something that a study needs has failed; one line. Results are kept, and the same command goes on."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(redacted(message))))


class StoreAwayError(StoppedError):
    """The tracking store did not answer within the time that the caller waits for it."""


class StoreFailedError(StoppedError):
    """The tracking store answers, but refuses or fails what it is asked to do."""


# what a user can mend: a full disk, missing rights, limits, a disk that fails or has gone
_MENDABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.ENOTCONN,
    errno.ESTALE,
}


def is_mendable(error: OSError) -> bool:
    """Whether the user can do something about it; any other OSError is a defect of this program."""
    return error.errno in _MENDABLE


def printable(text: str) -> str:
    """The text on one line, with escapes for characters that break lines, steer a terminal or deceive.

    These are control characters, characters that reverse or hide text, and halves of characters. Blanks
    of any script stay. Safe to repeat.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    is_blank = unicodedata.category(character) == "Zs"
    return character.isprintable() or is_blank or character in _JOINERS


def all_printable(value: Any) -> Any:
    """A value from JSON with all texts and keys made ``printable``: another program may have written it."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {all_printable(key): all_printable(item) for key, item in value.items()}
    return [all_printable(item) for item in value] if isinstance(value, list) else value


def shortened(text: str, longest: int = _LONGEST) -> str:
    """The text; if it is too long, its middle is cut out, because the end of a message says what to do."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, printable; the error's type if it has no message."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def last_line(error: BaseException) -> str:
    """The last line of an error's message, printable: a chain of causes ends there. Its type if empty."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[-1].strip())


def unknown(kind: str, given: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not among ``known``; it suggests the nearest names."""
    known = sorted(map(str, known))
    name = shortened(str(given))
    near = get_close_matches(name[:_LONGEST_COMPARED], known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
    return UserError(f"unknown {kind} '{name}': {hint}")
