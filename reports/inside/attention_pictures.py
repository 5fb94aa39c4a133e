"""Attention maps of one sentence: a row per model, a column per target batch size, one colour scale."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm

from reports.canvas import figure, plain, png, set_title
from reports.content import Picture
from reports.inside.errors import shorten
from reports.inside.reloaded import Reading
from reports.inside.sentences import Sentence

MOST_TOKENS = 24
_TOKEN_LENGTH, _LABEL_LENGTH = 12, 20  # characters
_COLOUR_MAP = "viridis"
_INCHES_PER_TOKEN = 0.15


@dataclass(frozen=True)
class AttentionMap:
    """What is drawn of one reading: at most MOST_TOKENS tokens, the weights averaged over heads."""

    tokens: Sequence[str]
    weights: np.ndarray  # (shown, shown); rows sum to less than 1 where tokens are left out
    length: int  # tokens of the text
    heading: str

    @property
    def is_cut(self) -> bool:
        """Whether the text has more tokens than are shown."""
        return self.length > len(self.tokens)


def attention_map(reading: Reading, label_names: Sequence[str]) -> AttentionMap:
    """The first tokens of a reading and its last, which is where attention often rests."""
    length = len(reading.tokens)
    shown = list(range(length))
    if length > MOST_TOKENS:
        shown = [*shown[: MOST_TOKENS - 1], length - 1]
    tokens = [plain(shorten(reading.tokens[i], _TOKEN_LENGTH)) for i in shown]
    if length > MOST_TOKENS:
        tokens[-1] = f"… {tokens[-1]}"
    weights = reading.weights.mean(axis=0)[np.ix_(shown, shown)]
    label = shorten(label_names[reading.prediction], _LABEL_LENGTH)
    heading = f"predicts {label} ({reading.probability:.2f})"
    return AttentionMap(tokens, weights, length, heading)


def attention_picture(
    name: str,
    sentence: Sentence,
    maps: Mapping[tuple[str, int], AttentionMap],
    where: str,
    rule: str,
) -> Picture:
    """One picture; ``maps`` are by model and target batch size, in reading order."""
    models = list(dict.fromkeys(model for model, _ in maps))
    sizes = sorted({size for _, size in maps})
    side = max(2.4, _INCHES_PER_TOKEN * max(len(each.tokens) for each in maps.values()))
    drawn = figure((side + 0.35) * len(sizes) + 1.8, (side + 1.4) * len(models) + 0.6)
    grid = drawn.subplots(len(models), len(sizes), squeeze=False)
    norm = PowerNorm(0.5, 0, max(float(each.weights.max()) for each in maps.values()))
    for axes, (model, size) in zip(grid.flat, itertools.product(models, sizes), strict=True):
        _panel(axes, maps.get((model, size)), f"{model}\ntarget batch size {size}", norm)
    _label_axes(grid)
    bar = drawn.colorbar(ScalarMappable(norm, _COLOUR_MAP), ax=grid, shrink=0.8, pad=0.01)
    bar.set_label("attention weight (colour follows its square root)")
    title = f"Attention, {where}, rule {rule}: {sentence.why}"
    set_title(drawn, title)
    return Picture(
        name=name,
        title=title,
        caption=_caption(sentence, maps, where),
        alt=f"Attention maps of {', '.join(models)} at target batch sizes {', '.join(map(str, sizes))} "
        f"for the sentence: {shorten(sentence.text)}",
        png=png(drawn),
    )


def _label_axes(grid: np.ndarray) -> None:
    """The tokens of a row are the same in every panel: they are written beside the first one shown."""
    for row in grid:
        first, *others = [axes for axes in row if axes.axison]
        first.set_ylabel("token that looks")
        for axes in others:
            axes.set_yticklabels([])
    for axes in grid[-1]:
        axes.set_xlabel("token looked at")


def _panel(axes: Axes, shown: AttentionMap | None, title: str, norm: PowerNorm) -> None:
    if shown is None:
        axes.set_title(plain(f"{title}\nnot tested"), fontsize=9)
        axes.set_axis_off()
        return
    axes.imshow(shown.weights, cmap=_COLOUR_MAP, norm=norm, interpolation="nearest")
    axes.set_title(plain(f"{title}\n{shown.heading}"), fontsize=9)
    positions = range(len(shown.tokens))
    axes.set_xticks(positions, shown.tokens, rotation=90, fontsize=7)
    axes.set_yticks(positions, shown.tokens, fontsize=7)
    axes.tick_params(length=2)


def _caption(sentence: Sentence, maps: Mapping[tuple[str, int], AttentionMap], where: str) -> str:
    cut = [each for each in maps.values() if each.is_cut]
    return (
        f"“{shorten(sentence.text)}” Each row is one token's attention in {where}; all panels share one "
        "colour scale." + (f" Shown are the first {MOST_TOKENS - 1} tokens and the last." if cut else "")
    )
