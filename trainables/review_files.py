"""Data sets as they lie in files or on the hub: the columns that a study reads, part by part, unchanged."""

import csv
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from errors import UserError, first_line, unknown

UTF_8 = "utf-8"
_FILE_FORMATS = (".csv", ".json", ".jsonl", ".parquet", ".tsv")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
# read here: the datasets library guesses types, and takes words such as None for missing
_TEXT_FORMATS = {*_SEPARATORS, ".json", ".jsonl"}
_AS_USUAL = {"sep": ",", "delimiter": None, "header": "infer", "names": None, "column_names": None}
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
    """The parts of a hub id, a folder, or one CSV, TSV, JSON or Parquet file, in its own order.

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
        hint = ": give a hub id while the hub is in reach, a folder, or a CSV, TSV, JSON or Parquet file"
        raise UserError(
            f"data set '{dataset}' cannot be read ({reason}){'' if exists else hint}"
        ) from error


def _read_local(path: Path, columns: Sequence[str], dataset: str, encoding: str) -> list[SourcePart]:
    """Read a file or a folder into memory: no copy of somebody's reviews stays in the user's cache."""
    if path.suffix in _TEXT_FORMATS and path.is_file():
        return _of_text_files({"train": [path]}, columns, dataset, encoding)
    if (path / "state.json").exists():  # written by Dataset.save_to_disk
        loaded = datasets.DatasetDict(train=datasets.load_from_disk(str(path), keep_in_memory=True))
        return _of_library(loaded, columns, dataset, encoding)
    with tempfile.TemporaryDirectory() as cache:
        options: dict[str, Any] = {"path": str(path)}
        if path.is_file():
            options = {"path": "parquet", "data_files": str(path)}
        else:
            builder = datasets.load_dataset_builder(str(path), cache_dir=cache)
            if splits := _text_files(builder):
                return _of_text_files(splits, columns, dataset, encoding)
            if hasattr(builder.config, "keep_default_na"):
                options["keep_default_na"] = False
        loaded = datasets.load_dataset(**options, cache_dir=cache, keep_in_memory=True)
        return _of_library(loaded, columns, dataset, encoding)


def _text_files(builder: datasets.DatasetBuilder) -> dict[str, list[Path]]:
    """Split -> its files, where all are text and nothing in the folder says how to read them; else none."""
    splits = {str(split): list(map(Path, files)) for split, files in builder.config.data_files.items()}
    is_text = all(file.suffix in _TEXT_FORMATS for files in splits.values() for file in files)
    usual = all(getattr(builder.config, name, value) in (value, "\t") for name, value in _AS_USUAL.items())
    return splits if is_text and usual and not builder.info.features else {}


def _of_library(
    loaded: datasets.DatasetDict, columns: Sequence[str], dataset: str, encoding: str
) -> list[SourcePart]:
    if encoding != UTF_8:
        raise UserError(f"--encoding is for CSV and JSON files, and not for {dataset}: leave it out")
    _check_columns(
        columns, {f"split {name}": split.column_names for name, split in loaded.items()}, dataset
    )
    return [_of_split(name, split, columns, len(loaded) > 1) for name, split in loaded.items()]


def _of_split(name: str, split: datasets.Dataset, columns: Sequence[str], is_one_of: bool) -> SourcePart:
    found = {column: list(split[column]) for column in columns if column in split.column_names}
    features = [split.features[column] for column in found]
    named = next((each for each in features if isinstance(each, datasets.ClassLabel)), None)
    where = f" of split {name}" if is_one_of else ""
    return SourcePart(
        str(name), found, tuple(named.names) if named else None, place=lambda row: f"row {row + 1}{where}"
    )


# -- text files ------------------------------------------------------------------------------------


def _of_text_files(
    splits: Mapping[str, Sequence[Path]], columns: Sequence[str], dataset: str, encoding: str
) -> list[SourcePart]:
    files = [(str(split), path) for split, paths in splits.items() for path in paths]
    tables = [_read_table(path, encoding) for _, path in files]
    _check_columns(columns, {str(f): t.names for (_, f), t in zip(files, tables, strict=True)}, dataset)
    parts = []
    for (split, path), table in zip(files, tables, strict=True):
        if twice := [column for column in columns if column in table.ambiguous]:
            raise UserError(f"{path} has several columns called '{twice[0]}': rename all but one")
        where = f" of {path.name}" if len(files) > 1 else ""
        parts.append(
            SourcePart(
                split,
                {column: table.column(column) for column in columns if column in table.names},
                is_typed=path.suffix not in _SEPARATORS,
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
    ambiguous: Sequence[str] = ()  # names that several columns have


def _read_table(path: Path, encoding: str) -> _Table:
    # -sig: a mark of the byte order, which Windows writes, is no part of the first name
    codec = "utf-8-sig" if encoding == UTF_8 else encoding
    try:
        return (_read_csv if path.suffix in _SEPARATORS else _read_json)(path, codec)
    except UnicodeError as error:
        with path.open("rb") as file:
            guess = "utf-16" if file.read(2) in _UTF_16_MARKS else "cp1252"
        advice = f"such as --encoding {guess}" if guess != encoding else "with --encoding"
        raise UserError(f"{path} is not in {encoding}: give the encoding that it has, {advice}") from error


def _read_csv(path: Path, codec: str) -> _Table:
    options: dict[str, Any] = {"sep": _SEPARATORS[path.suffix], "dtype": object, "na_filter": False}
    names = pd.read_csv(path, header=None, nrows=1, encoding=codec, **options).iloc[0].tolist()
    if len(names) == 1 and (other := next((each for each in ";\t|" if each in names[0]), "")):
        raise UserError(f"the columns of {path} are separated by {other!r}: save it with commas")
    with warnings.catch_warnings():
        # rows longer than the header: pandas would leave the rest out, and does so in silence where only
        # some columns are read; so all are, as text, which fits every cell
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            frame = pd.read_csv(path, index_col=False, encoding=codec, **options)
        except pd.errors.ParserWarning:
            raise UserError(
                f"a row of {path} has more cells than the header: put texts with commas in quotes"
            ) from None
    return _Table(
        list(dict.fromkeys(names)),
        lambda name: frame[name].tolist(),
        lambda row: f"row {_spreadsheet_row(path, codec, row)}",
        [name for name in names if names.count(name) > 1],
    )


def _spreadsheet_row(path: Path, codec: str, row: int) -> int:
    """The number that a spreadsheet shows beside a row of data: the header is 1, blank lines count."""
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding=codec) as file:
        lines = list(file)
    reader, start, numbers = csv.reader(lines, delimiter=_SEPARATORS[path.suffix]), 0, []
    for number, _ in enumerate(reader, 1):
        if "".join(lines[start : reader.line_num]).strip(" \r\n"):  # else pandas passes over it
            numbers.append(number)
        start = reader.line_num
    return numbers[row + 1]


def _read_json(path: Path, codec: str) -> _Table:
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
        raise ValueError(f"line {number} is not JSON: {error.msg}, column {error.colno}") from None


def _check_columns(columns: Sequence[str], found: Mapping[str, Sequence[str]], dataset: str) -> None:
    """Raise UserError for a column that no part has, and for a part without the text column.

    ``found``: a part's name in messages -> its columns; a part without rows may have none.
    """
    whole = dict.fromkeys(name for names in found.values() for name in names)
    text, *others = columns
    for part, names in found.items():
        if names and text not in names:
            raise unknown(f"column of {part if len(found) > 1 else dataset}", text, names)
    for column in others:
        if whole and column not in whole:
            raise unknown(f"column of {dataset}", column, whole)
