"""What a section of a report is made of: prose, pictures and tables, and how it is kept in a folder."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from errors import UserError, first_line
from reports.csv_files import csv_text

INSIDE = "inside"  # the section that looks inside the models: its folder, and its file's name
PATIENCE = 60.0  # seconds, with an MLflow that stops to answer
Value = str | int | float
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class Picture:
    """A figure as PNG; ``name`` is its file's name without the ending."""

    name: str
    title: str
    caption: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class TableContent:
    """A table with unrounded values; ``note`` says how to read it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    note: str = ""

    def csv_text(self) -> str:
        """The table as CSV, its columns in snake_case; texts that look like formulas are quoted."""
        return csv_text([column.replace(" ", "_") for column in self.columns], self.rows)


@dataclass(frozen=True)
class Section:
    """A part of a report; ``tables`` are by the name of their CSV file, without the ending."""

    prose: Sequence[str]
    pictures: Sequence[Picture]
    tables: Mapping[str, TableContent]


def table_of(row_type: type, rows: Sequence[Any], title: str, note: str = "") -> TableContent:
    """A table of dataclass instances: a column per field, underscores read as spaces."""
    names = [field.name for field in fields(row_type)]
    columns = [name.replace("_", " ") for name in names]
    return TableContent(title, columns, [[getattr(row, name) for name in names] for row in rows], note)


def make_folder(folder: Path) -> None:
    """Create a folder of a report; UserError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write to {folder} ({first_line(error)}): choose another --results-path"
        ) from error


def write_section(section: Section, folder: Path, name: str) -> None:
    """Write ``folder`` anew: ``<name>.json`` describes the PNG and CSV files beside it."""
    make_folder(folder)
    if (folder / f"{name}.json").is_file():
        _remove_section(folder, name)
    for picture in section.pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    for file, table in section.tables.items():
        (folder / f"{file}.csv").write_text(table.csv_text(), encoding="utf-8")
    pictures = [{k: v for k, v in vars(picture).items() if k != "png"} for picture in section.pictures]
    tables = {file: asdict(table) for file, table in section.tables.items()}
    description = {"prose": list(section.prose), "pictures": pictures, "tables": tables}
    text = json.dumps(description, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def read_section(folder: Path, name: str) -> Section:
    """Read what ``write_section`` wrote; a UserError for anything else, somebody may have put it there."""
    try:
        description = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return _section(folder, description)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{name}.json does not describe what analyze found ({first_line(error)}): run analyze again"
        ) from error


def _section(folder: Path, description: dict[str, Any]) -> Section:
    pictures = [
        Picture(**_texts(picture), png=(folder / f"{_file_name(picture['name'])}.png").read_bytes())
        for picture in description["pictures"]
    ]
    tables = {_file_name(file): _table(table) for file, table in description["tables"].items()}
    return Section([_text(sentence) for sentence in description["prose"]], pictures, tables)


def _file_name(name: str) -> str:
    """A name that stays in its folder."""
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"{name} is not the name of a file")
    return name


def _table(values: dict[str, Any]) -> TableContent:
    table = TableContent(**values)
    columns = [_text(column) for column in table.columns]
    rows = [[_value(value) for value in row] for row in table.rows]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError("a row is longer or shorter than its table")
    return TableContent(_text(table.title), columns, rows, _text(table.note))


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {key: _text(value) for key, value in values.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("something else stands where a text should")
    return value.encode("utf-8", "replace").decode()  # JSON can spell halves of characters


def _value(value: Any) -> Value:
    return value if isinstance(value, (int, float)) else _text(value)


def _remove_section(folder: Path, name: str) -> None:
    try:
        earlier = read_section(folder, name)
    except UserError:  # what it described can no longer be told from somebody else's files
        return
    files = [f"{picture.name}.png" for picture in earlier.pictures]
    for file in (*files, *(f"{table}.csv" for table in earlier.tables), f"{name}.json"):
        (folder / file).unlink(missing_ok=True)
