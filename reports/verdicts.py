"""Verdicts: which differences of a study are real, as far as its test examples and seeds can tell.

With one seed a verdict is about the trainings at hand: another training of the same cell may turn out
otherwise, and one seed says nothing about it. With several seeds one test and one interval cover both
chances, another seed and other test examples (``statistics.difference_over_seeds``).

A verdict is a row of a table, ``Family.verdicts``:

- ``model``, ``target_batch_size``, ``scaling_rule``, ``seed``: the coordinates that both sides share,
  empty where they do not; ``axis``, ``value``, ``baseline``: where they differ
- ``outcome``: ``better``, ``worse`` or ``cannot be told apart``
- ``accuracy``, ``baseline_accuracy``: fractions of 1, means over seeds, with Wilson intervals
- ``difference_points``: in hundredths of accuracy, positive where the value is better than the baseline,
  with its interval at the level 1 − ALPHA / comparisons: all intervals of a family hold at once
- ``gained``, ``lost``: test examples that the value got right under more, or fewer, seeds
- ``p``: exact McNemar with one seed, the t test over seeds and examples with several; ``p_holm``: adjusted
- ``smallest_detectable_points``: at the level of Holm's first step; NaN: none, however large
- ``seeds``, the standard deviations of both accuracies over them, and ``standard_error_points`` of the
  difference: NaN with one seed
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.comparisons import Comparison, epoch_comparisons, paired_answers, planned_comparisons
from reports.content import rows
from reports.prose import axis_words, counted, listed, number, p_text, signed
from reports.statistics import (
    Interval,
    SeedVariance,
    difference_over_seeds,
    holm,
    paired_test,
    pooled_seed_variance,
    score_differences,
    score_interval,
    smallest_detectable_difference,
    wilson_interval,
)
from reports.study_data import StudyData
from search_spaces.space import AXES

ALPHA = 0.05  # the chance of any false claim in a family of comparisons
BETTER, WORSE, NOT_APART = "better", "worse", "cannot be told apart"
_CLAIMS = 6  # of a headline; where there are more, the table is easier to read


@dataclass(frozen=True)
class Family:
    """Verdicts that are adjusted together; ``notes`` say what they leave out."""

    title: str
    verdicts: pd.DataFrame
    seeds: int
    notes: Sequence[str]

    def sentences(self) -> list[str]:
        return [_sentence(verdict) for verdict in rows(self.verdicts)]

    def scope(self) -> str:
        """What a verdict of this family is about, and what it leaves out."""
        about = (
            "There is one seed, so this is about these trainings only: "
            "one seed says nothing about another training."
        )
        if self.seeds > 1:
            about = (
                f"There are {self.seeds} seeds: a difference is claimed only where "
                "it is larger than the test examples and the seeds together explain."
            )
        return " ".join([about, *self.notes])


def compare_cells(study: StudyData) -> Family:
    """Each value against the baseline on its axis, all else equal, from the best epochs' predictions."""
    seeds = len(study.axis_values("seed"))
    notes = [
        f"The baseline {axis_words(axis)} {baseline} is not in the grid: nothing is compared with it."
        for axis, baseline in study.plan.baselines.items()
        if baseline not in study.axis_values(axis)
    ]
    verdicts, left_out = _judge(study, planned_comparisons(study))
    return Family("Which differences are real", verdicts, seeds, notes + left_out)


def compare_epochs(study: StudyData) -> Family:
    """The last epoch against the best epoch of each trial; always about the one training."""
    comparisons, tested = epoch_comparisons(study), sum(trial.is_tested for trial in study.trials.values())
    verdicts, notes = _judge(study, comparisons)
    if same := tested - len(comparisons):
        verb = "is best at its" if same == 1 else "are best at their"
        trials = counted(tested, "tested trial")
        notes = [f"{same} of {trials} {verb} last epoch: nothing to compare there.", *notes]
    return Family("Last epoch against best epoch", verdicts, 1, notes)


def _judge(study: StudyData, comparisons: Sequence[Comparison]) -> tuple[pd.DataFrame, list[str]]:
    """The verdicts, and a note where comparisons lack a tested trial."""
    paired = [(each, answers) for each in comparisons if (answers := paired_answers(study, each))]
    alpha, pools = ALPHA / max(1, len(paired)), _seed_variances(study, paired)
    verdicts = pd.DataFrame(
        _measured(each, *answers, pools[_models(study, each)], alpha) for each, answers in paired
    )
    if paired:
        verdicts["p_holm"] = holm(verdicts["p"].to_numpy())
        difference = verdicts["difference_points"]
        apart = (verdicts["p_holm"] <= ALPHA) & (difference != 0)
        verdicts["outcome"] = np.where(apart, np.where(difference > 0, BETTER, WORSE), NOT_APART)
        _agree_with_outcomes(verdicts)
    left_out = counted(len(comparisons) - len(paired), "comparison")
    note = f"{left_out} left out: not all of their trials are tested."
    return verdicts, [note] if len(paired) < len(comparisons) else []


def _models(study: StudyData, comparison: Comparison) -> frozenset[str]:
    """Of both sides."""
    sides = (comparison.trials, comparison.baseline_trials)
    return frozenset(study.trials[side[0]].config.model_name for side in sides)


def _seed_variances(
    study: StudyData, paired: Iterable[tuple[Comparison, tuple[np.ndarray, np.ndarray]]]
) -> dict[frozenset[str], SeedVariance]:
    """The pooled variance for each set of models that is compared; a cell counts once."""
    cells: dict[tuple[str, ...], np.ndarray] = {}
    for each, (correct, baseline) in paired:
        cells |= {each.trials: correct, each.baseline_trials: baseline}
    models = {trials: study.trials[trials[0]].config.model_name for trials in cells}
    return {
        compared: pooled_seed_variance(cells[trials] for trials in cells if models[trials] in compared)
        for compared in {_models(study, each) for each, _ in paired}
    }


def _agree_with_outcomes(verdicts: pd.DataFrame) -> None:
    """Let no interval contradict its outcome, in place.

    The exact test may not reject where the score interval just leaves 0 out, and Holm's later steps
    may claim where an interval at the level of the first still holds 0.
    The interval then ends at 0, or reaches it.
    """
    low, high = verdicts["difference_points_low"], verdicts["difference_points_high"]
    better, worse = verdicts["outcome"] == BETTER, verdicts["outcome"] == WORSE
    verdicts["difference_points_low"] = np.select(
        [better, worse], [low.clip(lower=0), low], low.clip(upper=0)
    )
    verdicts["difference_points_high"] = np.select(
        [better, worse], [high, high.clip(upper=0)], high.clip(lower=0)
    )


def _measured(
    comparison: Comparison, correct: np.ndarray, baseline: np.ndarray, pooled: SeedVariance, alpha: float
) -> dict[str, Any]:
    """A verdict before the family is known: its ``p_holm`` and ``outcome`` are still to come."""
    seeds, examples = correct.shape
    differences = score_differences(correct, baseline)
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    if seeds > 1:
        over_seeds = difference_over_seeds(correct, baseline, pooled)
        p, interval, error = over_seeds.p, over_seeds.interval(alpha), over_seeds.error
        detectable = over_seeds.detectable(alpha)
        deviations = [float(side.mean(axis=1).std(ddof=1)) for side in (correct, baseline)]
    else:
        p, interval, error = (
            paired_test(differences),
            score_interval(gained, lost, examples, alpha),
            math.nan,
        )
        detectable = smallest_detectable_difference(differences, seeds, alpha)
        deviations = [math.nan, math.nan]
    return {axis: comparison.fixed.get(axis, "") for axis in AXES} | {
        "axis": comparison.axis,
        "value": comparison.value,
        "baseline": comparison.baseline,
        "outcome": NOT_APART,
        "test_examples": examples,
        "accuracy": correct.sum() / seeds / examples,
        **_ends("accuracy", wilson_interval(correct.sum() / seeds, examples)),
        "baseline_accuracy": baseline.sum() / seeds / examples,
        **_ends("baseline_accuracy", wilson_interval(baseline.sum() / seeds, examples)),
        "difference_points": 100 * float(differences.mean()) / seeds,
        **_ends("difference_points", interval, 100),
        "gained": gained,
        "lost": lost,
        "p": p,
        "p_holm": math.nan,
        "smallest_detectable_points": 100 * detectable,
        "seeds": seeds,
        "standard_error_points": 100 * error,
        "accuracy_deviation": deviations[0],
        "baseline_accuracy_deviation": deviations[1],
    }


def _ends(name: str, interval: Interval, factor: int = 1) -> dict[str, float]:
    return {f"{name}_low": factor * interval.low, f"{name}_high": factor * interval.high}


def claimed(verdict: Any) -> str:
    """The value with its axis: ``target batch size 1024``."""
    return f"{axis_words(verdict.axis)} {verdict.value}"


def subject(verdict: Any) -> str:
    """The coordinates that both sides share: ``bert-base, target batch size 256``."""
    words = {"target_batch_size": "target batch size ", "seed": "seed "}
    shared = [(axis, getattr(verdict, axis)) for axis in AXES]
    return ", ".join(f"{words.get(axis, '')}{value}" for axis, value in shared if value != "")


def interval_text(low: float, high: float, sign: int = 1, text: Callable[[float], str] = signed) -> str:
    """``+17.2 to +27.8``; with a sign of -1 the interval of the opposite difference."""
    low, high = sorted([sign * low, sign * high])
    return f"{text(low)} to {text(high)}"


def _sentence(verdict: Any) -> str:
    pair = f"{subject(verdict)}: {claimed(verdict)}"
    p = f"Holm-adjusted p {p_text(verdict.p_holm)}"
    if verdict.outcome == NOT_APART:
        return (
            f"{pair} against {verdict.baseline} {NOT_APART} "
            f"(difference {signed(verdict.difference_points)} points, {_interval(verdict, 1, signed)}; "
            f"{p}; {_detectable(verdict)})."
        )
    sign = 1 if verdict.outcome == BETTER else -1
    return (
        f"{pair} is {verdict.outcome} than {verdict.baseline} "
        f"by {number(abs(verdict.difference_points))} points ({_interval(verdict, sign, number)}; {p})."
    )


def _interval(verdict: Any, sign: int, text: Callable[[float], str]) -> str:
    low, high = verdict.difference_points_low, verdict.difference_points_high
    return f"simultaneous 95 % interval {interval_text(low, high, sign, text)}"


def _detectable(verdict: Any) -> str:
    if math.isnan(verdict.smallest_detectable_points):
        sample = f"{counted(verdict.test_examples, 'test example')} and {counted(verdict.seeds, 'seed')}"
        return f"with {sample} the study could not have detected any difference"
    return _found_above(number(verdict.smallest_detectable_points))


def _found_above(points: str) -> str:
    return (
        f"a difference of more than about {points} points would have been found with a probability of 80 %"
    )


def headline(family: Family) -> list[str]:
    """A paragraph per model, the largest differences first, and one that says what it is about."""
    if family.verdicts.empty:
        return [" ".join(["No comparison can be made.", *family.notes])]
    # two models that are compared with each other are told of under the one that is not the baseline
    models = family.verdicts["model"].where(family.verdicts["axis"] != "model", family.verdicts["value"])
    paragraphs = [
        f"{model}: {_findings(verdicts)}" for model, verdicts in family.verdicts.groupby(models, sort=False)
    ]
    return [*paragraphs, family.scope()]


def _findings(verdicts: pd.DataFrame) -> str:
    apart = verdicts["outcome"] != NOT_APART
    largest_first = (-verdicts[apart]["difference_points"].abs()).sort_values(kind="stable").index
    texts = [_claim(verdict) for verdict in rows(verdicts.loc[largest_first[:_CLAIMS]])]
    if len(largest_first) > _CLAIMS:
        texts.append(f"{len(largest_first) - _CLAIMS} more differences are in the table")
    return " ".join([*([f"{listed(texts)}."] if texts else []), *_rest(verdicts[~apart], len(verdicts))])


def _claim(verdict: Any) -> str:
    shared = [str(value) for axis in AXES[1:] if (value := getattr(verdict, axis)) != ""]
    where = f" ({' · '.join(shared)})" if shared else ""
    difference = number(abs(verdict.difference_points))
    return f"{claimed(verdict)} is {verdict.outcome} than {verdict.baseline} by {difference} points{where}"


def _rest(alike: pd.DataFrame, total: int) -> list[str]:
    if alike.empty:
        return []
    which = "all" if len(alike) == total else f"the other {len(alike)} of"
    told = f"In {which} {counted(total, 'comparison')} the two cannot be told apart"
    detectable = alike["smallest_detectable_points"].dropna()
    if detectable.empty:
        return [f"{told}, and no difference, however large, could have been detected."]
    blind = len(alike) - len(detectable)
    but = f", and in {blind} of them none, however large" if blind else ""
    most_sensitive, least = number(detectable.min()), number(detectable.max())
    points = least if most_sensitive == least else f"{most_sensitive} to {least}"
    return [f"{told}: {_found_above(points)}{but}."]
