"""CSV files that a spreadsheet opens safely."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Columns and rows with unrounded numbers; missing values are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def csv_cell(value: Any) -> Any:
    """A value as it is safe in a CSV file; NaN is empty."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    # a spreadsheet would run a text that starts like a formula
    if isinstance(value, str) and value[:1] in set("=+-@\t\r"):
        return "'" + value
    return value
