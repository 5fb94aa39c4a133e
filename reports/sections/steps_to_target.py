"""Steps and examples to a val_acc goal, by target batch size (Shallue et al. 2019, arXiv:1811.03600)."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import pandas as pd

from reports import canvas
from reports.canvas import Line, Mark
from reports.content import Picture, Section, Table
from reports.prose import accuracy_text, counted
from reports.sections import Source
from reports.study_data import Point, StudyData, TrialData
from search_spaces import TrialConfig

PLACE = 50
_PANEL = 4.6  # inches, a model's width; the height is a fifth less
_NOTE = (
    "The first evaluation whose val_acc is {goal}, interpolated between it and the one before; the median "
    "over seeds. > means: not reached by then, in half of the trainings or more; ≤: reached at the first "
    "evaluation or before. A training under way that has not reached it is left out. A goal that was "
    "chosen after a look at the curves proves nothing."
)


def section(source: Source) -> Section | None:
    """Present only if the user asks about a goal."""
    goal = source.target_val_acc
    if goal is None:
        return None
    tables, picture = (
        {"steps_to_target": steps_table(source.study, goal)},
        steps_picture(source.study, goal),
    )
    if picture is None:
        return Section(tables=tables, is_asked_for=True)
    return Section(tables=tables, heading=picture.title.capitalize(), pictures=[picture], is_asked_for=True)


class Spent(NamedTuple):
    """What a training takes to reach the goal; infinite if it never does."""

    steps: float
    examples: float


NEVER = Spent(math.inf, math.inf)


def spent_to(goal: float, trial: TrialData, train_examples: int) -> Spent:
    """Steps and examples to the first evaluation with this val_acc, interpolated; NEVER without one.

    A goal reached by the first evaluation counts as reached there: nothing was measured before.
    """
    val_accs = trial.evaluations.get("val_acc", pd.Series(dtype=float))
    reached = val_accs.index[val_accs >= goal]
    if reached.empty:
        return NEVER
    after = _spent_at(trial.config, reached[0], train_examples)
    earlier = val_accs.loc[: reached[0]].iloc[:-1]
    if earlier.empty:
        return after
    before, last = _spent_at(trial.config, earlier.index[-1], train_examples), earlier.iloc[-1]
    part = (goal - last) / (val_accs[reached[0]] - last)
    return Spent(*(start + part * (end - start) for start, end in zip(before, after, strict=True)))


def _spent_at(config: TrialConfig, evaluation: float, train_examples: int) -> Spent:
    at = config.position(int(evaluation), train_examples)
    return Spent(at.step, at.examples)


class CellCost(NamedTuple):
    """What the trainings of one cell take, one a seed."""

    median: Spent
    reached: int
    trainings: int
    first: Spent  # up to the first evaluation
    budget: Spent  # of a whole training

    @property
    def is_exact(self) -> bool:
        """Whether half of the trainings reached the goal between two evaluations."""
        return self.first.steps < self.median.steps < math.inf


def costs(study: StudyData, goal: float) -> dict[Point, CellCost]:
    """What the trainings of each cell have taken so far."""
    train, found = study.plan.dataset.sizes["train"], {}
    for cell, names in study.points.items():
        trials = [study.trials[name] for name in names if name in study.trials]
        all_spent = [(spent_to(goal, trial, train), trial) for trial in trials]
        spent = [each for each, trial in all_spent if each != NEVER or not _is_under_way(trial)]
        if not spent:
            continue
        config = trials[0].config
        found[cell] = CellCost(
            Spent(*(median(each) for each in zip(*spent, strict=True))),
            sum(each != NEVER for each in spent),
            len(spent),
            _spent_at(config, 1, train),
            _spent_at(config, config.evaluation_count, train),
        )
    return found


def _is_under_way(trial: TrialData) -> bool:
    return len(trial.evaluations) < trial.config.evaluation_count and not trial.is_diverged


def steps_table(study: StudyData, goal: float) -> Table:
    """A row per cell, its seeds together."""
    found = costs(study, goal)
    columns: dict[str, Callable[[Point], Any]] = {
        "model": lambda cell: cell[0],
        "target batch size": lambda cell: cell[1],
        "scaling rule": lambda cell: cell[2],
        "steps": lambda cell: _count(found[cell], "steps"),
        "examples": lambda cell: _count(found[cell], "examples"),
        "perfect scaling (steps)": lambda cell: (
            f"{perfect.steps:,.0f}" if (perfect := _perfect(found, cell)) else "–"
        ),
        "reached": lambda cell: f"{found[cell].reached} of {counted(found[cell].trainings, 'training')}",
    }
    return Table.of(_title(goal), found, columns, note=_NOTE.format(goal=accuracy_text(goal)))


def _title(goal: float) -> str:
    return f"Steps to a val_acc of {goal:g}"


def _count(cost: CellCost, what: str) -> str:
    """``what`` is a field of Spent."""
    if cost.median == NEVER:
        return f"> {getattr(cost.budget, what):,.0f}"
    return f"{'' if cost.is_exact else '≤ '}{getattr(cost.median, what):,.0f}"


def _perfect(found: Mapping[Point, CellCost], cell: Point) -> Spent | None:
    """Twice the batch, half the steps, as many examples: from the smallest batch that is known exactly."""
    model, batch, rule = cell
    own = {b: cost for (name, b, kind), cost in found.items() if (name, kind) == (model, rule)}
    exact = [size for size, cost in own.items() if cost.is_exact]
    if not exact:
        return None
    steps, examples = own[min(exact)].median
    return Spent(steps * min(exact) / batch, examples)


def steps_picture(study: StudyData, goal: float) -> Picture | None:
    """Per model: steps and examples to the goal by target batch size; None if no training reaches it."""
    found = costs(study, goal)
    if not any(cost.reached for cost in found.values()):
        return None
    models = list(dict.fromkeys(model for model, *_ in found))
    drawn = canvas.figure(_PANEL * len(models), 1.4 * _PANEL)
    panels = drawn.subplots(2, len(models), squeeze=False, sharex=True, sharey="row")
    labels = {"steps": "optimizer steps (log scale)", "examples": "training examples (log scale)"}
    for column, model in enumerate(models):
        batches = sorted({batch for name, batch, _ in found if name == model})
        for axes, (what, label) in zip(panels[:, column], labels.items(), strict=True):
            canvas.draw_by_batch(axes, batches, _lines(study, found, model, batches, what), label)
            axes.set_yscale("log")
            axes.label_outer()
        panels[0, column].set_title(canvas.plain(model), fontsize="medium", loc="left")
    canvas.legend_below(drawn, panels[0, 0], 4, fontsize="small")
    return Picture(
        name="steps_to_target",
        title=_title(goal).lower(),
        caption=f"{_NOTE.format(goal=accuracy_text(goal))} Open markers: not reached within the budget, "
        "drawn at its end, or reached at the first evaluation. Dashed: perfect scaling, twice the batch in "
        "half the steps, as many examples.",
        alt=f"Optimizer steps and examples to a val_acc of {goal:g} by target batch size for "
        f"{', '.join(models)}, a line per scaling rule; the numbers are in the table.",
        broad=len(models) > 1,
        png=canvas.png(drawn),
    )


def _lines(
    study: StudyData, found: Mapping[Point, CellCost], model: str, batches: Sequence[int], what: str
) -> Iterator[Line]:
    """A model's lines of ``what``, a field of Spent."""

    def marks(of: Iterable[tuple[int, Spent]]) -> list[Mark]:
        return [Mark(batch, getattr(spent, what)) for batch, spent in of]

    for place, rule in enumerate(study.axis_values("scaling_rule")):
        own = {b: c for (name, b, kind), c in sorted(found.items()) if (name, kind) == (model, rule)}
        look = canvas.line_look(place)
        reached = [(batch, cost.median) for batch, cost in own.items() if cost.median != NEVER]
        missed = [(batch, cost.budget) for batch, cost in own.items() if cost.median == NEVER]
        early = [(batch, spent) for batch, spent in reached if spent.steps <= own[batch].first.steps]
        yield Line(marks(reached), {"label": rule, "linewidth": 1.5, **look})
        yield Line(marks(missed + early), {"linestyle": "", "markerfacecolor": "white", **look})
        perfect = [(batch, _perfect(found, (model, batch, rule))) for batch in batches]
        ideal = [(batch, spent) for batch, spent in perfect if spent]
        if place == 0 and ideal:
            look = {"linestyle": "--", "color": "dimgray", "linewidth": 1, "label": "perfect scaling"}
            yield Line(marks(ideal), look)
