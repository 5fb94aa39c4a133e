"""A study as it lies in MLflow, read once: everything the report is made from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd
from pydantic import ValidationError

from errors import UserError
from search_spaces import TrialConfig
from search_spaces.plan import Cell, Plan, Point
from search_spaces.stages import DIVERGED
from tracking import TrialRun
from tracking.study_store import StudyRuns


@dataclass(frozen=True)
class TrialData:
    """One trial's results; ``metrics`` holds only those that the trial has already."""

    run_id: str
    name: str  # modernbert-base · 256 · sqrt
    config: TrialConfig
    scaling_rules: tuple[str, ...]  # of the cells it serves
    metrics: Mapping[str, float]
    evaluations: pd.DataFrame  # index: evaluation, from 1; a column per metric
    steps: pd.DataFrame  # index: optimizer step, from 1; a column per metric
    predictions: Mapping[str, pd.DataFrame]  # "best", "last" -> row_id, label, prediction, probability
    tags: Mapping[str, str] = field(default_factory=dict)  # hardware, versions, gpus_per_trial

    @property
    def is_tested(self) -> bool:
        return len(self.predictions) == 2

    @property
    def is_diverged(self) -> bool:
        """Whether the trial ended because its loss was no number."""
        return self.tags.get("outcome") == DIVERGED and not self.is_tested

    @property
    def best_evaluation(self) -> int:
        """The evaluation of the highest val_acc, from 1; 0 if it is not known yet."""
        return int(self.metrics.get("best_evaluation", 0))

    @property
    def best_epoch(self) -> float:
        """The epochs trained at the best evaluation; 0 if it is not known yet."""
        return self.metrics.get("best_epoch", 0.0)

    def by_epoch(self, name: str) -> pd.Series:
        """A metric of the evaluations over the epochs trained, without those that lack it."""
        if name not in self.evaluations:
            return pd.Series(dtype=float)
        return self.evaluations.set_index("epoch")[name].dropna()

    @property
    def rules(self) -> str:
        """The scaling rules that the trial serves: ``fixed=sqrt``."""
        return "=".join(self.scaling_rules)

    @property
    def label(self) -> str:
        """``256 · sqrt``: the trial's name without the model."""
        return f"{self.config.target_batch_size} · {self.rules}"

    @property
    def physical_batch_size(self) -> int:
        """The size at the end: less than configured if memory ran out, which changes no result."""
        logged = self.evaluations.get("physical_batch_size", pd.Series(dtype=float)).dropna()
        return int(self.config.physical_batch_size if logged.empty else logged.iloc[-1])

    def correct(self, which: str = "best") -> pd.Series:
        """Whether each test example was classified correctly: bool, indexed by row_id."""
        frame = self.predictions[which]
        is_correct = frame["label"].to_numpy() == frame["prediction"].to_numpy()
        return pd.Series(is_correct, index=frame["row_id"])


class Outside(NamedTuple):
    """The finished trials of a study that its newest plan leaves out."""

    trials: int = 0
    reports: Sequence[str] = ()  # parent runs with a report of some of them, the newest first


_NONE_OUTSIDE = Outside()


@dataclass(frozen=True)
class StudyData:
    """A study: its plan and the results of its trials so far."""

    plan: Plan
    trials: Mapping[str, TrialData]  # trial hash -> trial; only those that have started
    reported: Mapping[Point, frozenset[int]] = field(
        default_factory=dict
    )  # cells of earlier reports -> seeds
    outside: Outside = _NONE_OUTSIDE

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row per cell in reading order: the coordinates AXES, learning_rate, trial_hash."""
        names = ("target_batch_size", "scaling_rule", "seed", "learning_rate")
        found = {"model": [cell.config.model_name for cell in self.plan.cells]}
        found |= {name: [getattr(cell.config, name) for cell in self.plan.cells] for name in names}
        return pd.DataFrame(found | {"trial_hash": [cell.trial_hash for cell in self.plan.cells]})

    @cached_property
    def points(self) -> dict[Point, tuple[str, ...]]:
        """Each cell -> its trials, one a seed, in reading order."""
        found: dict[Point, tuple[str, ...]] = {}
        for cell in self.plan.cells:
            found[cell.point] = (*found.get(cell.point, ()), cell.trial_hash)
        return found

    @cached_property
    def diverged(self) -> frozenset[str]:
        """All trials of cells in which a training diverged: the others are a biased sample."""
        ended = {name for name, trial in self.trials.items() if trial.is_diverged}
        return frozenset(name for names in self.points.values() if ended & set(names) for name in names)

    @property
    def has_several_seeds(self) -> bool:
        return len(self.axis_values("seed")) > 1

    def axis_values(self, axis: str) -> list[Any]:
        return list(dict.fromkeys(self.cells[axis]))

    def trials_of(self, model: str) -> list[TrialData]:
        return [trial for trial in self.trials.values() if trial.config.model_name == model]

    def has_learned(self, trial: TrialData) -> bool:
        """Whether a tested trial does more than name the commonest class.

        It has not learned if all test examples get one class, or the best val_acc is at most two standard
        errors above the share of the commonest.
        """
        tested = trial.predictions["best"]
        commonest = tested["label"].value_counts(normalize=True).max()  # the splits are stratified
        if commonest == 1:
            return True  # nothing is to be learned
        error = math.sqrt(commonest * (1 - commonest) / self.plan.dataset.sizes["val"])
        above = trial.metrics.get("best_val_acc", 0.0) > commonest + 2 * error
        return bool(above and tested["prediction"].nunique() > 1)

    def of_trials(self, value: Any) -> pd.Series:
        """``value(trial)`` for the trial of each cell, NaN if it has not started."""
        found = {trial_hash: value(trial) for trial_hash, trial in self.trials.items()}
        return self.cells["trial_hash"].map(found)

    def metric(self, name: str) -> pd.Series:
        """A result of each cell's trial, NaN if there is none yet."""
        return self.of_trials(lambda trial: trial.metrics.get(name, math.nan)).astype(float)


def read_study(runs: StudyRuns) -> StudyData:
    """The study that the newest invocation planned; UserError for what this program does not store."""
    plan = _read_plan(runs.invocations[0].plan())
    cells: dict[str, list[TrialConfig]] = {}
    for cell in plan.cells:
        cells.setdefault(cell.trial_hash, []).append(cell.config)
    trials = {
        trial_hash: _trial(configs, runs.trials[trial_hash])
        for trial_hash, configs in cells.items()
        if trial_hash in runs.trials
    }
    _check_results(trials.values(), len(plan.dataset.label_names))
    reports = {run.run_id: _read_plan(run.plan()) for run in runs.invocations[1:] if run.was_reported}
    reported = seeds_by_point(cell for earlier in reports.values() for cell in earlier.cells)
    return StudyData(plan, trials, reported, _outside(plan, runs, reports))


def _outside(plan: Plan, runs: StudyRuns, reports: Mapping[str, Plan]) -> Outside:
    """``reports``: the parent runs that keep a report, the newest first -> their plans."""
    left = {h for h, run in runs.trials.items() if run.is_tested} - plan.trials.keys()
    count, keepers = len(left), []
    for run_id, earlier in reports.items():
        if left & earlier.trials.keys():
            keepers.append(run_id)
            left -= earlier.trials.keys()
    return Outside(count, keepers)


def seeds_by_point(cells: Iterable[Cell]) -> dict[Point, frozenset[int]]:
    """The seeds under which each cell is planned."""
    found: dict[Point, frozenset[int]] = {}
    for cell in cells:
        found[cell.point] = found.get(cell.point, frozenset()) | {cell.config.seed}
    return found


def _read_plan(stored: Any) -> Plan:
    try:
        return Plan.model_validate(stored)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ", ".join(map(str, first["loc"])) or "type"
        raise UserError(
            "the study's plan in MLflow is not one that this program stores: "
            f"see its {where} ({first['msg']})"
        ) from error


def _trial(cells: Sequence[TrialConfig], run: TrialRun) -> TrialData:
    return TrialData(
        run_id=run.run_id,
        name=run.name,
        config=cells[0],
        scaling_rules=tuple(cell.scaling_rule for cell in cells),
        metrics=run.metrics,
        evaluations=run.evaluations(),
        steps=run.steps(),
        predictions={which: run.predictions(which) for which in ("best", "last")} if run.is_tested else {},
        tags=run.tags,
    )


def _check_results(trials: Iterable[TrialData], classes: int) -> None:
    """Raise UserError for results that no trial can have: another program stored them."""
    rows = set()
    for trial in trials:
        for name, value in trial.metrics.items():
            if name.endswith("_acc") and not 0 <= value <= 1:
                raise UserError(f"{name} of {trial.name} in MLflow is {value}, which is no accuracy")
        if not 0 < trial.metrics.get("best_epoch", 1) < math.inf:
            raise UserError(f"best_epoch of {trial.name} in MLflow is no epoch")
        if not 1 <= trial.metrics.get("best_evaluation", 1) < math.inf:
            raise UserError(f"best_evaluation of {trial.name} in MLflow is no evaluation")
        for frame in trial.predictions.values():
            if not frame[["label", "prediction"]].isin(range(classes)).all(axis=None):
                raise UserError(f"the predictions of {trial.name} in MLflow name unknown classes")
            rows.add(frozenset(frame["row_id"]))
    if len(rows) > 1:
        raise UserError("the trials' predictions in MLflow are not about the same test examples")
