"""The errors whose message is meant for the person at the keyboard."""

import errno
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from addresses import redacted

_LONGEST = 1000  # characters of a message
_LONGEST_COMPARED = 200  # characters of a name; comparing takes the square of that
_JOINERS = "\u200c\u200d"  # not printable to Python, but Persian words and many emoji are written with them


class UserError(ValueError):
    """A mistake the user can mend; the message is one line that says what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(redacted(message))))


class StoppedError(RuntimeError):
    """What a study needs has failed; one line. What was done is kept, and the same command goes on."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(redacted(message))))


class StoreAwayError(StoppedError):
    """The tracking store did not answer for as long as somebody was willing to wait."""


class StoreFailedError(StoppedError):
    """The tracking store answers, and does not do what it is asked."""


# what a user can mend: room, rights, limits, a place that is not there any more
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
    """The text on one line, with escapes for what would break it, steer a terminal or deceive a reader.

    Escaped are control characters, what reverses or hides text, and halves of characters. Blanks of any
    script stay. Safe to repeat.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    is_blank = unicodedata.category(character) == "Zs"
    return character.isprintable() or is_blank or character in _JOINERS


def all_printable(value: Any) -> Any:
    """A value out of JSON whose texts, keys included, are ``printable``: for what others have stored."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {all_printable(key): all_printable(item) for key, item in value.items()}
    return [all_printable(item) for item in value] if isinstance(value, list) else value


def shortened(text: str, longest: int = _LONGEST) -> str:
    """A text that is too long without its middle: its end says what to do."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, printable, or its type where it has none."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def last_line(error: BaseException) -> str:
    """The last line of an error's message, where a chain of causes ends, printable; else its type."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[-1].strip())


def unknown(kind: str, given: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a table, with near misses suggested."""
    known = sorted(map(str, known))
    name = shortened(str(given))
    near = get_close_matches(name[:_LONGEST_COMPARED], known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
    return UserError(f"unknown {kind} '{name}': {hint}")
