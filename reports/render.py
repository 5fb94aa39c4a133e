"""Tables as a terminal, Markdown and people read them."""

import math
import re
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from reports.content import TableContent, Value


def terminal_table(table: TableContent) -> Table:
    """For a terminal: the first column to the left, the others to the right."""
    drawn = Table(title=Text(table.title), title_justify="left", title_style="bold")
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(*(Text(cell_text(value)) for value in row))
    return drawn


def markdown_table(table: TableContent) -> str:
    """With its title as a heading."""
    columns = [markdown_text(column) for column in table.columns]
    head = [f"### {markdown_text(table.title)}", "", _line(columns), _line(["---"] * len(columns))]
    rows = [_line([markdown_text(cell_text(value)) for value in row]) for row in table.rows]
    return "\n".join([*head, *rows, "", *([markdown_text(table.note), ""] if table.note else [])])


def cell_text(value: Value) -> str:
    """A value as it is read: four digits of a fraction, a dash where there is none."""
    if not isinstance(value, float):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.4g}"


def markdown_text(text: str) -> str:
    """One line, and in it no tag, link, picture or end of a cell; a lone bracket stays as it is."""
    escaped = re.sub(r"[\\|]|\](?=[(\[:])", r"\\\g<0>", text.replace("&", "&amp;").replace("<", "&lt;"))
    return " ".join(escaped.split())


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"
