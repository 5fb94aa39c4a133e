"""What earlier studies in MLflow show: how far trainings vary by chance, and how long they take."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from errors import StoppedError, UserError
from reports.comparisons import answers, planned_comparisons, seed_variance
from reports.forecast import Chance, Durations, Known, trials_by_model
from reports.study_data import StudyData, read_study
from search_spaces import TrialConfig
from search_spaces.plan import Plan
from search_spaces.trial_config import model_name
from tracking import EarlierTrial, Say, StudyStore, earlier_trials, nobody

_SAME_SPEED = ("precision", "max_length")  # trials that differ in these cannot predict each other's time


class Earlier:
    """The studies in a tracking store except ``leave_out``; none if the store is missing or away."""

    def __init__(self, tracking_uri: str, leave_out: str = "", say: Say = nobody) -> None:
        self.tracking_uri = tracking_uri
        self.trials = [each for each in earlier_trials(tracking_uri, say) if each.study != leave_out]

    def chance(self, plan: Plan) -> Chance:
        """The chance in the newest study of the same reviews and splits with tested trials to compare."""
        digest = plan.shared.dataset_digest
        same = [each.study for each in self.trials if each.params.get("dataset_digest") == digest]
        for name in dict.fromkeys(same):
            with contextlib.suppress(UserError, StoppedError):  # skip a study that cannot be read
                store = StudyStore(self.tracking_uri, name, patience=0)
                if (chance := observed_chance(read_study(store.read_runs()))).disagreement:
                    return chance
        return Chance()

    def durations(self, plan: Plan, ran_as_here: Callable[[Mapping[str, str]], bool]) -> Durations:
        """The durations by the newest study that trained the same model on hardware as it is here.

        A trial takes the seconds per example measured at its target batch size, or at the next smaller one.
        If all measured batch sizes are larger, the forecast estimates the trial instead. ``ran_as_here``
        judges the hardware of an earlier trial by its tags.
        """
        alike = [each for each in self.trials if ran_as_here(each.run.tags)]
        seconds: dict[str, float] = {}
        studies: dict[str, None] = {}
        for configs in trials_by_model(plan).values():
            same = [each for each in alike if _is_as_fast(each, next(iter(configs.values())))]
            rates = _rates([each for each in same if each.study == same[0].study])
            for trial_hash, config in configs.items():
                # a smaller batch takes longer per example; the rates do not say how much longer
                if measured := [batch for batch in rates if batch <= config.target_batch_size]:
                    end = config.position(config.evaluation_count, plan.dataset.sizes["train"])
                    seconds[trial_hash] = rates[max(measured)] * end.examples
                    studies[same[0].study] = None
        return Durations(seconds, f"from {', '.join(f'study {name}' for name in studies)}")


def observed_chance(study: StudyData) -> Chance:
    """How far the trainings of a study varied, from its test predictions; None for what is unknown.

    The disagreement is a mean over the compared cells, the deviation is pooled over all cells. If no
    trainings disagree, they have learned nothing, and the disagreement is unknown.
    """
    source = f"from study {study.plan.study}"
    sides = [
        (answers(study, each.trials), answers(study, each.baseline_trials))
        for each in planned_comparisons(study)
    ]
    shares = [_disagreement(*both) for both in sides if all(map(len, both))]
    pooled = seed_variance(study, study.axis_values("model"))
    return Chance(
        Known(math.sqrt(pooled.variance), source) if pooled.freedom else None,
        Known(float(np.mean(shares)), source) if shares and any(shares) else None,
    )


def _disagreement(correct: np.ndarray, baseline: np.ndarray) -> float:
    """The share of examples on which two trainings differ, a mean over pairs; (seeds, examples) each."""
    right, other = correct.mean(axis=0), baseline.mean(axis=0)
    return float((right * (1 - other) + other * (1 - right)).mean())


def _is_as_fast(trial: EarlierTrial, config: TrialConfig) -> bool:
    return model_name(trial.params.get("model", "")) == config.model_name and all(
        trial.params.get(name) == str(getattr(config, name)) for name in _SAME_SPEED
    )


def _rates(trials: Sequence[EarlierTrial]) -> dict[int, float]:
    """Measured target batch size -> seconds of training and validation per example."""
    spent: dict[int, list[tuple[float, float]]] = {}
    with contextlib.suppress(StoppedError):  # the store is away: use what it has given so far
        for trial in trials:
            evaluations = trial.run.evaluations()
            if {"epoch_seconds", "examples"} <= set(evaluations):
                both = float(evaluations["epoch_seconds"].sum()), float(evaluations["examples"].max())
                if both[1] > 0:
                    spent.setdefault(int(trial.params["target_batch_size"]), []).append(both)
    return {batch: sum(s for s, _ in own) / sum(e for _, e in own) for batch, own in spent.items()}
