"""What a study compares with what, and the answers that a comparison is made from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.statistics import SeedVariance, pooled_seed_variance
from reports.study_data import StudyData
from search_spaces.space import GRID
from search_spaces.trial_config import epoch_text


@dataclass(frozen=True)
class Comparison:
    """A value of an axis against the baseline of this axis, all else equal; the seed is no axis."""

    axis: str
    value: Any
    baseline: Any
    fixed: Mapping[str, Any]  # the other coordinates
    trials: tuple[str, ...]  # trial hashes, one a seed
    baseline_trials: tuple[str, ...]  # of more seeds, as many or fewer
    epochs: tuple[str, str] = ("best", "best")  # whose predictions count, for trials and baseline

    @property
    def models(self) -> tuple[str, str]:
        """The models of value and baseline."""
        return self.fixed.get("model", self.value), self.fixed.get("model", self.baseline)


def planned_comparisons(study: StudyData) -> list[Comparison]:
    """Every comparison that the study's baselines ask for, once, ordered by model.

    If the same trials serve both sides there is nothing to compare: at the reference batch size
    every scaling rule is the same trial.
    """
    points = study.points
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], Comparison] = {}
    for axis, baseline in study.plan.baselines.items():
        for point, trials in points.items():
            fixed = dict(zip(GRID, point, strict=True))
            value = fixed.pop(axis)
            others = points.get(tuple(fixed.get(name, baseline) for name in GRID), trials)
            if others != trials:
                comparison = Comparison(axis, value, baseline, fixed, trials, others)
                found.setdefault((trials, others), comparison)
    models = study.axis_values("model")
    return sorted(found.values(), key=lambda found: models.index(found.fixed.get("model", found.value)))


def epoch_comparisons(study: StudyData) -> list[Comparison]:
    """The last epoch against the best, for each tested trial whose best epoch is not its last."""
    found, examples = [], study.plan.dataset.sizes["train"]
    for trial_hash, trial in study.trials.items():
        config = trial.config
        if not trial.is_tested or trial.best_evaluation == config.evaluation_count:
            continue
        best, last = trial.best_epoch, config.position(config.evaluation_count, examples).epoch
        fixed: dict[str, Any] = {
            "model": config.model_name,
            "target_batch_size": config.target_batch_size,
            "scaling_rule": trial.rules,
        }
        if study.has_several_seeds:
            fixed["seed"] = config.seed
        names, trials = (f"{epoch_text(last)} (last)", f"{epoch_text(best)} (best)"), (trial_hash,)
        found.append(Comparison("epoch", *names, fixed, trials, trials, epochs=("last", "best")))
    return found


def answers(study: StudyData, trials: Iterable[str], which: str = "best") -> np.ndarray:
    """Whether each tested trial classified each test example correctly: bool, (seeds, examples).

    The order of examples is the same for all trials of a study; (0, 0) if no trial is tested.
    """
    found = [study.trials[name] for name in trials if name in study.trials]
    tested = [trial.correct(which).sort_index() for trial in found if trial.is_tested]
    return np.stack(tested) if tested else np.empty((0, 0), dtype=bool)


def cells_of(study: StudyData, models: Iterable[str]) -> list[tuple[str, ...]]:
    """For each cell of the models its trials, one a seed; cells with the same trials count once."""
    wanted, model = set(models), GRID.index("model")
    return list(dict.fromkeys(trials for point, trials in study.points.items() if point[model] in wanted))


def seed_variance(study: StudyData, models: Iterable[str]) -> SeedVariance:
    """The variance of test accuracy over seeds, pooled over all cells of the models."""
    return pooled_seed_variance(answers(study, trials) for trials in cells_of(study, models))


def diverged_count(study: StudyData, trials: Iterable[str]) -> int:
    """How many of the trials diverged."""
    return sum(study.trials[name].is_diverged for name in trials if name in study.trials)
