"""Verdicts: which differences of a study are real, as far as its test examples and seeds can tell.

With one seed a verdict is about the checkpoints at hand: another training of the same cell may turn out
otherwise, and one seed says nothing about it. With several seeds a difference is claimed only where the
test examples *and* the seeds show it: the p-value of a comparison is the larger of the two tests' (an
intersection-union test, Berger 1982), and Holm's adjustment is applied to that one.

A verdict is a row of a table, ``Family.verdicts``:

- ``model``, ``target_batch_size``, ``scaling_rule``, ``seed``: the coordinates that both sides share,
  empty where they do not; ``axis``, ``value``, ``baseline``: where they differ
- ``outcome``: ``better``, ``worse`` or ``cannot be told apart``
- ``accuracy``, ``baseline_accuracy``: fractions of 1, means over seeds, with Wilson intervals
- ``difference_points``: in hundredths of accuracy, positive where the value is better than the baseline,
  with a bootstrap interval over test examples
- ``gained``, ``lost``: test examples that the value got right under more, or fewer, seeds
- ``p``: the larger of ``p_examples`` and ``p_seeds``; ``p_holm``: adjusted over the family
- ``smallest_detectable_points``: at the level of Holm's first step; NaN: none, however large
- ``seeds`` and what follows: how the difference varies over seeds; NaN with one seed
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.comparisons import Comparison, epoch_comparisons, paired_answers, planned_comparisons
from reports.content import rows
from reports.prose import axis_words, counted, listed, number, p_text, signed
from reports.statistics import (
    RESAMPLES,
    Interval,
    SeedSpread,
    bootstrap_interval,
    holm,
    paired_test,
    score_differences,
    seed_spread,
    smallest_detectable_difference,
    smallest_detectable_over_seeds,
    wilson_interval,
)
from reports.study_data import StudyData
from search_spaces.space import AXES

ALPHA = 0.05  # the chance of any false claim in a family of comparisons
BETTER, WORSE, NOT_APART = "better", "worse", "cannot be told apart"
_ONE_SEED = SeedSpread(1, math.nan, Interval(math.nan, math.nan), math.nan, math.nan, math.nan)
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
            "There is one seed, so this is about these checkpoints only: "
            "one seed says nothing about another training."
        )
        if self.seeds > 1:
            about = (
                f"There are {self.seeds} seeds: a difference is claimed only where "
                "it is larger than both the test examples and the seeds explain."
            )
        return " ".join([about, *self.notes])


def compare_cells(study: StudyData, resamples: int = RESAMPLES) -> Family:
    """Each value against the baseline on its axis, all else equal, from the best epochs' predictions."""
    seeds = len(study.axis_values("seed"))
    notes = [
        f"The baseline {axis_words(axis)} {baseline} is not in the grid: nothing is compared with it."
        for axis, baseline in study.plan.baselines.items()
        if baseline not in study.axis_values(axis)
    ]
    verdicts, left_out = _judge(study, planned_comparisons(study), resamples)
    return Family("Which differences are real", verdicts, seeds, notes + left_out)


def compare_epochs(study: StudyData, resamples: int = RESAMPLES) -> Family:
    """The last epoch against the best epoch of each trial; always about the one training."""
    comparisons, tested = epoch_comparisons(study), sum(trial.is_tested for trial in study.trials.values())
    verdicts, notes = _judge(study, comparisons, resamples)
    if same := tested - len(comparisons):
        verb = "is best at its" if same == 1 else "are best at their"
        trials = counted(tested, "tested trial")
        notes = [f"{same} of {trials} {verb} last epoch: nothing to compare there.", *notes]
    return Family("Last epoch against best epoch", verdicts, 1, notes)


def _judge(
    study: StudyData, comparisons: Sequence[Comparison], resamples: int
) -> tuple[pd.DataFrame, list[str]]:
    """The verdicts, and a note where comparisons lack a tested trial."""
    paired = [(each, answers) for each in comparisons if (answers := paired_answers(study, each))]
    level = ALPHA / max(1, len(paired))
    verdicts = pd.DataFrame(_measured(each, *answers, level, resamples) for each, answers in paired)
    if paired:
        verdicts["p_holm"] = holm(verdicts["p"].to_numpy())
        difference = verdicts["difference_points"]
        apart = (verdicts["p_holm"] <= ALPHA) & (difference != 0)
        verdicts["outcome"] = np.where(apart, np.where(difference > 0, BETTER, WORSE), NOT_APART)
    left_out = counted(len(comparisons) - len(paired), "comparison")
    note = f"{left_out} left out: not all of their trials are tested."
    return verdicts, [note] if len(paired) < len(comparisons) else []


def _measured(
    comparison: Comparison, correct: np.ndarray, baseline: np.ndarray, level: float, resamples: int
) -> dict[str, Any]:
    """A verdict before the family is known: its ``p_holm`` and ``outcome`` are still to come."""
    seeds, examples = correct.shape
    differences = score_differences(correct, baseline)
    detectable = smallest_detectable_difference(differences, seeds, level)
    p_examples, spread = paired_test(differences), _ONE_SEED
    if seeds > 1:
        spread = seed_spread(correct.mean(axis=1), baseline.mean(axis=1), examples)
        # either test can stand in the way; a difference above 100 points is none
        over_seeds = smallest_detectable_over_seeds(spread.deviation, seeds, level)
        larger = float(np.max([detectable, over_seeds]))
        detectable = larger if larger <= 1 else math.nan
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
        **_ends("difference_points", bootstrap_interval(differences, seeds, resamples), 100),
        "gained": int((differences > 0).sum()),
        "lost": int((differences < 0).sum()),
        "p": float(np.fmax(p_examples, spread.p)),
        "p_examples": p_examples,
        "p_seeds": spread.p,
        "p_holm": math.nan,
        "smallest_detectable_points": 100 * detectable,
        "seeds": seeds,
        "seed_deviation_points": 100 * spread.deviation,
        **_ends("seed_points", spread.interval, 100),
        "accuracy_deviation": spread.accuracy_deviation,
        "baseline_accuracy_deviation": spread.baseline_deviation,
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
            f"(difference {signed(verdict.difference_points)} points, {_intervals(verdict, 1, signed)}; "
            f"{p}; {_detectable(verdict)})."
        )
    sign = 1 if verdict.outcome == BETTER else -1
    return (
        f"{pair} is {verdict.outcome} than {verdict.baseline} "
        f"by {number(abs(verdict.difference_points))} points ({_intervals(verdict, sign, number)}; {p})."
    )


def _intervals(verdict: Any, sign: int, text: Callable[[float], str]) -> str:
    low, high = verdict.difference_points_low, verdict.difference_points_high
    over_examples = interval_text(low, high, sign, text)
    if verdict.seeds == 1:
        return f"95 % interval {over_examples}"
    over_seeds = interval_text(verdict.seed_points_low, verdict.seed_points_high, sign, text)
    return f"95 % interval over test examples {over_examples}, over seeds {over_seeds}"


def _detectable(verdict: Any) -> str:
    if math.isnan(verdict.smallest_detectable_points):
        sample = f"{counted(verdict.test_examples, 'test example')} and {counted(verdict.seeds, 'seed')}"
        return f"with {sample} the study could not have detected any difference"
    return (
        "the smallest difference the study could have detected is "
        f"about {number(verdict.smallest_detectable_points)} points"
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
    but = f", and in {blind} of them any difference, however large" if blind else ""
    unnoticed = f"a difference of less than about {number(detectable.max())} points"
    return [f"{told}: {unnoticed} would probably have gone unnoticed{but}."]
