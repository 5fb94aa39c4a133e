"""Tables as a terminal, Markdown and people read them."""

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from reports.content import TableContent, Value


def terminal_table(table: TableContent) -> Table:
    """For a terminal: the first column to the left, the others to the right."""
    drawn = Table(title=table.title, title_justify="left", title_style="bold")
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(*(Text(cell_text(value)) for value in row))
    return drawn


def markdown_table(table: TableContent) -> str:
    """With its title as a heading."""
    head = [f"### {_markdown(table.title)}", "", _line(table.columns), _line(["---"] * len(table.columns))]
    rows = [_line([_markdown(cell_text(value)) for value in row]) for row in table.rows]
    return "\n".join([*head, *rows, "", *([table.note, ""] if table.note else [])])


def cell_text(value: Value) -> str:
    """A value as it is read: four digits of a fraction, a dash where there is none."""
    if not isinstance(value, float):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.4g}"


def _markdown(text: str) -> str:
    """One line, nothing in it that Markdown or the HTML around it would act on."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"
