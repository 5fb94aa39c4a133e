"""Tables that come back from a tracking store, checked: somebody else may have put them there."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from errors import UserError, first_line

Check = Callable[[pd.Series], bool]


def whole_numbers(column: pd.Series) -> bool:
    """Whether the column holds integers, and one in each row."""
    return pd.api.types.is_integer_dtype(column) and not column.hasnans


def fractions(column: pd.Series) -> bool:
    """Whether the column holds numbers from 0 to 1."""
    return pd.api.types.is_float_dtype(column) and bool(column.between(0, 1).all())


def texts(column: pd.Series) -> bool:
    """Whether the column holds a text in each row."""
    return all(isinstance(value, str) for value in column)


def read_table(fetch: Callable[[Path], Path], what: str, checks: Mapping[str, Check]) -> pd.DataFrame:
    """The Parquet file that ``fetch`` puts into a folder; a UserError where it is not as written.

    Parquet is data: nothing in it is run when it is read.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            frame = pd.read_parquet(fetch(Path(folder)))
    except Exception as error:  # MLflow, pyarrow and the file system each have their own
        raise UserError(f"{what} cannot be read from MLflow: {first_line(error)}") from error
    for name, is_good in checks.items():
        if name not in frame or not isinstance(frame[name], pd.Series) or not is_good(frame[name]):
            raise UserError(f"{what} is not what this program stores in MLflow: see its column '{name}'")
    if frame["row_id"].duplicated().any():
        raise UserError(f"{what} is not what this program stores in MLflow: it has rows twice")
    return frame
