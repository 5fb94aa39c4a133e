"""What a section of a report is made of: prose, pictures and tables, and how it is kept in a folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from reports.csv_files import csv_text

INSIDE = "inside"  # the section that looks inside the models: its folder, and its file's name
Value = str | int | float


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


def write_section(section: Section, folder: Path, name: str) -> None:
    """Write ``folder`` anew: ``<name>.json`` describes the PNG and CSV files beside it."""
    folder.mkdir(parents=True, exist_ok=True)
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
    """Read what ``write_section`` wrote."""
    description = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    pictures = [
        Picture(**picture, png=(folder / f"{picture['name']}.png").read_bytes())
        for picture in description["pictures"]
    ]
    tables = {file: TableContent(**table) for file, table in description["tables"].items()}
    return Section(description["prose"], pictures, tables)


def _remove_section(folder: Path, name: str) -> None:
    earlier = read_section(folder, name)
    files = [f"{picture.name}.png" for picture in earlier.pictures]
    for file in (*files, *(f"{table}.csv" for table in earlier.tables), f"{name}.json"):
        (folder / file).unlink(missing_ok=True)
