"""What the pictures share: colours, panels by target batch size, legends, a model's figure, PNG."""

import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import ArrayLike

from reports.content import Picture
from reports.prose import slug
from reports.statistics import Interval

# Okabe and Ito 2008, told apart by colour-blind readers; yellow is left out, too pale on white
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "os^DvP"
SIZE = (5.4, 4.3)  # inches: one picture fills a phone, two stand side by side on a desktop
_DPI = 150
_BESIDE = 0.14  # octaves between the markers that stand side by side at one batch size
_LIGHTEST = 0.82  # of viridis, whose order the colour-blind see too; its yellow is too pale


def figure(width: float, height: float) -> Figure:
    """An empty figure of this many inches that keeps its texts apart."""
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def batch_colour(target_batch_size: int, batches: Sequence[int]) -> Any:
    """The colour of a target batch size in every picture: dark for the smallest, light for the largest."""
    step = _LIGHTEST / max(1, len(batches) - 1)
    return colormaps["viridis"](step * sorted(batches).index(target_batch_size))


def line_look(place: int) -> dict[str, Any]:
    """Colour and marker of line number ``place``, from 0."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def plain(text: str) -> str:
    """The text with escaped dollar signs: matplotlib would typeset the part between two of them."""
    return text.replace("$", r"\$")


def draw_points(
    axes: Axes, x: ArrayLike, y: ArrayLike, low: ArrayLike, high: ArrayLike, **style: Any
) -> None:
    """Draw points with intervals from ``low`` to ``high`` as bars."""
    below, above = np.subtract(y, low), np.subtract(high, y)
    axes.errorbar(x, y, yerr=np.maximum(0, [below, above]), **style)


@dataclass(frozen=True)
class Mark:
    """A value at a target batch size; its interval is drawn as a bar. In a line all have one, or none."""

    target_batch_size: int
    value: float
    interval: Interval | None = None


class Line(NamedTuple):
    """Marks that look alike; ``look`` holds matplotlib's arguments, ``place`` keeps lines apart."""

    marks: Sequence[Mark]
    look: Mapping[str, Any]
    place: int = 0  # from 0, among ``places`` lines side by side at a batch size
    places: int = 1

    def x(self, batch: int) -> float:
        return batch * 2 ** (_BESIDE * (self.place - (self.places - 1) / 2))


def draw_by_batch(axes: Axes, batches: Sequence[int], lines: Iterable[Line], label: str) -> None:
    """Draw lines over the target batch sizes, which are the only ticks; ``label`` names the values."""
    plain_axes(axes)
    for line in lines:
        x, y = [line.x(each.target_batch_size) for each in line.marks], [each.value for each in line.marks]
        bars = [each.interval for each in line.marks if each.interval]
        if bars:
            draw_points(axes, x, y, *zip(*bars, strict=True), **line.look)
        else:
            axes.plot(x, y, **line.look)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(batches)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{batch:,}" for batch in sorted(batches)])
    axes.set_xlabel("target batch size (examples per optimizer step)")
    axes.set_ylabel(label)


def plain_axes(axes: Axes) -> None:
    """A faint grid, and no frame above and on the right."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(drawn: Figure, axes: Axes, columns: int, **style: Any) -> None:
    """A legend under the axes, so that it covers nothing; each label once."""
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(map(plain, labels), handles, strict=True))  # seeds of one cell look the same
    drawn.legend(
        by_label.values(),
        by_label.keys(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        **style,
    )


def model_figure() -> tuple[Figure, Axes]:
    """The figure of one model, for ``model_picture``."""
    drawn = figure(*SIZE)
    axes = drawn.add_subplot()
    plain_axes(axes)
    return drawn, axes


def model_picture(
    drawn: Figure,
    model: str,
    name: str,
    title: str,
    *,
    caption: str,
    alt: str,
    columns: int = 3,
    legend: str = "target batch size · scaling rule",
) -> Picture:
    """The picture of a model, with its title and its legend."""
    (axes,), title = drawn.axes, f"{model}: {title}"
    axes.set_title(plain(title), fontsize="medium", loc="left")
    sizes = {"fontsize": "small", "title_fontsize": "small", "handlelength": 3}
    legend_below(drawn, axes, columns, title=legend, **sizes)
    name = f"{slug(model)}_{name}"
    return Picture(name=name, title=title, caption=caption, alt=alt, png=png(drawn))


def drawn_by_pyplot(
    size: tuple[float, float], draw: Callable[..., Any], *arguments: Any, **named: Any
) -> Figure:
    """The figure of the axes that ``draw`` returns, on white and without title; pyplot has closed it."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each of the functions calls itself experimental
        axes = np.ravel(draw(*arguments, **named))
    found = axes[0].figure
    plt.close(found)
    found.set_layout_engine("none")
    found.set_size_inches(*size)
    found.suptitle("")
    for each in found.axes:
        _restyle(each)
    return found


def _restyle(axes: Axes) -> None:
    for place in ("left", "center"):
        axes.set_title("", loc=place)
    axes.set_facecolor("white")
    axes.grid(alpha=0.25, linewidth=0.6, color="grey")
    axes.spines[["left", "bottom"]].set_color("black")
    axes.tick_params(labelsize="small", colors="black")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color("black")
    for number, line in enumerate(axes.get_lines()):
        line.set_color(COLOURS[(number + 1) % len(COLOURS)])
    if legend := axes.get_legend():
        legend.remove()


def png(drawn: Figure, cropped: bool = False) -> bytes:
    """The figure as PNG, the same bytes each time; ``cropped``: fitted to all that is drawn."""
    out, metadata = io.BytesIO(), {"Software": None}
    with warnings.catch_warnings():
        # a review may hold characters that the font lacks; a box stands in for them
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        if cropped:
            drawn.savefig(out, format="png", dpi=_DPI, bbox_inches="tight", metadata=metadata)
        else:  # draws once, not twice
            FigureCanvasAgg(drawn).print_png(out, metadata=metadata)
    return out.getvalue()
