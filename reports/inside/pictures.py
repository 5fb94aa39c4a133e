"""Pictures of what the models see: attention maps, the classifier's inputs in 2-D, error rates."""

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier

from reports.canvas import COLOURS, batch_colour, draw_points, figure, legend_below, plain, png
from reports.content import Picture
from reports.inside.attention import Reading, View
from reports.inside.mistakes import Sentence
from reports.prose import shorten

MOST_TOKENS = 24
_TOKEN_LENGTH, _LABEL_LENGTH = 12, 20  # characters
_INCHES_PER_TOKEN = 0.15
_PANEL, _LEGEND_COLUMN = 3.4, 2.4  # inches
_MARKERS = "osD^vPX*"
_TINT = 0.22  # opacity of the background
_TITLE_LETTERS_PER_INCH = 11
_SEED = 0
_PERPLEXITY = 30
_GRID_POINTS = 200  # along each side
_MARGIN = 0.05  # of the range, so that no point lies on the frame


def _panels(
    drawn: Figure, shown: Mapping[tuple[str, int], Any], draw: Callable[[Axes, Any], str]
) -> np.ndarray:
    """A row of panels per model, a column per target batch size; ``draw`` returns the rest of the title."""
    models, sizes = _places(shown)
    grid = drawn.subplots(len(models), len(sizes), squeeze=False)
    for axes, (model, size) in zip(grid.flat, itertools.product(models, sizes), strict=True):
        found = shown.get((model, size))
        if found is None:
            axes.set_axis_off()
        rest = "\nnot tested" if found is None else draw(axes, found)
        axes.set_title(plain(f"{model}\ntarget batch size {size}{rest}"), fontsize=9)
    return grid


def _places(shown: Mapping[tuple[str, int], Any]) -> tuple[list[str], list[int]]:
    """The models in reading order, and the target batch sizes ascending."""
    return list(dict.fromkeys(model for model, _ in shown)), sorted({size for _, size in shown})


def attention_picture(
    name: str,
    sentence: Sentence,
    readings: Mapping[tuple[str, int], Reading],
    label_names: Sequence[str],
    view: View,
) -> Picture:
    """One sentence as each model reads it; ``readings`` are by model and target batch size."""
    models, sizes = _places(readings)
    weights = [attention_map(reading)[1] for reading in readings.values()]
    side = max(2.4, _INCHES_PER_TOKEN * max(len(shown) for shown in weights))
    drawn = figure((side + 0.35) * len(sizes) + 1.8, (side + 1.4) * len(models) + 0.6)
    norm = PowerNorm(0.5, 0, max(float(shown.max()) for shown in weights))

    def draw(axes: Axes, reading: Reading) -> str:
        tokens, weights = attention_map(reading)
        axes.imshow(weights, cmap="viridis", norm=norm, interpolation="nearest")
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=7)
        axes.tick_params(length=2)
        label = shorten(label_names[reading.prediction], _LABEL_LENGTH)
        return f"\npredicts {label} ({reading.probability:.2f})"

    grid = _panels(drawn, readings, draw)
    for row in grid:  # all panels of a row have the same tokens: the first panel names them
        first, *others = [axes for axes in row if axes.axison]
        first.set_ylabel("token that looks")
        for axes in others:
            axes.set_yticklabels([])
    for axes in grid[-1]:
        axes.set_xlabel("token looked at")
    bar = drawn.colorbar(ScalarMappable(norm, "viridis"), ax=grid, shrink=0.8, pad=0.01)
    bar.set_label("attention weight (colour follows its square root)")
    text, is_cut = shorten(sentence.text), any(len(r.tokens) > MOST_TOKENS for r in readings.values())
    cut = f" Shown are the first {MOST_TOKENS - 1} tokens and the last." if is_cut else ""
    return _finished(
        drawn,
        name,
        f"Attention, {view.where}, rule {view.rule}: {sentence.why}",
        f"“{text}” Each row is one token's attention in {view.where}; all panels share one colour scale."
        f"{cut}",
        f"Attention maps of {_listed(models, sizes)} for the sentence: {text}",
    )


def attention_map(reading: Reading) -> tuple[list[str], np.ndarray]:
    """A reading's first tokens and its last, on which attention often rests, and their weights.

    The weights are (shown, shown), a mean over heads; rows sum to less than 1 if tokens are left out.
    """
    shown, length = list(range(len(reading.tokens))), len(reading.tokens)
    if length > MOST_TOKENS:
        shown = [*shown[: MOST_TOKENS - 1], length - 1]
    tokens = [plain(shorten(reading.tokens[i], _TOKEN_LENGTH)) for i in shown]
    if length > MOST_TOKENS:
        tokens[-1] = f"… {tokens[-1]}"
    return tokens, reading.weights.mean(axis=0)[np.ix_(shown, shown)]


def project(features: np.ndarray) -> np.ndarray:
    """Features, (n, hidden), in two dimensions, (n, 2): the same features give the same picture.

    By t-SNE (van der Maaten and Hinton 2008), which keeps neighbours, but not distances or densities.
    """
    spread = features.astype(np.float64)
    spread -= spread.mean(axis=0)
    if len(features) < 2 or not np.abs(spread).max() > 0:
        return np.zeros((len(features), 2))
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=_SEED).fit_transform(spread)


def decision_regions(
    points: np.ndarray, predictions: np.ndarray
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The class predicted for the nearest of ``points``, (n, 2), on a grid; an interpolation in 2-D.

    Returns (rows, columns) with the lowest y first, and the grid's left, right, bottom and top.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.maximum(_MARGIN * (high - low), 1e-9)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    x, y = np.meshgrid(np.linspace(left, right, _GRID_POINTS), np.linspace(bottom, top, _GRID_POINTS))
    nearest = KNeighborsClassifier(n_neighbors=1).fit(points, predictions)
    classes = nearest.predict(np.column_stack([x.ravel(), y.ravel()])).reshape(x.shape)
    return classes, (left, right, bottom, top)


def landscape_picture(
    landscapes: Mapping[tuple[str, int], pd.DataFrame], label_names: Sequence[str], view: View
) -> Picture:
    """Where each classifier sees test texts: by model and target batch size, a row per text.

    The columns are ``x``, ``y``, ``label``, ``prediction`` and ``wrong``.
    """
    models, sizes = _places(landscapes)
    width = max(_LEGEND_COLUMN * 2, _PANEL * len(sizes) + 0.4)
    drawn = figure(width, (_PANEL + 0.4) * len(models) + 1.2)
    _panels(drawn, landscapes, _draw_landscape)
    columns = min(len(label_names), int(width / _LEGEND_COLUMN))
    handles = _landscape_legend(label_names)
    drawn.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    count = len(next(iter(landscapes.values())))
    return _finished(
        drawn,
        "landscape",
        f"What the classifiers see of {count} test texts, rule {view.rule} (t-SNE)",
        "Each point is a test text: the classifier's input, brought to 2-D by t-SNE, "
        "for each model on its own, so positions cannot be compared between panels and axes have no "
        "unit. Dots are right, crosses are wrong; the colour is the label. The background is the class "
        "predicted for the nearest text: an interpolation in 2-D, not the classifier's own boundary.",
        f"Scatter plots of {count} test texts for {_listed(models, sizes)}; wrong predictions are crosses.",
    )


def _draw_landscape(axes: Axes, texts: pd.DataFrame) -> str:
    axes.set_xticks([])
    axes.set_yticks([])
    classes, extent = decision_regions(texts[["x", "y"]].to_numpy(), texts["prediction"].to_numpy())
    colours = np.resize(COLOURS, 1 + max(texts["label"].max(), classes.max()))
    look: dict[str, Any] = {"origin": "lower", "aspect": "auto", "alpha": _TINT, "interpolation": "nearest"}
    look |= {"vmin": -0.5, "vmax": len(colours) - 0.5, "extent": extent}
    axes.imshow(classes, cmap=ListedColormap(colours), **look)
    right, wrong = texts[~texts["wrong"]], texts[texts["wrong"]]
    dots: dict[str, Any] = {"marker": "o", "s": 9, "linewidths": 0, "alpha": 0.7}
    crosses: dict[str, Any] = {"marker": "X", "s": 42, "linewidths": 0.7, "edgecolors": "black"}
    axes.scatter(right["x"], right["y"], c=colours[right["label"]], **dots)
    axes.scatter(wrong["x"], wrong["y"], c=colours[wrong["label"]], **crosses)
    return f": {len(wrong)} of {len(texts)} wrong"


def _landscape_legend(label_names: Sequence[str]) -> list[Artist]:
    handles: list[Artist] = []
    for colour, name in zip(np.resize(COLOURS, len(label_names)), map(plain, label_names), strict=True):
        for shape, edge, size, word in (("o", "none", 5, "right"), ("X", "black", 8, "wrong")):
            look: dict[str, Any] = {"ls": "", "marker": shape, "color": colour, "mec": edge}
            handles.append(Line2D([], [], markersize=size, label=f"label {name}, {word}", **look))
        handles.append(Patch(color=colour, alpha=_TINT, label=f"predicted {name}"))
    return handles


def rates_picture(rates: pd.DataFrame, view: View) -> Picture:
    """Error rates at one rule: a row of panels per model, by words and by negation."""
    rates = rates[rates["scaling_rule"] == view.rule]
    models, sizes = list(rates["model"].unique()), sorted(rates["target_batch_size"].unique())
    properties = {"words": "words in the review", "negation": "negation in the review"}
    drawn = figure(9.5, 3.2 * len(models) + 0.9)
    grid = drawn.subplots(len(models), 2, squeeze=False, sharey=True, width_ratios=(2, 1))
    for axes, (model, name) in zip(grid.flat, itertools.product(models, properties), strict=True):
        _draw_rates(axes, rates[(rates["model"] == model) & (rates["property"] == name)], sizes)
        axes.set_title(plain(model), fontsize=10)
        axes.set_xlabel(properties[name])
    for axes in grid[:, 0]:
        axes.set_ylabel("error rate (%)")
    legend_below(drawn, grid[0, 0], min(4, len(sizes)))
    return _finished(
        drawn,
        "error_rates",
        f"Error rate by review length and negation, rule {view.rule}",
        "Share of test texts that the best-epoch model gets wrong, with 95 % Wilson intervals. "
        "Lengths are quartiles of the test split; n counts texts. The target batch sizes are tested on "
        "the same texts, so overlapping bars do not mean that a difference is absent.",
        f"Error rates with intervals for {_listed(models, sizes)}, by review length and by negation.",
    )


def _draw_rates(axes: Axes, rates: pd.DataFrame, sizes: Sequence[int]) -> None:
    counts = rates.drop_duplicates("group").set_index("group")["texts"]
    places = {group: place for place, group in enumerate(counts.index)}
    for number, size in enumerate(sizes):
        own = rates[rates["target_batch_size"] == size]
        beside = (number - (len(sizes) - 1) / 2) * 0.6 / len(sizes)
        draw_points(
            axes,
            [places[group] + beside for group in own["group"]],
            *(100 * own[name] for name in ("error_rate", "low", "high")),
            fmt=_MARKERS[number % len(_MARKERS)],
            color=batch_colour(size, sizes),
            capsize=2,
            label=f"target batch size {size}",
        )
    axes.set_xticks(range(len(counts)), [f"{group}\nn = {count:,}" for group, count in counts.items()])
    axes.set_xlim(-0.5, len(counts) - 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)


def _listed(models: Sequence[str], sizes: Sequence[int]) -> str:
    return f"{', '.join(models)} at target batch sizes {', '.join(map(str, sizes))}"


def _finished(drawn: Figure, name: str, title: str, caption: str, alt: str) -> Picture:
    """The picture with its title, broken into lines that fit its width."""
    columns = int(_TITLE_LETTERS_PER_INCH * drawn.get_figwidth())
    drawn.suptitle(plain(textwrap.fill(title, columns)), fontsize=12)
    return Picture(name=name, title=title, caption=caption, alt=alt, png=png(drawn))
