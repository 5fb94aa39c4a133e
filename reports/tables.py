"""The tables of a study: one per scaling rule, a row per model and target batch size."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

COLUMNS = (
    "model",
    "target batch size",
    "learning rate",
    "val_acc@best epoch",
    "test_acc",
    "last-epoch test_acc",
)


@dataclass(frozen=True)
class Row:
    """One cell of the study; accuracies are NaN where the trial has not come so far."""

    scaling_rule: str
    model: str
    target_batch_size: int
    seed: int
    learning_rate: float
    best_val_acc: float
    best_epoch: float
    test_acc: float
    last_test_acc: float
    run_id: str
    trial_hash: str

    def texts(self) -> tuple[str, ...]:
        """The row as it is printed, in the order of COLUMNS."""
        best = _accuracy(self.best_val_acc)
        if not math.isnan(self.best_epoch):
            best += f" (epoch {self.best_epoch:.0f})"
        return (
            self.model,
            str(self.target_batch_size),
            f"{self.learning_rate:.3g}",
            best,
            _accuracy(self.test_acc),
            _accuracy(self.last_test_acc),
        )


def by_rule(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows grouped by scaling rule, in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.scaling_rule, []).append(row)
    return groups


def terminal_tables(rows: Sequence[Row]) -> list[Table]:
    """One rich table per scaling rule."""
    tables = []
    columns, cells = _columns_and_cells(rows)
    for rule, group in by_rule(rows).items():
        table = Table(title=f"scaling rule: {rule}", title_justify="left", title_style="bold")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in group:
            table.add_row(*cells(row))
        tables.append(table)
    return tables


def markdown(rows: Sequence[Row]) -> str:
    """One Markdown table per scaling rule."""
    columns, cells = _columns_and_cells(rows)
    lines = []
    for rule, group in by_rule(rows).items():
        lines += [f"### Scaling rule: {rule}", "", _line(columns), _line(["---"] * len(columns))]
        lines += [_line([text.replace("|", "\\|") for text in cells(row)]) for row in group]
        lines.append("")
    return "\n".join(lines)


def csv_text(rows: Sequence[Row]) -> str:
    """All rows as one CSV with unrounded numbers; missing values are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = list(Row.__dataclass_fields__)
    writer.writerow(names)
    for row in rows:
        writer.writerow([csv_cell(getattr(row, name)) for name in names])
    return out.getvalue()


def csv_cell(value: str | float) -> str | float:
    """A value as it is safe in a CSV file; NaN is empty."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    # a spreadsheet would run a text that starts like a formula
    if isinstance(value, str) and value[:1] in set("=+-@\t\r"):
        return "'" + value
    return value


def _columns_and_cells(
    rows: Sequence[Row],
) -> tuple[tuple[str, ...], Callable[[Row], tuple[str, ...]]]:
    """A seed column appears only where there is more than one seed."""
    if len({row.seed for row in rows}) < 2:
        return COLUMNS, Row.texts
    return (*COLUMNS[:2], "seed", *COLUMNS[2:]), _texts_with_seed


def _texts_with_seed(row: Row) -> tuple[str, ...]:
    texts = row.texts()
    return (*texts[:2], str(row.seed), *texts[2:])


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _accuracy(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"
