"""Text that stays as it is where Markdown is read: CommonMark, GitHub's tables and strike-through."""

import re
from urllib.parse import quote

# brackets as of an interval, closed on the same line: neither a link nor a box to tick
_PAIR = re.compile(r"(?!^\[[ xX]\])\[([^\[\]]*)\](?![(\[:])")
_MARK = re.compile(
    r"""
    \\(?=[!-/:-@\[-`{-~]|$)             # a backslash, where it would hide what follows
    | [`*~|\[\]]
    | (?<![^\W_])_ | _(?![^\W_]) | __   # inside a word, an underscore is one
    """,
    re.VERBOSE,
)
_ENTITY = re.compile(r"&(?=\#?\w+;)")
_TAG = re.compile(r"<(?! )")
# what starts a heading, a list, a quotation or a rule; what ends a heading
_START = re.compile(r"^(?=(?:#+|[-+])(?: |$)|[- ]+$|=+$|>)|(?<= )(?=#+$)")
_NUMBER = re.compile(r"^(\d{1,9})(?=[.)](?: |$))")
_ADDRESS = ":/?#[]@!$&'*+,;=%~"


def markdown_text(text: str) -> str:
    """The text on one line, fit for a paragraph, a heading, a list, a cell or a picture's alternative text.

    Whatever would make a tag, a link, a picture, emphasis or a new cell is escaped. Text that is plain
    already, such as ``val_acc`` and ``[33.1, 35]``, is left alone.
    """
    parts = _PAIR.split(" ".join(text.split()))  # before, within, between, within, … after
    escaped = list(map(_without_marks, parts))
    escaped[1::2] = [f"[{within}]" for within in escaped[1::2]]
    return _NUMBER.sub(r"\1\\", _START.sub(r"\\", "".join(escaped)))


def _without_marks(text: str) -> str:
    # entities, because some programs do not let a backslash escape these two characters
    return _TAG.sub("&lt;", _ENTITY.sub("&amp;", _MARK.sub(r"\\\g<0>", text)))


def markdown_address(address: str) -> str:
    """An address as a link's target, with every character escaped that would end the link."""
    return quote(address, safe=_ADDRESS)
