"""Numbers and names as a reader says them."""

import hashlib
import math
import re
from collections.abc import Sequence
from typing import Any

from errors import printable

_SLUG_LENGTH = 80  # a file's name ends at 255 bytes, and a picture's kind follows the slug


def p_text(p: float) -> str:
    """A p-value with its sign of relation: ``= 0.012``, ``= 1e-9``, ``< 1e-300``; a dash for none."""
    if math.isnan(p):
        return "–"
    if p < 1e-300:
        return "< 1e-300"
    if p >= 0.001:
        return f"= {p:.3f}"
    digits, exponent = f"{p:.0e}".split("e")
    return f"= {digits}e{int(exponent)}"


def number(value: float) -> str:
    """One decimal and a true minus sign; a dash if there is no number."""
    return "–" if math.isnan(value) else f"{value:.1f}".replace("-", "−")


def span(low: float, high: float) -> str:
    """``1.0 to 2.0``, or one number if both ends read the same."""
    return number(high) if number(low) == number(high) else f"{number(low)} to {number(high)}"


def signed(value: float) -> str:
    """One decimal with its sign, ``+0.5``; zero has no sign; a dash if there is no number."""
    if math.isnan(value):
        return "–"
    return f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "0.0"


def points_text(margin: float) -> str:
    """``1 point``, ``0.5 points``."""
    return "1 point" if margin == 1 else f"{margin:g} points"


def learning_rate_text(value: float) -> str:
    """``5e-5``, ``0.001``."""
    digits, _, exponent = f"{value:.3g}".partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def accuracy_text(value: float) -> str:
    """Four decimals; a dash if there is no accuracy."""
    return "–" if math.isnan(value) else f"{value:.4f}"


def cell_text(value: Any) -> str:
    """A table's value: four digits of a fraction, a dash for NaN."""
    if not isinstance(value, float):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.4g}"


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def counted(count: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def axis_words(axis: str) -> str:
    """``target batch size`` for the axis ``target_batch_size``."""
    return axis.replace("_", " ")


def shorten(text: str, length: int = 200) -> str:
    """A text of the data as people see it: on one line, printable, cut to ``length`` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def slug(name: str) -> str:
    """A model's name as part of a file name; different names have different slugs."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")[:_SLUG_LENGTH]
    if plain and plain == name:
        return plain
    return f"{plain or 'model'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"
