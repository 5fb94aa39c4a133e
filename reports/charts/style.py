"""One look for all pictures: a colour per target batch size, a line and a marker per scaling rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from reports.canvas import batch_colour, figure, plain, png
from reports.content import Picture
from reports.prose import slug
from reports.study_data import StudyData, TrialData

SIZE = (5.4, 4.3)  # inches: one picture fills a phone, two stand side by side on a desktop
_LINES = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Look:
    """How the trials of a study are told apart, in every picture."""

    batches: tuple[int, ...]
    rules: tuple[str, ...]

    @classmethod
    def of(cls, study: StudyData) -> "Look":
        """The look of a study's grid."""
        return cls(tuple(sorted(study.axis_values("target_batch_size"))), _rules(study))

    def colour(self, target_batch_size: int) -> Any:
        """The colour of a target batch size."""
        return batch_colour(target_batch_size, self.batches)

    def line(self, rule: str) -> Any:
        """The dashes of a scaling rule."""
        return _LINES[self.rules.index(rule) % len(_LINES)]

    def marker(self, rule: str) -> str:
        """The marker of a scaling rule."""
        return _MARKERS[self.rules.index(rule) % len(_MARKERS)]

    def of_trial(self, trial: TrialData) -> dict[str, Any]:
        """Keywords for ``plot``; a trial that serves several rules is drawn as the first of them."""
        return {
            "color": self.colour(trial.target_batch_size),
            "linestyle": self.line(trial.scaling_rules[0]),
        }


def _rules(study: StudyData) -> tuple[str, ...]:
    return tuple(str(rule) for rule in study.axis_values("scaling_rule"))


def new_figure() -> tuple[Figure, Axes]:
    """One pair of axes with a light grid."""
    drawn = figure(*SIZE)
    axes = drawn.add_subplot()
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def legend_below(drawn: Figure, axes: Axes, columns: int, title: str) -> None:
    """A legend under the axes, where it can cover nothing; each label once."""
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))  # seeds of one cell look the same
    drawn.legend(
        list(by_label.values()),
        [plain(label) for label in by_label],
        loc="outside lower center",
        ncols=columns,
        title=title,
        frameon=False,
        fontsize="small",
        title_fontsize="small",
        handlelength=3,
    )


def trials_picture(
    drawn: Figure, axes: Axes, model: str, *, name: str, title: str, caption: str, alt: str
) -> Picture:
    """The finished picture of a model's trials: title and legend added, ``name`` made the model's."""
    axes.set_title(plain(f"{model}: {title}"), fontsize="medium", loc="left")
    legend_below(drawn, axes, columns=3, title="target batch size · scaling rule")
    return Picture(f"{slug(model)}_{name}", f"{model}: {title}", caption, alt, png(drawn))


def batch_axis(axes: Axes, batches: Sequence[int]) -> None:
    """A logarithmic axis whose only ticks are the grid's target batch sizes."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(batches)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{batch:,}" for batch in batches])
    axes.set_xlabel("target batch size (examples per optimizer step)")


def epoch_axis(axes: Axes) -> None:
    """Epochs, counted from 1: whole numbers only."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
