"""Steps and examples to a val_acc goal, by target batch size (Shallue et al. 2019, arXiv:1811.03600)."""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from reports.canvas import COLOURS, batch_axis, figure, legend_below, plain, plain_axes, png
from reports.content import Picture, Table
from reports.prose import accuracy_text, counted
from reports.study_data import StudyData, TrialData

_MARKERS = "os^DvP"
_PANEL = 4.6  # inches, a model's width; the height is a fifth less
_NOTE = (
    "The first evaluation whose val_acc is {goal}, interpolated between it and the one before; the median "
    "over seeds. > means: not reached by then, in half of the trainings or more. A goal that was chosen "
    "after a look at the curves proves nothing."
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
    budget: Spent  # steps and examples of a whole training


def points(study: StudyData, goal: float) -> dict[tuple[Any, ...], Point]:
    """(model, target batch size, scaling rule) -> what its trainings took; without those not begun."""
    train, found = study.plan.dataset.sizes["train"], {}
    for point, names in study.points.items():
        trials = [study.trials[name] for name in names if name in study.trials]
        spent = [spent_to(goal, trial, train) for trial in trials]
        if not spent:
            continue
        end = trials[0].config.position(trials[0].config.evaluation_count, train)
        middle = Spent(*(median(each) for each in zip(*spent, strict=True)))
        reached = sum(each != NEVER for each in spent)
        found[point] = Point(middle, reached, len(trials), Spent(end.step, end.examples))
    return found


def steps_table(study: StudyData, goal: float) -> Table:
    """A row per cell, its seeds together."""
    found = points(study, goal)
    shown = [
        {
            "model": model,
            "target batch size": batch,
            "scaling rule": rule,
            "steps": _count(point.median.steps, point.budget.steps),
            "examples": _count(point.median.examples, point.budget.examples),
            "perfect scaling (steps)": _perfect(found, (model, batch, rule)),
            "reached": f"{point.reached} of {counted(point.trainings, 'training')}",
        }
        for (model, batch, rule), point in found.items()
    ]
    return Table(_title(goal), pd.DataFrame(shown), _NOTE.format(goal=accuracy_text(goal)))


def _title(goal: float) -> str:
    return f"Steps to a val_acc of {goal:g}"


def _count(spent: float, budget: float) -> str:
    return f"{spent:,.0f}" if math.isfinite(spent) else f"> {budget:,.0f}"


def _perfect(found: Mapping[tuple[Any, ...], Point], cell: tuple[Any, ...]) -> str:
    """Twice the batch, half the steps: from the smallest target batch size under the same rule."""
    model, batch, rule = cell
    smallest = min(other for name, other, kind in found if (name, kind) == (model, rule))
    steps = found[model, smallest, rule].median.steps
    return f"{steps * smallest / batch:,.0f}" if math.isfinite(steps) else "–"


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
        "drawn at its end. Dashed: perfect scaling, twice the batch in half the steps, as many examples.",
        alt=f"Optimizer steps and examples to a val_acc of {goal:g} by target batch size for "
        f"{', '.join(models)}, a line per scaling rule; the numbers are in the table.",
        broad=len(models) > 1,
        png=png(drawn),
    )


def _draw(axes: Axes, study: StudyData, found: Mapping[tuple[Any, ...], Point], what: str) -> None:
    """``what`` is a field of Spent."""
    plain_axes(axes)
    batches = sorted({batch for _, batch, _ in found})
    for place, rule in enumerate(study.axis_values("scaling_rule")):
        own = sorted((batch, point) for (_, batch, kind), point in found.items() if kind == rule)
        look: dict[str, Any] = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": _MARKERS[place % len(_MARKERS)],
        }
        reached = [(batch, getattr(p.median, what)) for batch, p in own if p.median != NEVER]
        missed = [(batch, getattr(p.budget, what)) for batch, p in own if p.median == NEVER]
        axes.plot(*_columns(reached), label=rule, linewidth=1.5, **look)
        axes.plot(*_columns(missed), linestyle="", markerfacecolor="white", **look)
        if reached and not place:
            first, spent = reached[0]
            ideal = [spent * (first / batch if what == "steps" else 1) for batch in batches]
            axes.plot(batches, ideal, "--", color="dimgray", linewidth=1, label="perfect scaling")
    axes.set_yscale("log")
    batch_axis(axes, batches)


def _columns(pairs: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]
