"""What a family of verdicts says, in sentences."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from reports.content import rows
from reports.prose import axis_words, counted, learning_rate_text, listed, number, p_text, signed
from reports.study_data import StudyData
from reports.verdicts import BETTER, DIVERGED, EQUIVALENT, UNDECIDED, WORSE, Family
from search_spaces.space import AXES
from search_spaces.trial_config import epoch_text
from search_spaces.update import OPTIMIZERS

_CLAIMS = 6  # of a headline; where there are more, the table is easier to read


def sentences(family: Family) -> list[str]:
    """One for each verdict, in the table's order."""
    return [
        f"{subject(verdict)}: {_sentence(verdict, family.margin)}." for verdict in rows(family.verdicts)
    ]


def about(family: Family) -> str:
    """What a verdict of this family is about, and what it leaves out."""
    fewest, most = family.seeds
    if set(family.verdicts["axis"]) == {"epoch"}:
        text = "Each comparison is about one training; another may turn out otherwise."
    elif most == 1:
        text = (
            "There is one seed, so this is about these trainings only: "
            "one seed says nothing about another training."
        )
    else:
        seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
        text = (
            f"There are {seeds} seeds: a difference is claimed only where it is larger than the test "
            "examples and the seeds together explain. A seed varies the head, the data order and dropout; "
            "it varies neither the split nor the pretrained weights."
        )
    return " ".join([*family.notes, text])


def scope(study: StudyData) -> str:
    """Which version of its question a grid answers: its budget, learning rate and second-moment average."""
    plan, config, train = study.plan, study.plan.shared, study.plan.dataset.sizes["train"]
    ends = {
        cell.config.target_batch_size: cell.config.position(cell.config.evaluation_count, train)
        for cell in sorted(plan.cells, key=lambda cell: cell.config.target_batch_size)
    }
    batches = " / ".join(map(str, ends))
    if plan.budget == "steps":
        epochs = " / ".join(epoch_text(end.epoch) for end in ends.values())
        budget = f"Same steps ({config.total_steps(train):,}): {epochs} epochs at {batches}"
    else:
        steps = " / ".join(f"{end.step:,}" for end in ends.values())
        budget = f"Same examples ({counted(config.epochs, 'epoch')}): {steps} steps at {batches}"
    rates = {cell.config.learning_rate for cell in plan.cells}
    at = "everywhere" if len(rates) == 1 else f"at {config.reference_batch_size}, scaled"
    text = f"{budget}. Learning rate {learning_rate_text(config.base_lr)} {at}, not tuned."
    decays = {beta2 for cell in plan.cells if (beta2 := cell.config.update.beta2) is not None}
    if not decays:
        return text
    shown = " to ".join(f"{each:.4g}" for each in sorted({min(decays), max(decays)}))
    everywhere = " everywhere" if len(decays) == 1 else ""
    return f"{text} {OPTIMIZERS[config.optimizer].torch_name}'s β₂ {shown}{everywhere}."


def headline(family: Family) -> list[str]:
    """A paragraph per model, the largest differences first, and one that says what it is about."""
    if family.verdicts.empty:
        return [" ".join(["No comparison can be made.", *family.notes])]
    # two models that are compared with each other are told of under the one that is not the baseline
    models = family.verdicts["model"].where(family.verdicts["axis"] != "model", family.verdicts["value"])
    paragraphs = [
        f"{model}: {_findings(verdicts, family.margin)}"
        for model, verdicts in family.verdicts.groupby(models, sort=False)
    ]
    return [*paragraphs, about(family)]


def comparison(verdict: Any) -> str:
    """``target batch size 1024 against 64``."""
    return f"{_claimed(verdict)} against {verdict.baseline}"


def subject(verdict: Any) -> str:
    """The coordinates that both sides share: ``bert-base, target batch size 256``."""
    words = {"target_batch_size": "target batch size ", "seed": "seed "}
    shared = [(axis, getattr(verdict, axis)) for axis in AXES]
    return ", ".join(f"{words.get(axis, '')}{value}" for axis, value in shared if value != "")


def outcome_text(verdict: Any) -> str:
    """The outcome; of a comparison with trainings that diverged, how many of how many, on which side."""
    if verdict.outcome != DIVERGED:
        return str(verdict.outcome)
    sides = {"": (verdict.diverged, verdict.seeds)}
    sides["baseline "] = (verdict.baseline_diverged, verdict.baseline_seeds)
    return listed([f"{side}diverged {count} of {seeds}" for side, (count, seeds) in sides.items() if count])


def interval_text(low: float, high: float, sign: int = 1, text: Callable[[float], str] = signed) -> str:
    """``+17.2 to +27.8``; with a sign of -1 the interval of the opposite difference; a dash for none."""
    if math.isnan(low):
        return "–"
    low, high = sorted([sign * low, sign * high])
    return f"{text(low)} to {text(high)}"


def _claimed(verdict: Any) -> str:
    """The value with its axis: ``target batch size 1024``."""
    return f"{axis_words(verdict.axis)} {verdict.value}"


def _pair(verdict: Any) -> tuple[str, str]:
    """Both sides; where each is one training they are called so, because the setting may do otherwise."""
    if verdict.axis == "epoch" or max(verdict.seeds, verdict.baseline_seeds) > 1:
        return _claimed(verdict), str(verdict.baseline)
    return f"the one training with {_claimed(verdict)}", f"the one with {verdict.baseline}"


def _sentence(verdict: Any, margin: float) -> str:
    value, baseline = _pair(verdict)
    p = f"Holm-adjusted p {p_text(verdict.p_holm)}"
    difference = f"difference {signed(verdict.difference_points)} points"
    low, high = verdict.difference_points_low, verdict.difference_points_high
    match verdict.outcome:
        case "diverged":
            return f"{comparison(verdict)} is not tested: {_divergence(verdict)}"
        case "equivalent":
            ends = interval_text(verdict.equivalence_points_low, verdict.equivalence_points_high)
            return (
                f"{value} and {baseline} are equivalent within {points_text(margin)} "
                f"({difference}, simultaneous 90 % interval {ends})"
            )
        case "undecided":
            return (
                f"{value} against {baseline} is undecided ({difference}, simultaneous 95 % interval "
                f"{interval_text(low, high)}; {p}; {_detectable(verdict)})"
            )
    ends = interval_text(low, high, _sign(verdict), number)
    return (
        f"{value} is {verdict.outcome} than {baseline} by {_size(verdict, margin)} "
        f"(simultaneous 95 % interval {ends}; {p})"
    )


def _sign(verdict: Any) -> int:
    return -1 if verdict.outcome == WORSE else 1


def _size(verdict: Any, margin: float) -> str:
    """``0.4 points, less than the margin of 1 point``."""
    size = f"{number(abs(verdict.difference_points))} points"
    within = -margin < verdict.equivalence_points_low and verdict.equivalence_points_high < margin
    return f"{size}, less than the margin of {points_text(margin)}" if within else size


def points_text(margin: float) -> str:
    """``1 point``, ``0.5 points``."""
    return "1 point" if margin == 1 else f"{margin:g} points"


def _diverged(verdict: Any) -> list[tuple[Any, str]]:
    """The value, or the baseline, or both, with how many of its trainings diverged."""
    sides = (
        (verdict.value, verdict.diverged, verdict.seeds),
        (verdict.baseline, verdict.baseline_diverged, verdict.baseline_seeds),
    )
    return [(value, f"{count} of {counted(seeds, 'training')}") for value, count, seeds in sides if count]


def _divergence(verdict: Any) -> str:
    return listed([f"{count} with {value} diverged" for value, count in _diverged(verdict)])


def _detectable(verdict: Any) -> str:
    if math.isnan(verdict.smallest_detectable_points):
        sample = f"{counted(verdict.test_examples, 'test example')} and {counted(verdict.seeds, 'seed')}"
        return f"with {sample} the study could not have detected any difference"
    return _found_above(number(verdict.smallest_detectable_points))


def _found_above(points: str) -> str:
    return (
        f"a difference of more than about {points} points would have been found with a probability of 80 %"
    )


def _findings(verdicts: pd.DataFrame, margin: float) -> str:
    outcomes = verdicts["outcome"]
    apart = verdicts[outcomes.isin([BETTER, WORSE])]
    largest_first = (-apart["difference_points"].abs()).sort_values(kind="stable").index
    parts = [
        _some([_claim(verdict, margin) for verdict in rows(apart.loc[largest_first])], "differences"),
        _some(_equivalences(verdicts[outcomes == EQUIVALENT], margin), "equivalences"),
        _some(_diverged_cells(verdicts[outcomes == DIVERGED]), "cells with trainings that diverged"),
        _undecided(verdicts[outcomes == UNDECIDED], len(verdicts)),
    ]
    return " ".join(part for part in parts if part)


def _some(texts: list[str], kind: str) -> str:
    """A sentence of the first few, and of how many more there are."""
    if len(texts) > _CLAIMS:
        texts = [*texts[:_CLAIMS], f"{len(texts) - _CLAIMS} more {kind} are in the table"]
    return f"{_capital(listed(texts))}." if texts else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _where(verdict: Any) -> str:
    return " · ".join(str(value) for axis in AXES[1:] if (value := getattr(verdict, axis)) != "")


def _claim(verdict: Any, margin: float) -> str:
    value, baseline = _pair(verdict)
    ends = interval_text(
        verdict.difference_points_low, verdict.difference_points_high, _sign(verdict), number
    )
    where = f"; {place}" if (place := _where(verdict)) else ""
    return f"{value} is {verdict.outcome} than {baseline} by {_size(verdict, margin)} (95 % {ends}{where})"


def _equivalences(verdicts: pd.DataFrame, margin: float) -> list[str]:
    found = []
    for verdict in rows(verdicts):
        value, baseline = _pair(verdict)
        where = f" ({place})" if (place := _where(verdict)) else ""
        found.append(f"{value} and {baseline} are equivalent within {points_text(margin)}{where}")
    return found


def _diverged_cells(verdicts: pd.DataFrame) -> list[str]:
    """Each cell once, whichever comparisons it is in."""
    found: dict[str, None] = {}
    for verdict in rows(verdicts):
        for value, count in _diverged(verdict):
            cell = verdict._replace(
                **{"model": ""} | {verdict.axis: value}
            )  # the paragraph names the model
            found[f"{count} diverged at {subject(cell)}"] = None
    return list(found)


def _undecided(verdicts: pd.DataFrame, total: int) -> str:
    if verdicts.empty:
        return ""
    count = len(verdicts)
    which = f"all {total} comparisons" if total > 1 else "the only comparison"
    if count < total:
        which = f"the other {count} of {total} comparisons"
    told = f"Undecided in {which}"
    detectable = verdicts["smallest_detectable_points"].dropna()
    if detectable.empty:
        return f"{told}, and no difference, however large, could have been detected."
    blind = count - len(detectable)
    but = f", and in {blind} of them none, however large" if blind else ""
    most_sensitive, least = number(detectable.min()), number(detectable.max())
    points = least if most_sensitive == least else f"{most_sensitive} to {least}"
    return f"{told}: {_found_above(points)}{but}."
