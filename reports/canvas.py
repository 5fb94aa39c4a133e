"""What the pictures share: colours and shapes, lines, points with intervals, PNG bytes."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reports.statistics import Interval

# Okabe and Ito 2008, told apart by colour-blind readers; yellow is left out, too pale on white
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_DPI = 150
_LIGHTEST = 0.82  # of viridis: ordered, safe for the colour-blind, without its yellow
_SMOOTHING = 25  # a smoothed line is averaged over this fraction of its points


def figure(width: float, height: float) -> Figure:
    """An empty figure of this many inches that keeps its texts apart."""
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def batch_colour(target_batch_size: int, batches: Sequence[int]) -> Any:
    """The colour of a target batch size in every picture: dark for the smallest, light for the largest."""
    step = _LIGHTEST / max(1, len(batches) - 1)
    return colormaps["viridis"](step * sorted(batches).index(target_batch_size))


def plain(text: str) -> str:
    """The text as it is: matplotlib would typeset what stands between two dollar signs."""
    return text.replace("$", r"\$")


def draw_line(axes: Axes, line: pd.Series, smooth: bool = False, **style: Any) -> None:
    """Draw a series over its index; a smoothed one as a running mean over the faint original."""
    if smooth:
        axes.plot(line.index, line, color=style["color"], alpha=0.18, linewidth=0.8)
        line = line.rolling(max(1, len(line) // _SMOOTHING), center=True, min_periods=1).mean()
    axes.plot(line.index, line, linewidth=1.7, **style)


def draw_points(
    axes: Axes, x: Sequence[float], y: Sequence[float], intervals: Sequence[Interval], **style: Any
) -> None:
    """Draw points with their intervals as bars."""
    below = [max(0, value - interval.low) for value, interval in zip(y, intervals, strict=True)]
    above = [max(0, interval.high - value) for value, interval in zip(y, intervals, strict=True)]
    axes.errorbar(x, y, yerr=[below, above], **style)


def legend_below(drawn: Figure, axes: Axes, columns: int, **style: Any) -> None:
    """A legend under the axes, where it can cover nothing; each label once."""
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(map(plain, labels), handles, strict=True))  # seeds of one cell look the same
    handles, labels = list(by_label.values()), list(by_label)
    drawn.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, **style)


def png(drawn: Figure) -> bytes:
    """The figure as PNG, the same bytes each time."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        # a review may hold characters that the font lacks; a box stands in for them
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        # not print_figure, which draws everything twice
        FigureCanvasAgg(drawn).print_png(out, metadata={"Software": None})
    return out.getvalue()
