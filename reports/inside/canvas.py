"""What the pictures share: colours, text that is never read as mathematics, PNG bytes."""

import io
import warnings

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito 2008, told apart by colour-blind readers; yellow is left out, too pale on white
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "osD^vPX*"
_DPI = 150


def figure(width: float, height: float) -> Figure:
    """An empty figure of this many inches that keeps its texts apart."""
    return Figure(figsize=(width, height), layout="constrained")


def plain(text: str) -> str:
    """The text as it is: matplotlib would typeset what stands between two dollar signs."""
    return text.replace("$", r"\$")


def png(drawn: Figure) -> bytes:
    """The figure as PNG, the same bytes each time."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        # a review may hold characters that the font lacks; a box stands in for them
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        FigureCanvasAgg(drawn).print_figure(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()
