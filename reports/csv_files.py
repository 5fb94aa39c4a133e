"""CSV files that a spreadsheet opens safely."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

_STARTS_A_FORMULA = frozenset("=+-@\t\n＝＋－＠")  # a spreadsheet would run it


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Columns and rows with unrounded numbers; missing values are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(csv_cell, columns))
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def csv_cell(value: Any) -> Any:
    """A value as it is safe in a CSV file; NaN is empty."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")  # the csv module leaves a lone \r unquoted
    return "'" + text if text[:1] in _STARTS_A_FORMULA else text
