"""What a study compares with what, and the paired answers that the comparison is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from reports.study_data import StudyData, TrialData

COORDINATES = ("model", "target_batch_size", "scaling_rule", "seed")
_GRID = COORDINATES[:3]
_AXIS_WORDS = {"target_batch_size": "target batch size", "scaling_rule": "scaling rule"}


class UnpairedError(ValueError):
    """A comparison cannot be made; the message says why, and is the same for every such comparison."""


@dataclass(frozen=True)
class Comparison:
    """A value on an axis against the baseline on it, all else equal; seeds are pairs, not an axis."""

    axis: str
    value: Any
    baseline: Any
    fixed: Mapping[str, Any]  # the other coordinates
    trials: tuple[str, ...]  # trial hashes, one a seed
    baseline_trials: tuple[str, ...]  # in the same order of seeds

    @property
    def model(self) -> str:
        """The model compared; on the axis ``model``, the one that is not the baseline."""
        return str(self.fixed.get("model", self.value))

    @property
    def subject(self) -> str:
        """The fixed coordinates as a reader says them: ``bert-base, target batch size 256``."""
        return ", ".join(_coordinate(axis, value) for axis, value in self.fixed.items())

    @property
    def claimed(self) -> str:
        """The value with its axis: ``target batch size 1024``."""
        return f"{axis_words(self.axis)} {self.value}"


@dataclass(frozen=True)
class PairedAnswers:
    """Whether each test example was classified correctly on either side: bool, (seeds, examples)."""

    correct: np.ndarray
    baseline: np.ndarray


class AnswerReader:
    """The test answers of a study's trials; each is read once."""

    def __init__(self, study: StudyData) -> None:
        self._study = study
        self._correct = cache(self._read)

    def pair(
        self, comparison: Comparison, which: str = "best", baseline_which: str = "best"
    ) -> PairedAnswers:
        """Both sides' answers, example by example; raises UnpairedError where they cannot be paired."""
        sides = [
            [self._correct(trial_hash, epoch) for trial_hash in trials]
            for trials, epoch in (
                (comparison.trials, which),
                (comparison.baseline_trials, baseline_which),
            )
        ]
        rows = sides[0][0].index
        return PairedAnswers(*(_stack(side, rows) for side in sides))

    def _read(self, trial_hash: str, which: str) -> pd.Series:
        trial = self._study.trials.get(trial_hash)
        if trial is None or not trial.is_tested:
            raise UnpairedError("not all of their trials are tested")
        frame = trial.predictions[which]
        if frame.empty or any(_has_gaps(frame[name]) for name in ("label", "prediction")):
            raise UnpairedError("predictions are missing")
        if not frame["row_id"].is_unique:
            raise UnpairedError("a test example was predicted twice")
        return trial.correct(which)


def planned_comparisons(study: StudyData) -> list[Comparison]:
    """Every pair of trials that the study's baselines ask about, each once, by model.

    A pair that one trial serves on both sides is no comparison: at the reference batch size every
    scaling rule is the same trial. Raises ValueError for a baseline on an unknown axis.
    """
    points = _trials_by_point(study)
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], Comparison] = {}
    for axis, baseline in study.baselines.items():
        if axis not in _GRID:
            raise ValueError(f"{axis} is not an axis to compare on: those are {', '.join(_GRID)}")
        for point, trials in points.items():
            other = _moved(point, axis, baseline)
            if other == point or points.get(other, trials) == trials:
                continue
            fixed = {name: at for name, at in zip(_GRID, point, strict=True) if name != axis}
            value = point[_GRID.index(axis)]
            comparison = Comparison(axis, value, baseline, fixed, trials, points[other])
            found.setdefault((trials, points[other]), comparison)
    models = study.axis_values("model")
    return sorted(found.values(), key=lambda comparison: models.index(comparison.model))


def epoch_comparisons(study: StudyData) -> tuple[list[Comparison], int]:
    """The last epoch against the best epoch of each tested trial, and of how many trials they are one."""
    tested = [trial for trial in study.trials.values() if trial.is_tested]
    others = [trial for trial in tested if best_epoch(trial) != trial.config["epochs"]]
    return [_epoch_comparison(study, trial) for trial in others], len(tested) - len(others)


def best_epoch(trial: TrialData) -> int:
    """The epoch of the highest val_acc, from 1; 0 where the trial has not come to it."""
    return int(trial.metrics.get("best_epoch", 0))


def axis_words(axis: str) -> str:
    """An axis as a reader says it."""
    return _AXIS_WORDS.get(axis, axis)


def _epoch_comparison(study: StudyData, trial: TrialData) -> Comparison:
    fixed: dict[str, Any] = {
        "model": trial.model,
        "target_batch_size": trial.target_batch_size,
        "scaling_rule": trial.rules,
    }
    if len(study.axis_values("seed")) > 1:
        fixed["seed"] = trial.seed
    return Comparison(
        axis="epoch",
        value=f"{trial.config['epochs']} (last)",
        baseline=f"{best_epoch(trial)} (best)",
        fixed=fixed,
        trials=(trial.trial_hash,),
        baseline_trials=(trial.trial_hash,),
    )


def _trials_by_point(study: StudyData) -> dict[tuple[Any, ...], tuple[str, ...]]:
    """Point of the grid without its seed -> trial hashes in the order of the study's seeds."""
    seeds = study.axis_values("seed")
    by_seed: dict[tuple[Any, ...], dict[int, str]] = {}
    for cell in study.cells:
        point = tuple(getattr(cell, axis) for axis in _GRID)
        by_seed.setdefault(point, {})[cell.seed] = cell.trial_hash
    return {
        point: tuple(trials[seed] for seed in seeds if seed in trials) for point, trials in by_seed.items()
    }


def _moved(point: tuple[Any, ...], axis: str, value: Any) -> tuple[Any, ...]:
    return tuple(value if name == axis else at for name, at in zip(_GRID, point, strict=True))


def _stack(side: Sequence[pd.Series], rows: pd.Index) -> np.ndarray:
    return np.stack([_in_order(series, rows).to_numpy(dtype=bool) for series in side])


def _has_gaps(column: pd.Series) -> bool:
    return bool(pd.isna(column.to_numpy()).any())


def _in_order(answers: pd.Series, rows: pd.Index) -> pd.Series:
    if answers.index.equals(rows):
        return answers
    if len(answers) != len(rows) or not rows.isin(answers.index).all():
        raise UnpairedError("their trials were tested on different examples")
    return answers.loc[rows]


def _coordinate(axis: str, value: Any) -> str:
    return str(value) if axis in {"model", "scaling_rule"} else f"{axis_words(axis)} {value}"
