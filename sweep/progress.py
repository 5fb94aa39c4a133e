"""What the user watches: one live table in a terminal, one plain line per epoch elsewhere."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from errors import printable
from search_spaces import TrialConfig, trial_name
from sweep.console import console

_COLUMNS = ("epoch", "train loss", "train acc", "val loss", "val acc", "best", "examples/s", "ETA")


@dataclass(eq=False)
class _Row:
    name: str
    epochs: int
    state: str = "waiting"
    report: dict[str, Any] = field(default_factory=dict)


class Progress:
    """A context manager that shows the trials of one sweep; its methods may be called at any time."""

    def __init__(self, trials: Mapping[str, Sequence[TrialConfig]], concurrent: int) -> None:
        seeds = len({cells[0].seed for cells in trials.values()})
        self._rows = {
            trial_hash: _Row(trial_name(cells, seeds), cells[0].epochs)
            for trial_hash, cells in trials.items()
        }
        self._concurrent = concurrent
        self._lock = Lock()
        self._started = time.monotonic()
        # rich asks for the table when it draws, four times a second
        self._live = Live(
            get_renderable=self._table, console=console, refresh_per_second=4, transient=False
        )

    def __enter__(self) -> "Progress":
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if console.is_terminal:
            self._live.stop()

    def started(self, trial_hash: str) -> None:
        """A trial begins, or goes on."""
        self._update(trial_hash, state="training")

    def epoch(self, trial_hash: str, report: dict[str, Any]) -> None:
        """A trial finished an epoch."""
        self._update(trial_hash, report=report)
        if not console.is_terminal:
            console.print(printable(self._line(trial_hash)), markup=False)

    def finished(self, trial_hash: str) -> None:
        """A trial finished its last epoch."""
        self._update(trial_hash, state="done")

    def failed(self, trial_hash: str, reason: str) -> None:
        """A trial failed."""
        self._update(trial_hash, state="failed")
        line = printable(f"{self._rows[trial_hash].name} failed: {reason}")
        console.print(line, style="red", markup=False)

    def say(self, trial_hash: str, text: str) -> None:
        """Something happened to a trial that does not stop it."""
        console.print(f"{self._rows[trial_hash].name}: {text}", style="yellow", markup=False)

    def _update(self, trial_hash: str, **changes: Any) -> None:
        with self._lock:
            for name, value in changes.items():
                setattr(self._rows[trial_hash], name, value)

    def _line(self, trial_hash: str) -> str:
        row = self._rows[trial_hash]
        r = row.report
        return (
            f"{row.name}  epoch {r['epoch']}/{row.epochs}  "
            f"train_loss {r['train_loss']:.4f}  train_acc {r['train_acc']:.4f}  "
            f"val_loss {r['val_loss']:.4f}  val_acc {r['val_acc']:.4f}  "
            f"best {r['best_val_acc']:.4f} (epoch {r['best_epoch']})  "
            f"{r['examples_per_second']:.1f} examples/s  ETA {self._study_eta()}"
        )

    def _table(self) -> Table:
        with self._lock:
            done = sum(row.state in {"done", "failed"} for row in self._rows.values())
            table = Table(
                title=f"{done}/{len(self._rows)} trials · ETA {self._study_eta()}",
                title_justify="left",
            )
            table.add_column("trial", no_wrap=True)
            for column in _COLUMNS:
                table.add_column(column, justify="right", no_wrap=True)
            for row in self._visible_rows():
                table.add_row(Text(printable(row.name)), *_cells(row), style=_STYLES[row.state])
        return table

    def _visible_rows(self) -> list[_Row]:
        """All rows where the terminal is tall enough, else those being trained and their neighbours."""
        rows = list(self._rows.values())
        room = max(4, console.size.height - 8)
        if len(rows) <= room:
            return rows
        urgency = {"training": 0, "failed": 1, "done": 2, "waiting": 3}
        chosen = sorted(rows, key=lambda row: urgency[row.state])[:room]
        return [row for row in rows if row in chosen]

    def _study_eta(self) -> str:
        seconds = [r.report["epoch_seconds"] for r in self._rows.values() if r.report]
        if not seconds:
            return "…"
        left = sum(
            row.epochs - row.report.get("epoch", 0)
            for row in self._rows.values()
            if row.state in {"waiting", "training"}
        )
        return _duration(left * sum(seconds) / len(seconds) / self._concurrent)


_STYLES = {"waiting": "dim", "training": "bold", "done": "", "failed": "red"}


def _cells(row: _Row) -> list[str]:
    if not row.report:
        return [row.state] + [""] * (len(_COLUMNS) - 1)
    r = row.report
    left = row.epochs - r["epoch"]
    return [
        f"{r['epoch']}/{row.epochs}",
        f"{r['train_loss']:.4f}",
        f"{r['train_acc']:.4f}",
        f"{r['val_loss']:.4f}",
        f"{r['val_acc']:.4f}",
        f"{r['best_val_acc']:.4f} @{r['best_epoch']}",
        f"{r['examples_per_second']:.1f}",
        _duration(left * r["epoch_seconds"]) if row.state == "training" else row.state,
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
