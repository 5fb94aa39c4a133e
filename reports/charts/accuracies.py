"""Accuracy by target batch size and scaling rule, with 95 % intervals."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

from reports.canvas import plain, png
from reports.charts.style import Look, batch_axis, legend_below, new_figure
from reports.content import Picture
from reports.evidence.statistics import wilson_interval
from reports.prose import slug
from reports.study_data import StudyData, TrialData

_SPREAD = 0.07  # how far apart the rules' markers stand at one batch size, in octaves × 2
_INTERVALS = (
    "Bars: Wilson 95 % intervals{seeds}. All trials are tested on the same examples, so overlapping bars "
    "do not mean that a difference is absent: the verdicts compare example by example."
)


@dataclass(frozen=True)
class _Accuracy:
    """A metric of trials, and how many examples it was counted over."""

    metric: str
    split: str
    filled: bool
    label: str


BEST_TEST = _Accuracy("test_acc", "test", True, "best epoch")
LAST_TEST = _Accuracy("last_test_acc", "test", False, "last epoch")
BEST_VAL = _Accuracy("best_val_acc", "val", True, "best epoch")


def accuracy_pictures(study: StudyData) -> Iterator[Picture]:
    """Per model: test accuracy of the best and the last epoch, and val_acc at the best epoch."""
    for model in study.axis_values("model"):
        if _points(study, model, BEST_TEST):
            yield _picture(study, model, (BEST_TEST, LAST_TEST), "test_acc", "test accuracy")
        if _points(study, model, BEST_VAL):
            yield _picture(study, model, (BEST_VAL,), "val_acc_at_best_epoch", "val_acc@best epoch")


def _points(study: StudyData, model: str, accuracy: _Accuracy) -> dict[tuple[str, int], list[TrialData]]:
    """(rule, target batch size) -> the trials, one a seed, that have the metric."""
    found: dict[tuple[str, int], list[TrialData]] = {}
    for cell in study.cells:
        trial = study.trial(cell)
        if cell.model == model and trial and accuracy.metric in trial.metrics:
            found.setdefault((cell.scaling_rule, cell.target_batch_size), []).append(trial)
    return found


def _picture(
    study: StudyData, model: str, accuracies: Sequence[_Accuracy], name: str, what: str
) -> Picture:
    look, seeds = Look.of(study), len(study.axis_values("seed"))
    figure, axes = new_figure()
    position = _positions(look, accuracies)
    for accuracy in accuracies:
        examples = int(study.plan["dataset"]["sizes"][accuracy.split])
        for (rule, batch), trials in _points(study, model, accuracy).items():
            values = [trial.metrics[accuracy.metric] for trial in trials]
            colour = look.colour(batch)
            style = {
                "fmt": look.marker(rule),
                "color": colour,
                "markerfacecolor": colour if accuracy.filled else "white",
            }
            _draw(axes, position(rule, accuracy, batch), values, examples, style)
    batch_axis(axes, look.batches)
    _legend_entries(axes, look, accuracies)
    axes.set_ylabel(f"{what} (fraction correct)")
    axes.set_title(plain(f"{model}: {what} by target batch size"), fontsize="medium", loc="left")
    legend_below(figure, axes, columns=max(2, len(look.rules)), title="")
    caption = _INTERVALS.format(
        seeds="; with several seeds their mean, and each seed as a dot" * (seeds > 1)
    )
    return Picture(
        name=f"{slug(model)}_{name}",
        title=f"{model}: {what}",
        caption=caption,
        alt=f"{what} of {model} by target batch size and scaling rule, with 95 % intervals; "
        "the numbers are in the tables.",
        png=png(figure),
    )


def _positions(look: Look, accuracies: Sequence[_Accuracy]) -> Callable[[str, _Accuracy, int], float]:
    """Where a marker stands: beside its target batch size, so that no two lie on each other."""
    slots = [(rule, accuracy) for rule in look.rules for accuracy in accuracies]

    def position(rule: str, accuracy: _Accuracy, batch: int) -> float:
        offset = slots.index((rule, accuracy)) - (len(slots) - 1) / 2
        return batch * 2 ** (2 * _SPREAD * offset)

    return position


def _draw(axes: Axes, x: float, values: Sequence[float], examples: int, style: dict[str, Any]) -> None:
    mean = fmean(values)
    low, high = wilson_interval(min(mean * examples, examples), examples)
    bar = [[max(0, mean - low)], [max(0, high - mean)]]
    axes.errorbar([x], [mean], yerr=bar, markersize=7, capsize=3, linewidth=1.2, **style)
    if len(values) > 1:
        axes.plot([x] * len(values), values, ".", color="black", markersize=3, alpha=0.6)


def _legend_entries(axes: Axes, look: Look, accuracies: Sequence[_Accuracy]) -> None:
    for rule in look.rules:
        axes.plot([], [], look.marker(rule), color="dimgray", label=rule, markersize=7)
    for accuracy in accuracies if len(accuracies) > 1 else ():
        face, word = ("dimgray", "filled") if accuracy.filled else ("white", "open")
        label = f"{accuracy.label} ({word})"
        axes.plot([], [], "o", color="dimgray", markerfacecolor=face, label=label)
