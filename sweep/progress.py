"""What the user watches: one live table in a terminal, one plain line per evaluation elsewhere."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.progress import Progress as RichProgress
from rich.progress import Task, TaskID, TextColumn
from rich.table import Column

from search_spaces.trial_config import epoch_text
from sweep.terminal import console, say

_BESIDE_ROWS = 6  # lines of the terminal that are not for trials
_URGENCY = {"training": 0, "failed": 1, "done": 2, "waiting": 3}


class Progress(RichProgress):
    """A context manager that shows the trials of one sweep; its methods may be called from any thread.

    ``metrics`` of a report get a column each. ``expected``: how many trials will be added.
    """

    def __init__(self, metrics: Sequence[str], concurrent: int, expected: int) -> None:
        self._metrics = metrics
        self._concurrent = concurrent
        self._expected = expected
        columns = ("epoch", *metrics, "best", "examples/s", "ETA")
        super().__init__(
            TextColumn("{task.description}", markup=False, table_column=Column("trial", no_wrap=True)),
            *map(_column, columns),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )
        waiting = {"state": "waiting", "ETA": "waiting", "seconds": None}
        self._blank: dict[str, Any] = dict.fromkeys(columns, "") | waiting
        self._trials: dict[str, TaskID] = {}

    def add_trial(self, trial_hash: str, name: str, epochs: float, evaluations: int) -> None:
        """A trial that is to be trained gets a row."""
        shown = self._blank | {"epochs_between": epochs / evaluations}
        self._trials[trial_hash] = self.add_task(name, total=epochs, **shown)

    def trial_started(self, trial_hash: str) -> None:
        """A trial begins, or is resumed."""
        self._set(trial_hash, "training")

    def evaluated(self, trial_hash: str, report: dict[str, Any]) -> None:
        """A trial was evaluated; the report also says what is best so far."""
        values: dict[str, Any] = {name: f"{report[name]:.4f}" for name in self._metrics}
        task = self._task(trial_hash)
        epoch, total = report["epoch"], task.total or 0
        number, best_epoch = f"{epoch_text(epoch)}/{epoch_text(total)}", epoch_text(report["best_epoch"])
        seconds = report["epoch_seconds"] / task.fields["epochs_between"]
        best, speed = f"{report['best_val_acc']:.4f}", f"{report['examples_per_second']:.1f}"
        self.update(
            task.id,
            completed=epoch,
            epoch=number,
            best=f"{best} @{best_epoch}",
            seconds=seconds,
            ETA=_duration((total - epoch) * seconds),
            **values | {"examples/s": speed},
        )
        if not console.is_terminal:
            shown = "  ".join(f"{name} {value}" for name, value in values.items())
            line = f"{task.description}  epoch {number}  {shown}  best {best} (epoch {best_epoch})"
            say(f"{line}  {speed} examples/s  ETA {self._eta()}")

    def trial_finished(self, trial_hash: str) -> None:
        """A trial is trained, and its results are in MLflow."""
        self._set(trial_hash, "done")

    def trial_failed(self, trial_hash: str, reason: str) -> None:
        """A trial has failed."""
        self._set(trial_hash, "failed")
        say(f"{self._task(trial_hash).description} failed: {reason}", "red")

    def say(self, trial_hash: str, text: str) -> None:
        """Something happened to a trial that does not stop it."""
        say(f"{self._task(trial_hash).description}: {text}", "yellow")

    def get_renderables(self) -> Iterator[RenderableType]:
        """All rows if the terminal is tall enough, else the most urgent: trials in training first."""
        tasks = self.tasks
        rows = max(4, console.size.height - _BESIDE_ROWS)
        shown = sorted(tasks, key=lambda task: _URGENCY[task.fields["state"]])[:rows]
        table = self.make_tasks_table(task for task in tasks if task in shown)
        done = sum(task.fields["state"] in {"done", "failed"} for task in tasks)
        table.title, table.title_justify = f"{done}/{self._expected} trials · ETA {self._eta()}", "left"
        table.show_header = True
        yield table

    def _task(self, trial_hash: str) -> Task:
        return next(task for task in self.tasks if task.id == self._trials[trial_hash])

    def _set(self, trial_hash: str, state: str) -> None:
        self.update(self._trials[trial_hash], state=state, ETA=state)

    def _eta(self) -> str:
        """The time that all trials still take, from the duration of each trial's newest epoch."""
        seconds = [task.fields["seconds"] for task in self.tasks if task.fields["seconds"] is not None]
        if not seconds:
            return "…"
        going = [task for task in self.tasks if task.fields["state"] in {"waiting", "training"}]
        epochs = sum((task.total or 0) - task.completed for task in going)
        epochs += (self._expected - len(self.tasks)) * (self.tasks[-1].total or 0)
        return _duration(epochs * sum(seconds) / len(seconds) / self._concurrent)


def _column(name: str) -> TextColumn:
    head = Column(name.replace("_", " "), justify="right", no_wrap=True)
    return TextColumn(f"{{task.fields[{name}]}}", markup=False, table_column=head)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
