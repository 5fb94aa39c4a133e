"""Files of text, CSV, TSV and JSON: read by Python and pandas, as they are.

The datasets library guesses types, reads words such as None as missing, and crashes on deeply nested JSON.
"""

import csv
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from errors import UserError

UTF_8 = "utf-8"
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = {".json", ".jsonl", ".ndjson"}
TEXT_SUFFIXES = {*SEPARATORS, *JSON_SUFFIXES}
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class TextTable:
    """A file of text: the names of its columns, the values of a column, and the place of a row."""

    names: Sequence[str]
    column: Callable[[str], list[Any]]
    place: Callable[[int], str]
    ambiguous: Sequence[str] = ()  # names that several columns have


def read_table(path: Path, encoding: str) -> TextTable:
    """The whole file. Raises UserError, or an error of Python or pandas, if it cannot be read."""
    # -sig: keeps the byte order mark, which Windows writes, out of the first name
    codec = "utf-8-sig" if encoding == UTF_8 else encoding
    try:
        return (_read_csv if path.suffix in SEPARATORS else _read_json)(path, codec)
    except UnicodeError as error:
        with path.open("rb") as file:
            guess = "utf-16" if file.read(2) in _UTF_16_MARKS else "cp1252"
        advice = f"such as --encoding {guess}" if guess != encoding else "with --encoding"
        raise UserError(f"{path} is not in {encoding}: give the encoding that it has, {advice}") from error
    except RecursionError as error:
        raise UserError(
            f"{path} is nested too deeply: write objects with a text and a label each"
        ) from error


def _read_csv(path: Path, codec: str) -> TextTable:
    options: dict[str, Any] = {"sep": SEPARATORS[path.suffix], "dtype": object, "na_filter": False}
    names = pd.read_csv(path, header=None, nrows=1, encoding=codec, **options).iloc[0].tolist()
    if len(names) == 1 and (other := next((each for each in ";\t|" if each in names[0]), "")):
        raise UserError(f"the columns of {path} are separated by {other!r}: save it with commas")
    with warnings.catch_warnings():
        # pandas cuts rows that are longer than the header, and warns only if all columns are read; so all
        # are read, as text, which fits every cell
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            frame = pd.read_csv(path, index_col=False, encoding=codec, **options)
        except pd.errors.ParserWarning:
            raise UserError(
                f"a row of {path} has more cells than the header: put texts with commas in quotes"
            ) from None
    return TextTable(
        list(dict.fromkeys(names)),
        lambda name: frame[name].tolist(),
        lambda row: f"row {_spreadsheet_row(path, codec, row)}",
        [name for name in names if names.count(name) > 1],
    )


def _spreadsheet_row(path: Path, codec: str, row: int) -> int:
    """The number of a data row in a spreadsheet: the header is row 1, and blank lines count."""
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding=codec) as file:
        lines = list(file)
    reader, start, numbers = csv.reader(lines, delimiter=SEPARATORS[path.suffix]), 0, []
    for number, _ in enumerate(reader, 1):
        if "".join(lines[start : reader.line_num]).strip(" \r\n"):  # pandas skips blank lines
            numbers.append(number)
        start = reader.line_num
    return numbers[row + 1]


def _read_json(path: Path, codec: str) -> TextTable:
    text = path.read_text(encoding=codec)
    try:
        found, kind = json.loads(text), "record"
    except json.JSONDecodeError:
        found, kind = None, "line"
    if isinstance(found, dict) and any(isinstance(value, dict | list) for value in found.values()):
        if not all(isinstance(value, list) for value in found.values()):
            raise UserError(f"{path} is one JSON object: write a list of objects, or one object a line")
        if len({len(value) for value in found.values()}) > 1:
            raise ValueError("its columns have different lengths")
        return TextTable(list(found), lambda name: found[name], lambda row: f"record {row + 1}")
    if kind == "line":
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        records, numbers = [_record(line, n) for n, line in lines], [n for n, _ in lines]
    else:
        records = found if isinstance(found, list) else [found]
        numbers = list(range(1, len(records) + 1))
    for number, record in zip(numbers, records, strict=True):
        if not isinstance(record, dict):
            raise ValueError(f"{kind} {number} is not an object with names and values")
    names = dict.fromkeys(name for record in records for name in record)
    return TextTable(
        list(names),
        lambda name: [record.get(name) for record in records],
        lambda row: f"{kind} {numbers[row]}",
    )


def _record(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON: {error.msg}, column {error.colno}") from None
