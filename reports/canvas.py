"""What the pictures share: colours, text that is never read as mathematics, PNG bytes."""

import io
import textwrap
import warnings
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito 2008, told apart by colour-blind readers; yellow is left out, too pale on white
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "osD^vPX*"
_DPI = 150
_TITLE_LETTERS_PER_INCH = 11
_DARKEST, _LIGHTEST = 0.0, 0.82  # of viridis: ordered, safe for the colour-blind, without its yellow


def figure(width: float, height: float) -> Figure:
    """An empty figure of this many inches that keeps its texts apart."""
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def batch_colour(target_batch_size: int, batches: Sequence[int]) -> tuple[float, ...]:
    """The colour of a target batch size in every picture: dark for the smallest, light for the largest."""
    step = (_LIGHTEST - _DARKEST) / max(1, len(batches) - 1)
    return colormaps["viridis"](_DARKEST + step * sorted(batches).index(target_batch_size))


def set_title(drawn: Figure, text: str) -> None:
    """Set the figure's title, broken into lines that fit its width."""
    columns = int(_TITLE_LETTERS_PER_INCH * drawn.get_figwidth())
    drawn.suptitle(plain(textwrap.fill(text, columns)), fontsize=12)


def plain(text: str) -> str:
    """The text as it is: matplotlib would typeset what stands between two dollar signs."""
    return text.replace("$", r"\$")


def png(drawn: Figure) -> bytes:
    """The figure as PNG, the same bytes each time."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        # a review may hold characters that the font lacks; a box stands in for them
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        # not print_figure, which draws everything twice
        FigureCanvasAgg(drawn).print_png(out, metadata={"Software": None})
    return out.getvalue()
