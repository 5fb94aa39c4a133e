"""The tables of results: one per scaling rule, a row per model and target batch size."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from reports.content import TableContent
from reports.csv_files import csv_text
from reports.evidence.statistics import Interval, wilson_interval
from reports.prose import accuracy_text, learning_rate_text
from reports.study_data import Cell, StudyData

_NOTE = "In brackets: Wilson 95 % intervals."


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


def result_rows(study: StudyData) -> list[Row]:
    """A row per cell, in the plan's order."""
    return [_row(study, cell) for cell in study.cells]


def _row(study: StudyData, cell: Cell) -> Row:
    trial = study.trial(cell)
    metrics = trial.metrics if trial else {}
    return Row(
        scaling_rule=cell.scaling_rule,
        model=cell.model,
        target_batch_size=cell.target_batch_size,
        seed=cell.seed,
        learning_rate=cell.learning_rate,
        best_val_acc=metrics.get("best_val_acc", math.nan),
        best_epoch=metrics.get("best_epoch", math.nan),
        test_acc=metrics.get("test_acc", math.nan),
        last_test_acc=metrics.get("last_test_acc", math.nan),
        run_id=trial.run_id if trial else "",
        trial_hash=cell.trial_hash,
    )


def result_tables(
    rows: Sequence[Row], sizes: Mapping[str, int], compact: bool = False
) -> list[TableContent]:
    """A table per scaling rule; ``sizes`` are the examples in the ``val`` and ``test`` splits.

    ``compact`` is for a terminal's width: only ``test_acc`` keeps its interval.
    """
    columns = _columns(sizes, compact)
    if len({row.seed for row in rows}) < 2:
        del columns["seed"]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.scaling_rule, []).append(row)
    return [
        TableContent(
            f"scaling rule: {rule}",
            list(columns),
            [[text(row) for text in columns.values()] for row in group],
            _NOTE,
        )
        for rule, group in groups.items()
    ]


def _columns(sizes: Mapping[str, int], compact: bool) -> dict[str, Callable[[Row], str]]:
    def plain(value: float, split: str) -> str:
        return accuracy_text(value) if compact else with_interval(value, split)

    def with_interval(value: float, split: str) -> str:
        low, high = _interval(value, sizes[split])
        return accuracy_text(value) + ("" if math.isnan(value) else f" [{low:.3f}, {high:.3f}]")

    return {
        "model": lambda row: row.model,
        "target batch size": lambda row: str(row.target_batch_size),
        "seed": lambda row: str(row.seed),
        "learning rate": lambda row: learning_rate_text(row.learning_rate),
        "val_acc@best epoch": lambda row: plain(row.best_val_acc, "val") + _epoch(row.best_epoch),
        "test_acc": lambda row: with_interval(row.test_acc, "test"),
        "last-epoch test_acc": lambda row: plain(row.last_test_acc, "test"),
    }


def results_csv(rows: Sequence[Row], sizes: Mapping[str, int]) -> str:
    """All rows as one CSV, the ends of the test accuracies' Wilson intervals beside them."""
    names = list(Row.__dataclass_fields__)
    ends = [f"{name}_{end}" for name in ("test_acc", "last_test_acc") for end in ("low", "high")]
    lines = [
        [
            *(getattr(row, name) for name in names),
            *_interval(row.test_acc, sizes["test"]),
            *_interval(row.last_test_acc, sizes["test"]),
        ]
        for row in rows
    ]
    return csv_text([*names, *ends], lines)


def _interval(accuracy: float, examples: int) -> Interval:
    if math.isnan(accuracy):
        return Interval(math.nan, math.nan)
    return wilson_interval(round(accuracy * examples), examples)


def _epoch(epoch: float) -> str:
    return "" if math.isnan(epoch) else f" (epoch {epoch:.0f})"
