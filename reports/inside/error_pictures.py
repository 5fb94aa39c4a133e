"""Pictures of errors: the classifier's inputs in 2-D with decision regions, and error rates."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.canvas import COLOURS, MARKERS, batch_colour, figure, plain, png, set_title
from reports.content import Picture
from reports.inside.embedding import FEWEST_FOR_TSNE, decision_regions, project
from reports.inside.error_rates import ErrorRate

_PANEL, _LEGEND_COLUMN = 3.4, 2.4  # inches
_TINT = 0.22  # opacity of the background


@dataclass(frozen=True)
class Landscape:
    """One model's view of a sample of test texts."""

    features: np.ndarray  # (n, hidden)
    labels: np.ndarray  # (n,)
    predictions: np.ndarray  # (n,)


def landscape_picture(
    landscapes: Mapping[tuple[str, int], Landscape], label_names: Sequence[str], rule: str
) -> Picture:
    """A row per model, a column per target batch size."""
    models = list(dict.fromkeys(model for model, _ in landscapes))
    sizes = sorted({size for _, size in landscapes})
    width = max(_LEGEND_COLUMN * 2, _PANEL * len(sizes) + 0.4)
    drawn = figure(width, (_PANEL + 0.4) * len(models) + 1.2)
    grid = drawn.subplots(len(models), len(sizes), squeeze=False)
    for axes, (model, size) in zip(grid.flat, itertools.product(models, sizes), strict=True):
        _panel(axes, landscapes.get((model, size)), f"{model}\ntarget batch size {size}")
    columns = min(len(label_names), int(width / _LEGEND_COLUMN))
    handles = _legend(label_names)
    drawn.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    count = len(next(iter(landscapes.values())).labels)
    method = "PCA" if count < FEWEST_FOR_TSNE else "t-SNE"
    title = f"What the classifiers see of {count} test texts, rule {rule} ({method})"
    set_title(drawn, title)
    return Picture(
        name="landscape",
        title=title,
        caption=f"Each point is a test text: the classifier's input, brought to 2-D by {method}, "
        "for each model on its own, so positions cannot be compared between panels and axes have no "
        "unit. Dots are right, crosses are wrong; the colour is the label. The background is the class "
        "predicted for the nearest text: an interpolation in 2-D, not the classifier's own boundary.",
        alt=f"Scatter plots of {count} test texts for {', '.join(models)} at target batch sizes "
        f"{', '.join(map(str, sizes))}; wrong predictions are crosses.",
        png=png(drawn),
    )


def _panel(axes: Axes, landscape: Landscape | None, title: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if landscape is None:
        axes.set_title(plain(f"{title}\nnot tested"), fontsize=9)
        axes.set_axis_off()
        return
    wrong = landscape.labels != landscape.predictions
    axes.set_title(plain(f"{title}: {wrong.sum()} of {len(wrong)} wrong"), fontsize=9)
    points = project(landscape.features)
    regions = decision_regions(points, landscape.predictions)
    colours = np.array([_colour(i) for i in range(1 + max(landscape.labels.max(), regions.classes.max()))])
    axes.imshow(
        regions.classes,
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        extent=regions.extent,
        origin="lower",
        aspect="auto",
        alpha=_TINT,
        interpolation="nearest",
    )
    fill = colours[landscape.labels]
    (x, y), (wrong_x, wrong_y) = points[~wrong].T, points[wrong].T
    axes.scatter(x, y, c=fill[~wrong], s=9, marker="o", linewidths=0, alpha=0.7)
    axes.scatter(wrong_x, wrong_y, c=fill[wrong], s=42, marker="X", edgecolors="black", linewidths=0.7)


def _legend(label_names: Sequence[str]) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = []
    for number, name in enumerate(label_names):
        colour = _colour(number)
        handles.append(_mark("o", colour, "none", 5, f"label {name}, right"))
        handles.append(_mark("X", colour, "black", 8, f"label {name}, wrong"))
        handles.append(Patch(color=colour, alpha=_TINT, label=plain(f"predicted {name}")))
    return handles


def _mark(marker: str, colour: str, edge: str, size: int, label: str) -> Line2D:
    return Line2D([], [], ls="", marker=marker, color=colour, mec=edge, markersize=size, label=plain(label))


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def rates_picture(rows: Sequence[ErrorRate], rule: str) -> Picture:
    """Error rates at one rule: a row of panels per model, by words and by negation."""
    rows = [row for row in rows if row.scaling_rule == rule]
    models = list(dict.fromkeys(row.model for row in rows))
    sizes = sorted({row.target_batch_size for row in rows})
    properties = {"words": "words in the review", "negation": "negation in the review"}
    drawn = figure(9.5, 3.2 * len(models) + 0.9)
    grid = drawn.subplots(len(models), 2, squeeze=False, sharey=True, width_ratios=(2, 1))
    for axes, (model, name) in zip(grid.flat, itertools.product(models, properties), strict=True):
        own = [row for row in rows if (row.model, row.property) == (model, name)]
        _rates_panel(axes, own, sizes)
        axes.set_title(plain(model), fontsize=10)
        axes.set_xlabel(properties[name])
    for axes in grid[:, 0]:
        axes.set_ylabel("error rate (%)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=min(4, len(sizes)), frameon=False)
    title = f"Error rate by review length and negation, rule {rule}"
    set_title(drawn, title)
    return Picture(
        name="error_rates",
        title=title,
        caption="Share of test texts that the best-epoch model gets wrong, with 95 % Wilson intervals. "
        "Lengths are quartiles of the test split; n counts texts. The target batch sizes are tested on "
        "the same texts, so overlapping bars do not mean that a difference is absent.",
        alt=f"Error rates with intervals for {', '.join(models)} at target batch sizes "
        f"{', '.join(map(str, sizes))}, by review length and by negation.",
        png=png(drawn),
    )


def _rates_panel(axes: Axes, rows: Sequence[ErrorRate], sizes: Sequence[int]) -> None:
    groups = list(dict.fromkeys(row.group for row in rows))
    counts = {row.group: row.texts for row in rows}
    for number, size in enumerate(sizes):
        own = [row for row in rows if row.target_batch_size == size]
        x = [groups.index(row.group) + (number - (len(sizes) - 1) / 2) * 0.6 / len(sizes) for row in own]
        rate = np.array([row.error_rate for row in own])
        ends = [rate - [row.low for row in own], [row.high for row in own] - rate]
        axes.errorbar(
            x,
            100 * rate,
            yerr=100 * np.clip(ends, 0, None),
            fmt=MARKERS[number % len(MARKERS)],
            color=batch_colour(size, sizes),
            capsize=2,
            label=f"target batch size {size}",
        )
    axes.set_xticks(range(len(groups)), [f"{group}\nn = {counts[group]:,}" for group in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
