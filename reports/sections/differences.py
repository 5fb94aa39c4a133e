"""Which differences are real: the verdicts in sentences, in a table, and in the picture that answers."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from reports.content import Section, Table
from reports.flags import flags
from reports.prose import (
    axis_words,
    counted,
    learning_rate_text,
    listed,
    number,
    p_text,
    points_text,
    signed,
    span,
)
from reports.results import answer_picture, seed_spread_table
from reports.sections import Source
from reports.study_data import StudyData
from reports.verdicts import (
    BETTER,
    DIVERGED,
    EQUIVALENT,
    UNDECIDED,
    WORSE,
    ComparisonFamily,
    Verdict,
    compare_epochs,
)
from search_spaces.space import AXES
from search_spaces.trial_config import epoch_text
from search_spaces.update import OPTIMIZERS

PLACE = 20
_CLAIMS = 6  # of a headline; more are easier to read in the table


def section(source: Source) -> Section:
    """The section of every study; in a search only the best, trained again, can have verdicts."""
    study, cells, epochs = source.study, source.comparisons, compare_epochs(source.study)
    tables = {
        "comparisons": comparisons_table(cells, folded=False),
        "last_against_best_epoch": comparisons_table(epochs),
        "seed_spread": seed_spread_table(study),
    }
    return Section(
        headline=[scope(study), *headline(cells)],
        answer=answer_picture(study),
        flags=flags(study),
        tables=tables,
        sentences=[sentences(cells), sentences(epochs)],
    )


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


def headline(family: ComparisonFamily) -> list[str]:
    """A paragraph per model, the largest differences first, and one on what the verdicts are about."""
    if not family.verdicts:
        return [" ".join(["No comparison can be made.", *family.notes])]
    models: dict[str, list[Verdict]] = {}
    for verdict in family.verdicts:
        # a comparison of two models stands under the model that is not the baseline
        model = verdict.value if verdict.axis == "model" else verdict.model
        models.setdefault(model, []).append(verdict)
    told = [f"{model}: {_findings(verdicts, family.margin)}" for model, verdicts in models.items()]
    return [*told, about(family)]


def _findings(verdicts: Sequence[Verdict], margin: float) -> str:
    def of(*outcomes: str) -> list[Verdict]:
        return [verdict for verdict in verdicts if verdict.outcome in outcomes]

    largest_first = sorted(of(BETTER, WORSE), key=lambda verdict: -abs(verdict.difference_points))
    parts = [
        _some([_short(verdict, margin) for verdict in largest_first], "differences"),
        _some([_short(verdict, margin) for verdict in of(EQUIVALENT)], "equivalences"),
        _some(_diverged_cells(of(DIVERGED)), "cells with trainings that diverged"),
        _undecided(of(UNDECIDED), len(verdicts)),
    ]
    return " ".join(part for part in parts if part)


def _some(texts: list[str], kind: str) -> str:
    """A sentence with the first few texts and the number of the others."""
    if len(texts) > _CLAIMS:
        texts = [*texts[:_CLAIMS], f"{len(texts) - _CLAIMS} more {kind} are in the table"]
    text = listed(texts)
    return f"{text[:1].upper()}{text[1:]}." if texts else ""


def _diverged_cells(verdicts: Iterable[Verdict]) -> list[str]:
    """Each cell once, however many comparisons it is in; the paragraph names the model."""
    elsewhere: dict[str, Any] = {"model": ""}
    told = [
        f"{count} diverged at {subject(replace(verdict, **elsewhere | {verdict.axis: value}))}"
        for verdict in verdicts
        for value, count in _diverged(verdict)
    ]
    return list(dict.fromkeys(told))


def _undecided(verdicts: Sequence[Verdict], total: int) -> str:
    if not verdicts:
        return ""
    count = len(verdicts)
    which = f"all {total} comparisons" if total > 1 else "the only comparison"
    if count < total:
        which = f"the other {count} of {total} comparisons"
    told = f"Undecided in {which}"
    detectable = [each.smallest_detectable_points for each in verdicts]
    detectable = [points for points in detectable if not math.isnan(points)]
    if not detectable:
        return f"{told}, and no difference, however large, could have been detected."
    blind = count - len(detectable)
    but = f", and in {blind} of them none, however large" if blind else ""
    return f"{told}: {_found_above(span(min(detectable), max(detectable)))}{but}."


def about(family: ComparisonFamily) -> str:
    """What a verdict of this family is about, and what it leaves out."""
    fewest, most = family.seeds
    if {verdict.axis for verdict in family.verdicts} == {"epoch"}:
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


def sentences(family: ComparisonFamily) -> list[str]:
    """One for each verdict, in the table's order."""
    return [f"{subject(each)}: {_long(each, family.margin)}." for each in family.verdicts]


def _claim(verdict: Verdict, margin: float) -> str:
    """What a verdict says, without its evidence."""
    value, baseline = _named(verdict)
    match verdict.outcome:
        case "diverged":
            return f"{comparison(verdict)} is not tested"
        case "equivalent":
            return f"{value} and {baseline} are equivalent within {points_text(margin)}"
        case "undecided":
            return f"{value} against {baseline} is undecided"
    size = f"{number(abs(verdict.difference_points))} points"
    if verdict.is_within(margin):
        size = f"{size}, less than the margin of {points_text(margin)}"
    return f"{value} is {verdict.outcome} than {baseline} by {size}"


def _short(verdict: Verdict, margin: float) -> str:
    """The claim with its interval and the cell, for a headline, whose paragraph names the model."""
    evidence = [] if verdict.outcome == EQUIVALENT else [f"95 % {_size_interval(verdict)}"]
    if cell := " · ".join(str(value) for axis in AXES[1:] if (value := getattr(verdict, axis)) != ""):
        evidence.append(cell)
    return _claim(verdict, margin) + (f" ({'; '.join(evidence)})" if evidence else "")


def _long(verdict: Verdict, margin: float) -> str:
    """The claim with all its evidence."""
    claim, p = _claim(verdict, margin), f"Holm-adjusted p {p_text(verdict.p_holm)}"
    difference = f"difference {signed(verdict.difference_points)} points"
    match verdict.outcome:
        case "diverged":
            told = [f"{count} with {value} diverged" for value, count in _diverged(verdict)]
            return f"{claim}: {listed(told)}"
        case "equivalent":
            ends = interval_text(verdict.equivalence_points_low, verdict.equivalence_points_high)
            return f"{claim} ({difference}, simultaneous 90 % interval {ends})"
        case "undecided":
            ends = interval_text(verdict.difference_points_low, verdict.difference_points_high)
            return f"{claim} ({difference}, simultaneous 95 % interval {ends}; {p}; {_detectable(verdict)})"
    return f"{claim} (simultaneous 95 % interval {_size_interval(verdict)}; {p})"


def comparison(verdict: Verdict) -> str:
    """``target batch size 1024 against 64``."""
    return f"{axis_words(verdict.axis)} {verdict.value} against {verdict.baseline}"


def subject(verdict: Verdict) -> str:
    """The coordinates that both sides share: ``bert-base, target batch size 256``."""
    words = {"target_batch_size": "target batch size ", "seed": "seed "}
    shared = [(axis, getattr(verdict, axis)) for axis in AXES]
    return ", ".join(f"{words.get(axis, '')}{value}" for axis, value in shared if value != "")


def _named(verdict: Verdict) -> tuple[str, str]:
    """The names of both sides: of the trainings if each side has one, because the setting may differ."""
    value = f"{axis_words(verdict.axis)} {verdict.value}"
    if verdict.axis == "epoch" or max(verdict.seeds, verdict.baseline_seeds) > 1:
        return value, str(verdict.baseline)
    return f"the one training with {value}", f"the one with {verdict.baseline}"


def interval_text(low: float, high: float, text: Callable[[float], str] = signed) -> str:
    """``+17.2 to +27.8``; a dash for none."""
    return "–" if math.isnan(low) else f"{text(low)} to {text(high)}"


def _size_interval(verdict: Verdict) -> str:
    """The interval of a difference's size, whatever its sign."""
    low, high = verdict.difference_points_low, verdict.difference_points_high
    return (
        interval_text(-high, -low, number) if verdict.outcome == WORSE else interval_text(low, high, number)
    )


def _diverged(verdict: Verdict) -> list[tuple[object, str]]:
    """Value and baseline if trainings of theirs diverged, with how many did."""
    sides = (
        (verdict.value, verdict.diverged, verdict.seeds),
        (verdict.baseline, verdict.baseline_diverged, verdict.baseline_seeds),
    )
    return [(value, f"{count} of {counted(seeds, 'training')}") for value, count, seeds in sides if count]


def _detectable(verdict: Verdict) -> str:
    if math.isnan(verdict.smallest_detectable_points):
        examples = counted(verdict.test_examples or 0, "test example")
        sample = f"{examples} and {counted(verdict.seeds, 'seed')}"
        return f"with {sample} the study could not have detected any difference"
    return _found_above(number(verdict.smallest_detectable_points))


def _found_above(points: str) -> str:
    return (
        f"a difference of more than about {points} points would have been found with a probability of 80 %"
    )


def outcome_text(verdict: Verdict) -> str:
    """The outcome; if trainings diverged, how many of how many on which side."""
    if verdict.outcome != DIVERGED:
        return verdict.outcome
    sides = {"": (verdict.diverged, verdict.seeds)}
    sides["baseline "] = (verdict.baseline_diverged, verdict.baseline_seeds)
    return listed([f"{side}diverged {count} of {seeds}" for side, (count, seeds) in sides.items() if count])


def comparisons_table(family: ComparisonFamily, folded: bool = True) -> Table:
    """The verdicts of a family for people; the CSV file has every field and the sentences."""
    columns: dict[str, Callable[[Verdict], str]] = {
        "comparison": lambda v: f"{subject(v)}: {comparison(v)}",
        "difference (points)": lambda v: signed(v.difference_points),
        "simultaneous 95 % interval": lambda v: interval_text(
            v.difference_points_low, v.difference_points_high
        ),
        "gained / lost": lambda v: "–" if v.outcome == DIVERGED else f"{v.gained} / {v.lost}",
        "p (Holm)": lambda v: p_text(v.p_holm).removeprefix("= "),
        "smallest detectable (points)": lambda v: number(v.smallest_detectable_points),
        "verdict": outcome_text,
    }
    test = "exact McNemar test, score interval (Tango)"
    if family.seeds[1] > 1:
        test = "one t test and interval over seeds and test examples"
    note = (
        f"Differences of test accuracy, paired example by example: {test}, "
        f"Holm's adjustment over the {counted(family.planned, 'planned comparison')}. Gained and lost: "
        "examples that only the one or only the other side classified correctly, or did under more seeds. "
        "Smallest detectable: at 80 % power, at the level of Holm's first step. Equivalent: the "
        f"simultaneous 90 % interval lies within {points_text(family.margin)} of 0. {about(family)}"
    )
    more = {"unrounded": family.frame.assign(sentence=sentences(family)), "folded": folded}
    return Table.of(family.title, family.verdicts, columns, note=note, **more)
