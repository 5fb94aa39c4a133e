"""Steps and examples to a val_acc goal, by target batch size (Shallue et al. 2019, arXiv:1811.03600)."""

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from reports.canvas import batch_axis, figure, legend_below, line_look, plain, plain_axes, png
from reports.content import Picture, Table
from reports.prose import accuracy_text, counted
from reports.study_data import StudyData, TrialData

_PANEL = 4.6  # inches, a model's width; the height is a fifth less
_NOTE = (
    "The first evaluation whose val_acc is {goal}, interpolated between it and the one before; the median "
    "over seeds. > means: not reached by then, in half of the trainings or more; ≤: reached at the first "
    "evaluation or before. A training under way that has not reached it is left out. A goal that was "
    "chosen after a look at the curves proves nothing."
)


class Spent(NamedTuple):
    """What a training takes to reach the goal; infinite where it does not."""

    steps: float
    examples: float


NEVER = Spent(math.inf, math.inf)


def spent_to(goal: float, trial: TrialData, train_examples: int) -> Spent:
    """Steps and examples to the first evaluation with this val_acc, interpolated; NEVER without one.

    What is reached at the first evaluation is taken as reached there: earlier nothing was measured.
    """
    before, at_before = None, math.nan
    val_accs = trial.evaluations.get("val_acc", pd.Series(dtype=float))
    for evaluation, val_acc in zip(val_accs.index.astype(int), val_accs, strict=True):
        at = trial.config.position(evaluation, train_examples)
        if val_acc >= goal:
            part = 1.0 if before is None else (goal - at_before) / (val_acc - at_before)
            start = Spent(0, 0) if before is None else before
            return Spent(
                start.steps + part * (at.step - start.steps),
                start.examples + part * (at.examples - start.examples),
            )
        before, at_before = Spent(at.step, at.examples), val_acc
    return NEVER


class Point(NamedTuple):
    """The seeds of one cell."""

    median: Spent
    reached: int
    trainings: int
    first: Spent  # up to the first evaluation
    budget: Spent  # of a whole training

    @property
    def is_exact(self) -> bool:
        """Whether half of the trainings reached the goal between two evaluations."""
        return self.first.steps < self.median.steps < math.inf


def points(study: StudyData, goal: float) -> dict[tuple[Any, ...], Point]:
    """(model, target batch size, scaling rule) -> what its trainings took, as far as they have come."""
    train, found = study.plan.dataset.sizes["train"], {}
    for point, names in study.points.items():
        trials = [study.trials[name] for name in names if name in study.trials]
        all_spent = [(spent_to(goal, trial, train), trial) for trial in trials]
        spent = [each for each, trial in all_spent if each != NEVER or not _is_under_way(trial)]
        if not spent:
            continue
        config = trials[0].config
        first, end = (config.position(n, train) for n in (1, config.evaluation_count))
        found[point] = Point(
            Spent(*(median(each) for each in zip(*spent, strict=True))),
            sum(each != NEVER for each in spent),
            len(spent),
            Spent(first.step, first.examples),
            Spent(end.step, end.examples),
        )
    return found


def _is_under_way(trial: TrialData) -> bool:
    return len(trial.evaluations) < trial.config.evaluation_count and not trial.is_diverged


def steps_table(study: StudyData, goal: float) -> Table:
    """A row per cell, its seeds together."""
    found = points(study, goal)
    shown = [
        {
            "model": model,
            "target batch size": batch,
            "scaling rule": rule,
            "steps": _count(point, "steps"),
            "examples": _count(point, "examples"),
            "perfect scaling (steps)": _perfect_text(found, (model, batch, rule)),
            "reached": f"{point.reached} of {counted(point.trainings, 'training')}",
        }
        for (model, batch, rule), point in found.items()
    ]
    return Table(_title(goal), pd.DataFrame(shown), _NOTE.format(goal=accuracy_text(goal)))


def _title(goal: float) -> str:
    return f"Steps to a val_acc of {goal:g}"


def _count(point: Point, what: str) -> str:
    """``what`` is a field of Spent."""
    if point.median == NEVER:
        return f"> {getattr(point.budget, what):,.0f}"
    return f"{'' if point.is_exact else '≤ '}{getattr(point.median, what):,.0f}"


def _perfect(
    found: Mapping[tuple[Any, ...], Point], model: str, rule: str, batches: Iterable[int]
) -> dict[int, Spent]:
    """Twice the batch, half the steps, as many examples: from the smallest known exactly."""
    exact = [b for (name, b, kind), p in found.items() if (name, kind) == (model, rule) and p.is_exact]
    if not exact:
        return {}
    smallest = min(exact)
    steps, examples = found[model, smallest, rule].median
    return {batch: Spent(steps * smallest / batch, examples) for batch in batches}


def _perfect_text(found: Mapping[tuple[Any, ...], Point], cell: tuple[Any, ...]) -> str:
    model, batch, rule = cell
    perfect = _perfect(found, model, rule, [batch])
    return f"{perfect[batch].steps:,.0f}" if perfect else "–"


def steps_picture(study: StudyData, goal: float) -> Picture | None:
    """Per model: steps and examples to the goal by target batch size; None if no training reaches it."""
    found = points(study, goal)
    if not any(point.reached for point in found.values()):
        return None
    models = list(dict.fromkeys(model for model, *_ in found))
    drawn = figure(_PANEL * len(models), 1.4 * _PANEL)
    panels = drawn.subplots(2, len(models), squeeze=False, sharex=True, sharey="row")
    for column, model in enumerate(models):
        own = {key: point for key, point in found.items() if key[0] == model}
        for row, what in enumerate(Spent._fields):
            _draw(panels[row, column], study, own, what)
        panels[0, column].set_title(plain(model), fontsize="medium", loc="left")
        panels[0, column].set_xlabel("")
    panels[0, 0].set_ylabel("optimizer steps (log scale)")
    panels[1, 0].set_ylabel("training examples (log scale)")
    legend_below(drawn, panels[0, 0], 4, fontsize="small")
    return Picture(
        name="steps_to_target",
        title=_title(goal).lower(),
        caption=f"{_NOTE.format(goal=accuracy_text(goal))} Open markers: not reached within the budget, "
        "drawn at its end, or reached at the first evaluation. Dashed: perfect scaling, twice the batch in "
        "half the steps, as many examples.",
        alt=f"Optimizer steps and examples to a val_acc of {goal:g} by target batch size for "
        f"{', '.join(models)}, a line per scaling rule; the numbers are in the table.",
        broad=len(models) > 1,
        png=png(drawn),
    )


def _draw(axes: Axes, study: StudyData, found: Mapping[tuple[Any, ...], Point], what: str) -> None:
    """``what`` is a field of Spent."""
    plain_axes(axes)
    model, batches = next(iter(found))[0], sorted({batch for _, batch, _ in found})  # all of one model
    for place, rule in enumerate(study.axis_values("scaling_rule")):
        own = sorted((batch, point) for (_, batch, kind), point in found.items() if kind == rule)
        look = line_look(place)
        reached = [(batch, getattr(p.median, what)) for batch, p in own if p.median != NEVER]
        missed = [(batch, getattr(p.budget, what)) for batch, p in own if p.median == NEVER]
        early = [(batch, getattr(p.median, what)) for batch, p in own if p.median.steps <= p.first.steps]
        axes.plot(*_columns(reached), label=rule, linewidth=1.5, **look)
        axes.plot(*_columns(missed + early), linestyle="", markerfacecolor="white", **look)
        perfect = {} if place else _perfect(found, model, rule, batches)
        if perfect:
            ideal = [getattr(spent, what) for spent in perfect.values()]
            axes.plot(list(perfect), ideal, "--", color="dimgray", linewidth=1, label="perfect scaling")
    axes.set_yscale("log")
    batch_axis(axes, batches)


def _columns(pairs: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]
