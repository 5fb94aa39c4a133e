"""Numbers as a reader says them."""

import hashlib
import math
import re
from collections.abc import Callable, Sequence

from reports.evidence.statistics import Interval

_SLUG_LENGTH = 80  # file systems end at 255 bytes, and a picture's kind is to follow


def p_text(p: float) -> str:
    """A p-value with its sign of relation: ``= 0.012``, ``= 1e-9``, ``< 1e-300``."""
    if p < 1e-300:
        return "< 1e-300"
    if p >= 0.001:
        return f"= {p:.3f}"
    digits, exponent = f"{p:.0e}".split("e")
    return f"= {digits}e{int(exponent)}"


def number(value: float) -> str:
    """One decimal, and a true minus sign."""
    return f"{value:.1f}".replace("-", "−")


def signed(value: float) -> str:
    """One decimal with its sign, ``+0.5``; what rounds to zero has none."""
    return f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "0.0"


def interval_text(interval: Interval, sign: int, text: Callable[[float], str]) -> str:
    """``17.2 to 27.8``; with a ``sign`` of -1 the interval of the opposite difference."""
    low, high = sorted(sign * end for end in interval)
    return f"{text(low)} to {text(high)}"


def learning_rate_text(value: float) -> str:
    """``5e-5``, ``0.001``."""
    digits, _, exponent = f"{value:.3g}".partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def counted(count: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def accuracy_text(value: float) -> str:
    """Four decimals; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.4f}"


def slug(name: str) -> str:
    """A model's name as part of a file name; names that differ have slugs that do."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")[:_SLUG_LENGTH]
    if plain and plain == name:
        return plain
    return f"{plain or 'model'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"
