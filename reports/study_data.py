"""A study as it lies in MLflow, read once: everything the report is made from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from errors import UserError, printable
from reports.stored_plan import checked_plan
from tracking import StudyStore, TrialRun


@dataclass(frozen=True)
class Cell:
    """One point of the grid, and the trial that serves it."""

    model: str
    target_batch_size: int
    scaling_rule: str
    seed: int
    learning_rate: float
    trial_hash: str


@dataclass(frozen=True)
class TrialData:
    """One trial's results. Metrics that it has not come to are absent from ``metrics``."""

    trial_hash: str
    run_id: str
    name: str  # modernbert-base · 256 · sqrt
    config: Mapping[str, Any]  # the TrialConfig's fields
    model: str
    target_batch_size: int
    learning_rate: float
    seed: int
    scaling_rules: tuple[str, ...]  # of the cells it serves
    metrics: Mapping[str, float]
    epochs: pd.DataFrame  # index: epoch, from 1; columns: tracking's EPOCH_, NOISE_ and MEMORY_METRICS
    steps: pd.DataFrame  # index: optimizer step; columns: tracking's STEP_METRICS
    predictions: Mapping[str, pd.DataFrame]  # "best", "last" -> row_id, label, prediction, probability
    tags: Mapping[str, str] = field(default_factory=dict)  # hardware, versions, gpus_per_trial

    @property
    def is_tested(self) -> bool:
        """Whether it has come to its end."""
        return len(self.predictions) == 2

    @property
    def rules(self) -> str:
        """The scaling rules that it serves: ``fixed=sqrt``."""
        return "=".join(self.scaling_rules)

    @property
    def label(self) -> str:
        """``256 · sqrt``: its name where the model is named already."""
        return f"{self.target_batch_size} · {self.rules}"

    @property
    def physical_batch_size(self) -> int:
        """What it ended with: less than configured where memory ran out, which changes no result."""
        logged = self.epochs.get("physical_batch_size", pd.Series(dtype=float)).dropna()
        return int(self.config["physical_batch_size"] if logged.empty else logged.iloc[-1])

    def correct(self, which: str = "best") -> pd.Series:
        """Whether each test example was classified correctly: bool, indexed by row_id."""
        frame = self.predictions[which]
        return (frame["label"] == frame["prediction"]).set_axis(frame["row_id"])


@dataclass(frozen=True)
class StudyData:
    """A study: its plan, its cells in reading order, and what its trials have come to."""

    plan: Mapping[str, Any]
    cells: Sequence[Cell]
    trials: Mapping[str, TrialData]  # trial hash -> trial; without those that have not started

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.plan["study"])

    @property
    def train_examples(self) -> int:
        """Examples in the training split."""
        return int(self.plan["dataset"]["sizes"]["train"])

    @cached_property
    def baselines(self) -> dict[str, Any]:
        """The question: axis -> the value on it that the others are compared with."""
        return dict(self.plan.get("baselines", {}))

    def axis_values(self, axis: str) -> list[Any]:
        """The values on ``model``, ``target_batch_size``, ``scaling_rule`` or ``seed``, as planned."""
        return list(dict.fromkeys(getattr(cell, axis) for cell in self.cells))

    def trials_of(self, model: str) -> list[TrialData]:
        """The trials of a model that have started."""
        return [trial for trial in self.trials.values() if trial.model == model]

    def steps_per_epoch(self, trial: TrialData) -> int:
        """Optimizer steps of an epoch, the short last window included."""
        return math.ceil(self.train_examples / trial.target_batch_size)

    def trial(self, cell: Cell) -> TrialData | None:
        """The trial of a cell, where it has started."""
        return self.trials.get(cell.trial_hash)


def read_study(store: StudyStore, plan: Mapping[str, Any]) -> StudyData:
    """Read the trials that ``plan`` names; a UserError for what this program would not have stored."""
    plan = checked_plan(plan)
    cells = [Cell(**{key: cell[key] for key in Cell.__dataclass_fields__}) for cell in plan["cells"]]
    configs = {cell["trial_hash"]: cell["config"] for cell in plan["cells"]}
    runs = store.trial_runs()
    trials = {
        trial_hash: _trial([cell for cell in cells if cell.trial_hash == trial_hash], config, run)
        for trial_hash, config in configs.items()
        if (run := runs.get(trial_hash))
    }
    check_results(trials.values(), len(plan["dataset"]["label_names"]))
    return StudyData(plan, cells, trials)


def check_results(trials: Iterable[TrialData], classes: int) -> None:
    """Raise UserError for results that no trial of this program has: somebody else stored them."""
    rows: set[tuple[int, ...]] = set()
    for trial in trials:
        for name, value in trial.metrics.items():
            if name.endswith("_acc") and not 0 <= value <= 1:
                raise UserError(f"{name} of {trial.name} in MLflow is {value}, which is no accuracy")
            if name == "best_epoch" and not 1 <= value < math.inf:
                raise UserError(f"best_epoch of {trial.name} in MLflow is {value}, which is no epoch")
        for which, frame in trial.predictions.items():
            if not frame[["label", "prediction"]].isin(range(classes)).all(axis=None):
                raise UserError(f"{trial.name}, {which} epoch: predictions in MLflow name unknown classes")
            rows.add(tuple(sorted(frame["row_id"])))
    if len(rows) > 1:
        raise UserError("the trials' predictions in MLflow are not about the same test examples")


def _trial(cells: Sequence[Cell], config: Mapping[str, Any], run: TrialRun) -> TrialData:
    first = cells[0]
    return TrialData(
        trial_hash=first.trial_hash,
        run_id=run.run_id,
        name=printable(run.name),
        config=config,
        model=first.model,
        target_batch_size=first.target_batch_size,
        learning_rate=first.learning_rate,
        seed=first.seed,
        scaling_rules=tuple(cell.scaling_rule for cell in cells),
        metrics=run.metrics,
        epochs=run.epochs(),
        steps=run.steps(),
        predictions={which: run.predictions(which) for which in ("best", "last")} if run.is_tested else {},
        tags=run.tags,
    )
