"""Data sets as they lie in files or on the hub: the columns that a study reads, part by part, unchanged."""

import csv
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from errors import UserError, first_line, unknown

UTF_8 = "utf-8"
_FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_TEXT_FORMATS = {
    ".csv",
    ".json",
    ".jsonl",
}  # read here: the datasets library guesses types and missing values
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class SourcePart:
    """A file, or a split of a library's data set: some of the rows of one split.

    ``columns`` are those that were wanted and that it has, (n,) each. ``class_names`` are there where
    labels are indices into them; in ``is_typed`` parts a number is one because its file says so, elsewhere
    everything is text. ``place`` says where a row lies, as a person counts.
    """

    split: str
    columns: Mapping[str, Sequence[Any]]
    class_names: tuple[str, ...] | None = None
    is_typed: bool = True
    place: Callable[[int], str] = lambda row: f"row {row + 1}"

    @property
    def size(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def read_parts(dataset: str, columns: Sequence[str], encoding: str) -> list[SourcePart]:
    """The parts of a hub id, a folder, or one CSV, JSON or Parquet file, in its own order.

    Every column is in at least one part. Raises UserError, one line, for what cannot be read.
    """
    path = Path(os.path.expanduser(dataset))  # noqa: PTH111 - Path.expanduser raises for ~stranger
    exists = os.path.exists(path)  # noqa: PTH110 - Path.exists raises for long names
    looks_local = dataset.startswith((".", "/", "~")) or path.suffix in _FILE_FORMATS
    if looks_local and not exists:
        raise UserError(f"no such data set file or folder: {dataset}")
    if exists and path.is_file() and path.suffix not in _FILE_FORMATS:
        formats = ", ".join(_FILE_FORMATS)
        raise UserError(f"{dataset} is not one of the file formats that are read: {formats}")
    try:
        if not exists:
            return _of_library(datasets.load_dataset(dataset), columns, dataset, encoding)
        return _read_local(path, columns, dataset, encoding)
    except UserError:
        raise
    except Exception as error:  # the libraries raise a different type for every kind of bad input
        reason = first_line(error.__cause__ or error)
        hint = (
            ""
            if exists
            else ": give a hub id while the hub is in reach, a folder, or a CSV, JSON or Parquet file"
        )
        raise UserError(f"data set '{dataset}' cannot be read ({reason}){hint}") from error


def _read_local(path: Path, columns: Sequence[str], dataset: str, encoding: str) -> list[SourcePart]:
    """Read a file or a folder into memory: no copy of somebody's reviews stays in the user's cache."""
    if path.suffix in _TEXT_FORMATS and path.is_file():
        return _of_text_files({"train": [path]}, columns, dataset, encoding)
    if (path / "state.json").exists():  # written by Dataset.save_to_disk
        loaded = datasets.DatasetDict(train=datasets.load_from_disk(str(path), keep_in_memory=True))
        return _of_library(loaded, columns, dataset, encoding)
    with tempfile.TemporaryDirectory() as cache:
        if path.is_file():
            files = {"path": "parquet", "data_files": str(path)}
        else:
            files = {"path": str(path)}
            builder = datasets.load_dataset_builder(str(path), cache_dir=cache)
            found = {split: list(map(Path, names)) for split, names in builder.config.data_files.items()}
            is_text = found and all(
                file.suffix in _TEXT_FORMATS for names in found.values() for file in names
            )
            if is_text and not builder.info.features:
                return _of_text_files(found, columns, dataset, encoding)
        loaded = datasets.load_dataset(**files, cache_dir=cache, keep_in_memory=True)
        return _of_library(loaded, columns, dataset, encoding)


def _of_library(
    loaded: datasets.DatasetDict, columns: Sequence[str], dataset: str, encoding: str
) -> list[SourcePart]:
    if encoding != UTF_8:
        raise UserError(f"--encoding is for CSV and JSON files, and {dataset} says its own: leave it out")
    _check_columns(columns, [split.column_names for split in loaded.values()], dataset)
    return [_of_split(name, split, columns) for name, split in loaded.items()]


def _of_split(name: str, split: datasets.Dataset, columns: Sequence[str]) -> SourcePart:
    found = {column: list(split[column]) for column in columns if column in split.column_names}
    features = [split.features[column] for column in found]
    named = next((each for each in features if isinstance(each, datasets.ClassLabel)), None)
    return SourcePart(str(name), found, tuple(named.names) if named else None)


# -- text files ------------------------------------------------------------------------------------


def _of_text_files(
    splits: Mapping[str, Sequence[Path]], columns: Sequence[str], dataset: str, encoding: str
) -> list[SourcePart]:
    files = [(str(split), path) for split, paths in splits.items() for path in paths]
    tables = [_read_table(path, encoding) for _, path in files]
    _check_columns(columns, [table.names for table in tables], dataset)
    parts = []
    for (split, path), table in zip(files, tables, strict=True):
        where = f" of {path.name}" if len(files) > 1 else ""
        parts.append(
            SourcePart(
                split,
                {column: table.column(column) for column in columns if column in table.names},
                is_typed=path.suffix != ".csv",
                place=lambda row, table=table, where=where: f"{table.place(row)}{where}",  # type: ignore[misc]
            )
        )
    return parts


@dataclass(frozen=True)
class _Table:
    """A file of text: the names of its columns, a column's values, and where a row lies."""

    names: Sequence[str]
    column: Callable[[str], list[Any]]
    place: Callable[[int], str]


def _read_table(path: Path, encoding: str) -> _Table:
    # -sig: a mark of the byte order, which Windows writes, is no part of the first name
    codec = "utf-8-sig" if encoding.lower().replace("_", "-") in {UTF_8, "utf8"} else encoding
    try:
        return (_read_csv if path.suffix == ".csv" else _read_json)(path, codec)
    except UnicodeError as error:
        with path.open("rb") as file:
            guess = "utf-16" if file.read(2) in _UTF_16_MARKS else "cp1252"
        advice = f"such as --encoding {guess}" if guess != encoding else "with --encoding"
        raise UserError(f"{path} is not in {encoding}: give the encoding that it has, {advice}") from error


def _read_csv(path: Path, codec: str) -> _Table:
    with warnings.catch_warnings():
        # rows longer than the header: pandas would leave the rest out, and does so in silence where only
        # some columns are read; so all are, as text, which fits every cell
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(path, dtype=object, na_filter=False, index_col=False, encoding=codec)
    return _Table(
        list(frame.columns),
        lambda name: frame[name].tolist(),
        lambda row: f"row {_spreadsheet_row(path, codec, row)}",
    )


def _spreadsheet_row(path: Path, codec: str, row: int) -> int:
    """The number that a spreadsheet shows beside a row of data: the header is 1, blank lines count."""
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding=codec) as file:
        filled = [
            n for n, cells in enumerate(csv.reader(file), 1) if len(cells) > 1 or "".join(cells).strip()
        ]
    return filled[row + 1]


def _read_json(path: Path, codec: str) -> _Table:
    text = path.read_text(encoding=codec)
    try:
        found, kind = json.loads(text), "record"
    except json.JSONDecodeError:
        found, kind = None, "line"
    if isinstance(found, dict) and all(isinstance(value, list) for value in found.values()):
        if len({len(value) for value in found.values()}) > 1:
            raise ValueError("its columns have different lengths")
        return _Table(list(found), lambda name: found[name], lambda row: f"record {row + 1}")
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
    return _Table(
        list(names),
        lambda name: [record.get(name) for record in records],
        lambda row: f"{kind} {numbers[row]}",
    )


def _record(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error


def _check_columns(columns: Sequence[str], found: Iterable[Sequence[str]], dataset: str) -> None:
    """Raise UserError for a column that no part has; parts without rows may have none."""
    names = dict.fromkeys(name for part in found for name in part)
    for column in columns:
        if names and column not in names:
            raise unknown(f"column of {dataset}", column, names)
