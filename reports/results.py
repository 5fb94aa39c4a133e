"""The results of a study by cell: its tables, and its accuracies by target batch size with intervals."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from pandas.core.groupby import DataFrameGroupBy

from reports import canvas
from reports.canvas import Line, Mark
from reports.comparisons import answers
from reports.content import Picture, Table
from reports.prose import accuracy_text, axis_words, learning_rate_text
from reports.statistics import Interval, accuracy_interval, wilson_interval
from reports.study_data import StudyData
from search_spaces.space import GRID
from search_spaces.trial_config import epoch_text

_EPOCHS = {"test_acc": "best", "last_test_acc": "last"}  # metric -> whose predictions it comes from
_SAME_EXAMPLES = (
    " All trials are tested on the same examples, so overlapping bars do not mean that a difference is "
    "absent: the verdicts compare example by example."
)
_SELECTED = " The epoch was selected on this split: its val_acc is too high, and no interval is right."
_PANEL, _BESIDE_PANELS = 2.2, 1.1  # inches of height of the first picture: each panel, axis and legend
_UNKNOWN = Interval(math.nan, math.nan)


def results_frame(study: StudyData) -> pd.DataFrame:
    """``results.csv``: a row per cell in reading order, NaN for results that its trial still lacks."""
    frame = study.cells[["scaling_rule", "model", "target_batch_size", "seed", "learning_rate"]].copy()
    for name in ("best_val_acc", "best_epoch", "best_step", "best_examples", "test_acc", "last_test_acc"):
        frame[name] = study.metric(name)
    frame["run_id"] = study.of_trials(lambda trial: trial.run_id)
    frame["trial_hash"] = study.cells["trial_hash"]
    for name in _EPOCHS:
        ends = [_of_one(value, study.plan.dataset.sizes["test"]) for value in frame[name]]
        columns = [f"{name}_low", f"{name}_high"]
        frame[columns] = pd.DataFrame(ends, frame.index, columns, dtype=float)
    for metric in _further_metrics(study):
        for name in (f"test_{metric}", f"last_test_{metric}"):
            frame[name] = study.metric(name)
    return frame


def _further_metrics(study: StudyData) -> list[str]:
    """The study's metrics beside the loss and the accuracy."""
    return [name for name in study.plan.metrics if name not in ("loss", "acc")]


def _of_one(accuracy: float, examples: int) -> Interval:
    """The interval of one training's accuracy on this number of examples."""
    if math.isnan(accuracy):
        return _UNKNOWN
    return wilson_interval(round(accuracy * examples), examples)


def result_tables(study: StudyData, compact: bool = False) -> list[Table]:
    """A table per scaling rule; in a ``compact`` one, for terminals, only test_acc keeps its interval."""
    frame, examples = results_frame(study), study.plan.dataset.sizes["test"]
    with_interval = partial(_accuracy_text, examples=examples)
    epochs = ["" if math.isnan(epoch) else f" (epoch {epoch_text(epoch)})" for epoch in frame["best_epoch"]]
    shown = {
        "model": frame["model"],
        "target batch size": frame["target_batch_size"],
        "seed": frame["seed"],
        "learning rate": frame["learning_rate"].map(learning_rate_text),
        "val_acc@best epoch": frame["best_val_acc"].map(accuracy_text) + epochs,
        "test_acc": frame["test_acc"].map(with_interval),
        "last-epoch test_acc": frame["last_test_acc"].map(accuracy_text if compact else with_interval),
    }
    for metric in _further_metrics(study):
        shown[f"test_{metric}"] = frame[f"test_{metric}"].map(accuracy_text)
        shown[f"last-epoch test_{metric}"] = frame[f"last_test_{metric}"].map(accuracy_text)
    if not study.has_several_seeds:
        del shown["seed"]
    note = (
        "In brackets: Wilson 95 % intervals. val_acc has none: its highest value chose the epoch, and is "
        "too high."
    )
    return [
        Table.of_frame(f"scaling rule: {rule}", own, note)
        for rule, own in pd.DataFrame(shown).groupby(frame["scaling_rule"], sort=False)
    ]


def _accuracy_text(value: float, examples: int) -> str:
    """The accuracy on this number of examples, with its interval."""
    if math.isnan(value):
        return accuracy_text(value)
    low, high = _of_one(value, examples)
    return f"{accuracy_text(value)} [{low:.3f}, {high:.3f}]"


def seed_spread_table(study: StudyData) -> Table:
    """How far the trainings of a cell lie apart, beside the scatter due to test examples alone."""
    accuracy = study.of_trials(lambda trial: trial.correct().mean() if trial.is_tested else math.nan)
    spread = by_cell(study, accuracy=accuracy)["accuracy"].agg(seeds="count", mean="mean", deviation="std")
    spread = spread[spread["seeds"] > 1]
    error = np.sqrt(spread["mean"] * (1 - spread["mean"]) / study.plan.dataset.sizes["test"])
    shown = {
        "seeds": spread["seeds"],
        "mean test_acc": spread["mean"].map(accuracy_text),
        "standard deviation over seeds (points)": (100 * spread["deviation"]).map("{:.1f}".format),
        "standard error over test examples (points)": (100 * error).map("{:.1f}".format),
    }
    note = (
        "Two kinds of chance, apart: another seed gives another training, another test split gives "
        "other examples. The standard error is that of one training's accuracy."
    )
    return Table.of_frame("Seeds and test examples", pd.DataFrame(shown).reset_index(), note)


def by_cell(study: StudyData, **values: pd.Series) -> DataFrameGroupBy:
    """The values of trials, grouped by cell with all its seeds."""
    cells = [study.cells[axis].rename(axis_words(axis)) for axis in GRID]
    return pd.DataFrame(values, dtype=float).groupby(cells, sort=False)


@dataclass(frozen=True)
class _Accuracy(Mark):
    """The mean accuracy of a cell over its seeds, with an interval that may be NaN."""

    scaling_rule: str = ""
    by_seed: Sequence[float] = ()


def _accuracies(study: StudyData, model: str, metric: str) -> list[_Accuracy]:
    """The cells of a model that have the metric, by target batch size; a test metric needs a test."""
    found = []
    for (name, batch, rule), names in study.points.items():
        trials = [study.trials[each] for each in names if each in study.trials]
        ended = [trial for trial in trials if metric not in _EPOCHS or trial.is_tested]
        by_seed = [trial.metrics[metric] for trial in ended if metric in trial.metrics]
        if name == model and by_seed:
            mean = fmean(by_seed)
            found.append(_Accuracy(batch, mean, _interval(study, metric, names, mean), rule, by_seed))
    return sorted(found, key=lambda cell: cell.target_batch_size)


def _interval(study: StudyData, metric: str, trials: Sequence[str], accuracy: float) -> Interval:
    """In a study of several seeds, unknown if one training diverged or fewer than two are tested."""
    which = _EPOCHS.get(metric)
    if which is None or not study.has_several_seeds:
        examples = study.plan.dataset.sizes["test" if which else "val"]
        return wilson_interval(min(accuracy * examples, examples), examples)
    tested = answers(study, trials, which)
    if len(tested) < 2 or study.diverged.intersection(trials):
        return _UNKNOWN
    return accuracy_interval(tested)


def _bars(study: StudyData, metric: str, cells: Sequence[_Accuracy], dots: str = "") -> str:
    """The part of a caption about the bars and, if there are several seeds, about the points."""
    if not study.has_several_seeds:
        return f"Bars: Wilson 95 % intervals.{_SAME_EXAMPLES}"
    if metric in _EPOCHS:
        about = "95 % intervals over seeds and test examples together, from each cell's own trainings"
    else:
        about = "Wilson 95 % intervals, of the val examples alone, not of the seeds"
    if _UNKNOWN in [cell.interval for cell in cells]:
        about += "; none where some training diverged or only one has been tested"
    return f"Bars: {about}; points: means over seeds{dots}.{_SAME_EXAMPLES}"


def answer_picture(study: StudyData) -> Picture | None:
    """Test accuracy by target batch size, a line per rule, a panel per model; None before any test."""
    found = {model: _accuracies(study, model, "test_acc") for model in study.axis_values("model")}
    tested = {model: cells for model, cells in found.items() if cells}
    if not tested:
        return None
    drawn, rules = (
        canvas.figure(canvas.SIZE[0], _PANEL * len(tested) + _BESIDE_PANELS),
        study.axis_values("scaling_rule"),
    )
    panels = drawn.subplots(len(tested), sharex=True, sharey=True, squeeze=False).flat
    for axes, (model, cells) in zip(panels, tested.items(), strict=True):
        lines = [
            Line(
                [cell for cell in cells if cell.scaling_rule == rule],
                {"label": rule, "capsize": 3, "linewidth": 1.5, **canvas.line_look(place)},
                place,
                len(rules),
            )
            for place, rule in enumerate(rules)
        ]
        canvas.draw_by_batch(axes, study.axis_values("target_batch_size"), lines, "test accuracy")
        axes.set_title(canvas.plain(model), fontsize="medium", loc="left")
        axes.label_outer()
    canvas.legend_below(drawn, axes, 3, title="scaling rule", fontsize="small", title_fontsize="small")
    return Picture(
        name="test_accuracy",
        title="test accuracy by target batch size",
        caption="The best epoch of each trial. " + _bars(study, "test_acc", list(chain(*tested.values()))),
        alt=f"Test accuracy of {', '.join(tested)} by target batch size, a line per scaling rule, with "
        "95 % intervals; the numbers are in the tables.",
        png=canvas.png(drawn),
    )


def accuracy_pictures(study: StudyData) -> Iterator[Picture]:
    """Per model: test accuracy of the best and the last epoch, and val_acc at the best epoch."""
    for model in study.axis_values("model"):
        for metrics, name, what in (
            (["test_acc", "last_test_acc"], "test_acc", "test accuracy"),
            (["best_val_acc"], "val_acc_at_best_epoch", "val_acc@best epoch"),
        ):
            found = {metric: _accuracies(study, model, metric) for metric in metrics}
            if found[metrics[0]]:
                yield _accuracy_picture(study, model, found, name, what)


def _accuracy_picture(
    study: StudyData, model: str, found: Mapping[str, Sequence[_Accuracy]], name: str, what: str
) -> Picture:
    """The first metric is drawn with filled markers, the second with open ones."""
    (drawn, axes), first = canvas.model_figure(), next(iter(found))
    batches, rules = study.axis_values("target_batch_size"), study.axis_values("scaling_rule")
    markers = {rule: canvas.MARKERS[number % len(canvas.MARKERS)] for number, rule in enumerate(rules)}
    slots, lines = list(product(rules, found)), []
    for place, (rule, metric) in enumerate(slots):
        for cell in (each for each in found[metric] if each.scaling_rule == rule):
            colour = canvas.batch_colour(cell.target_batch_size, batches)
            look: dict[str, Any] = {"fmt": markers[rule], "markersize": 7, "capsize": 3, "linewidth": 1.2}
            look |= {"color": colour, "markerfacecolor": colour if metric == first else "white"}
            lines.append(Line([cell], look, place, len(slots)))
            if len(cell.by_seed) > 1:
                dots = [Mark(cell.target_batch_size, value) for value in cell.by_seed]
                look = {"linestyle": "", "marker": ".", "color": "black", "markersize": 3, "alpha": 0.6}
                lines.append(Line(dots, look, place, len(slots)))
    for rule in rules:
        axes.plot([], [], markers[rule], color="dimgray", label=rule, markersize=7)
    if len(found) > 1:
        axes.plot([], [], "o", color="dimgray", label="best epoch (filled)")
        axes.plot([], [], "o", color="dimgray", markerfacecolor="white", label="last epoch (open)")
    canvas.draw_by_batch(axes, batches, lines, f"{what} (fraction correct)")
    return canvas.model_picture(
        drawn,
        model,
        name,
        f"{what} by target batch size",
        caption=_bars(study, first, found[first], ", each seed a dot")
        + ("" if first in _EPOCHS else _SELECTED),
        alt=f"{what} of {model} by target batch size and scaling rule, with 95 % intervals; "
        "the numbers are in the tables.",
        columns=max(2, len(rules)),
        legend="",
    )
