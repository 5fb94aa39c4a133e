"""What a report is made of: tables, pictures and sections, and how a section is stored in a folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, BaseModel, Field
from rich.table import Table as RichTable
from rich.text import Text

from errors import UserError, first_line, printable
from reports.prose import cell_text

INSIDE = "inside"  # the section that looks inside the models: its folder, and its file's name
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,149}$")]  # it stays in its folder
_Shown = Annotated[str, AfterValidator(printable)]
_STARTS_A_FORMULA = frozenset("=+-@\t\n＝＋－＠")  # a spreadsheet would compute it


class Picture(BaseModel, frozen=True, extra="forbid"):
    """A figure as PNG; ``name`` is its file's name without the ending; ``broad``: by itself in a row."""

    name: FileName
    title: _Shown
    caption: _Shown
    alt: _Shown
    broad: bool = False
    png: bytes = Field(b"", exclude=True)


@dataclass(frozen=True)
class Table:
    """A titled DataFrame; ``note`` says how to read it."""

    title: str
    frame: pd.DataFrame
    note: str = ""

    @property
    def columns(self) -> list[str]:
        return list(map(str, self.frame.columns))

    def texts(self) -> list[list[str]]:
        return [[cell_text(value) for value in row] for row in rows(self.frame)]


@dataclass(frozen=True)
class Gallery:
    """Pictures under a heading; ``folded`` are shown when the reader wants them."""

    heading: str
    pictures: Sequence[Picture]
    folded: Sequence[Picture] = ()


@dataclass(frozen=True)
class Section:
    """A part of a report; ``tables`` are by the name of their CSV file, without the ending."""

    prose: list[str]
    pictures: list[Picture]
    tables: Mapping[str, Table]


def rows(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples."""
    return frame.itertuples(index=False)


def csv_text(frame: pd.DataFrame) -> str:
    """The frame as CSV: columns without blanks, numbers unrounded, missing values empty, no formulas."""
    safe = frame.map(_csv_cell).rename(columns=lambda column: _csv_cell(column.replace(" ", "_")))
    return safe.to_csv(index=False, lineterminator="\n")


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")  # the csv module leaves a lone \r unquoted
    return "'" + text if text[:1] in _STARTS_A_FORMULA else text


def terminal_table(table: Table) -> RichTable:
    """For a terminal: the first column to the left, the others to the right."""
    drawn = RichTable(title=Text(table.title), title_justify="left", title_style="bold")
    for number, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="left" if number == 0 else "right")
    for row in table.texts():
        drawn.add_row(*map(Text, row))
    return drawn


def make_folder(folder: Path) -> None:
    """Create a folder of a report; UserError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write to {folder} ({first_line(error)}): choose another --results-path"
        ) from error


class _StoredTable(BaseModel, extra="forbid"):
    title: _Shown
    columns: list[_Shown]
    rows: list[list[_Shown | int | float]]
    note: _Shown


class _StoredSection(BaseModel, extra="forbid"):
    prose: list[_Shown]
    pictures: list[Picture]
    tables: dict[FileName, _StoredTable]


def write_section(section: Section, folder: Path) -> None:
    """Write ``folder`` anew: ``inside.json`` describes the PNG and CSV files beside it."""
    make_folder(folder)
    for earlier in _written_before(folder):
        earlier.unlink(missing_ok=True)
    for picture in section.pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    tables = {}
    for file, table in section.tables.items():
        (folder / f"{file}.csv").write_text(csv_text(table.frame), encoding="utf-8")
        cells = [list(row) for row in rows(table.frame)]
        tables[file] = _StoredTable(title=table.title, columns=table.columns, rows=cells, note=table.note)
    stored = _StoredSection(prose=section.prose, pictures=section.pictures, tables=tables)
    text = json.dumps(stored.model_dump(), indent=1, ensure_ascii=False)
    (folder / f"{INSIDE}.json").write_text(text, encoding="utf-8")


def _written_before(folder: Path) -> list[Path]:
    """What an earlier ``inside.json`` names, and itself at last; the rest there is somebody's own."""
    described_by = folder / f"{INSIDE}.json"
    try:
        stored = _StoredSection.model_validate_json(described_by.read_bytes())
    except (OSError, ValueError):
        return []
    names = [f"{picture.name}.png" for picture in stored.pictures] + [
        f"{file}.csv" for file in stored.tables
    ]
    return [*(folder / name for name in names), described_by]


def read_section(folder: Path) -> Section:
    """Read what ``write_section`` wrote; UserError for anything else."""
    try:
        stored = _StoredSection.model_validate_json((folder / f"{INSIDE}.json").read_bytes())
        pictures = [
            picture.model_copy(update={"png": (folder / f"{picture.name}.png").read_bytes()})
            for picture in stored.pictures
        ]
        tables = {
            file: Table(table.title, pd.DataFrame(table.rows, columns=table.columns), table.note)
            for file, table in stored.tables.items()
        }
    except (OSError, ValueError) as error:
        raise UserError(
            f"{INSIDE}.json does not describe what analyze found ({first_line(error)}): run analyze again"
        ) from error
    return Section(stored.prose, pictures, tables)
