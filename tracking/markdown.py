"""Text that stays as it is where Markdown is read: CommonMark, GitHub's tables and strike-through."""

import re
from urllib.parse import quote

# as of an interval: what closes here, leads to no link and is no box to tick
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
    """The text on one line, for any place: a paragraph, a heading, a list, a cell, a picture's words.

    No tag, link, picture, emphasis or end of a cell gets in; what is plain as it stands, such as
    ``val_acc`` and ``[33.1, 35]``, is left alone.
    """
    parts = _PAIR.split(" ".join(text.split()))  # before, within, between, within, … after
    escaped = list(map(_without_marks, parts))
    escaped[1::2] = [f"[{within}]" for within in escaped[1::2]]
    return _NUMBER.sub(r"\1\\", _START.sub(r"\\", "".join(escaped)))


def _without_marks(text: str) -> str:
    # entities, which every reader knows, for what some do not let a backslash escape
    return _TAG.sub("&lt;", _ENTITY.sub("&amp;", _MARK.sub(r"\\\g<0>", text)))


def markdown_address(address: str) -> str:
    """An address as a link's target: nothing in it ends the link."""
    return quote(address, safe=_ADDRESS)
