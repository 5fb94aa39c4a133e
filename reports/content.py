"""What a report is made of: sections with their sentences, tables and pictures; tables as text and CSV."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, BaseModel, Field, model_validator
from rich.table import Table as RichTable
from rich.text import Text

from errors import UserError, first_line, printable
from reports.prose import cell_text

INSIDE = "inside"  # the section that looks inside the models: its folder, and its file's name
FileName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,149}$")
]  # cannot name another folder
_Shown = Annotated[str, AfterValidator(printable)]
_STARTS_A_FORMULA = frozenset("=+-@\t\n＝＋－＠")  # a spreadsheet would compute such a cell


class Picture(BaseModel, frozen=True, extra="forbid"):
    """A figure as PNG; ``name``: of its file, without the ending; ``broad``: alone in a row."""

    name: FileName
    title: _Shown
    caption: _Shown
    alt: _Shown
    broad: bool = False
    png: bytes = Field(b"", exclude=True)


class Table(BaseModel, frozen=True, extra="forbid"):
    """A table for people; ``note`` explains its columns."""

    title: _Shown
    columns: list[_Shown]
    rows: list[list[_Shown | int | float]]
    note: _Shown = ""
    unrounded: Any = Field(default=None, exclude=True)  # what the CSV file holds instead
    folded: bool = Field(default=True, exclude=True)  # the page shows it on demand

    @model_validator(mode="after")
    def _check(self) -> "Table":
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("a row with other columns")
        return self

    @classmethod
    def of(
        cls, title: str, items: Iterable[Any], columns: Mapping[str, Callable[..., Any]], **more: Any
    ) -> "Table":
        """A row per item; ``columns`` maps the name of a column to a function of the item."""
        cells = [[value(item) for value in columns.values()] for item in items]
        return cls(title=title, columns=list(columns), rows=cells, **more)

    @classmethod
    def of_frame(cls, title: str, frame: pd.DataFrame, note: str = "") -> "Table":
        columns = list(map(str, frame.columns))
        return cls(title=title, columns=columns, rows=[list(row) for row in rows(frame)], note=note)

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=self.columns)

    def texts(self) -> list[list[str]]:
        return [[cell_text(value) for value in row] for row in self.rows]

    def csv(self) -> str:
        return csv_text(self.frame if self.unrounded is None else self.unrounded)


@dataclass(frozen=True)
class Section:
    """What one module adds to a report; each field has its place on the page."""

    headline: Sequence[str] = ()  # paragraphs; the page begins with the first section that has any
    answer: Picture | None = None  # beside the headline
    flags: Sequence[str] = ()  # what a reader should know before believing the study
    tables: Mapping[str, Table] = field(default_factory=dict)  # by the names of their CSV files
    sentences: Sequence[Sequence[str]] = ()  # lists of sentences, folded
    heading: str = ""  # of the pictures
    pictures: Sequence[Picture] = ()
    folded: Sequence[Picture] = ()  # shown on demand
    is_asked_for: bool = False  # by an option: tables also in the terminal, pictures before the others


class InsideSection(BaseModel, frozen=True, extra="forbid"):
    """The section that looks inside the models; ``analyze`` stores it, and every later report has it."""

    prose: list[_Shown]
    pictures: list[Picture]
    tables: dict[FileName, Table]  # by the names of their CSV files


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
    """The table for a terminal: the first column aligned left, the others right."""
    drawn = RichTable(title=Text(table.title), title_justify="left", title_style="bold")
    for number, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="left" if number == 0 else "right")
    for row in table.texts():
        drawn.add_row(*map(Text, row))
    return drawn


def make_folder(folder: Path) -> None:
    """Create a folder of a report; UserError if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write to {folder} ({first_line(error)}): choose another --results-path"
        ) from error


def write_section(section: InsideSection, folder: Path) -> None:
    """Write ``folder`` anew: ``inside.json`` describes the PNG and CSV files beside it."""
    make_folder(folder)
    for earlier in _written_before(folder):
        earlier.unlink(missing_ok=True)
    for picture in section.pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    for file, table in section.tables.items():
        (folder / f"{file}.csv").write_text(table.csv(), encoding="utf-8")
    text = json.dumps(section.model_dump(), indent=1, ensure_ascii=False)
    (folder / f"{INSIDE}.json").write_text(text, encoding="utf-8")


def _written_before(folder: Path) -> list[Path]:
    """The files that an earlier ``inside.json`` names, then itself; other files are the user's own."""
    described_by = folder / f"{INSIDE}.json"
    try:
        section = InsideSection.model_validate_json(described_by.read_bytes())
    except (OSError, ValueError):
        return []
    names = [
        *(f"{each.name}.png" for each in section.pictures),
        *(f"{file}.csv" for file in section.tables),
    ]
    return [*(folder / name for name in names), described_by]


def read_section(folder: Path) -> InsideSection:
    """Read what ``write_section`` wrote; UserError for anything else."""
    try:
        section = InsideSection.model_validate_json((folder / f"{INSIDE}.json").read_bytes())
        pictures = [
            picture.model_copy(update={"png": (folder / f"{picture.name}.png").read_bytes()})
            for picture in section.pictures
        ]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{INSIDE}.json does not describe what analyze found ({first_line(error)}): run analyze again"
        ) from error
    return section.model_copy(update={"pictures": pictures})
