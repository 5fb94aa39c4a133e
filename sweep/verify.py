"""Does accumulation give the gradient of the whole window, here, with these versions?"""

import itertools
from collections.abc import Sequence

import torch
from rich.table import Table
from rich.text import Text

from search_spaces.fields import showable
from search_spaces.trial_config import ENGINES
from sweep.terminal import say, show, working
from trainables.encoders import ENCODERS, canonical_model, load_architecture, outline
from trainables.gradient_check import PHYSICAL_BATCH_SIZES, TOLERANCE, GradientError, check_model


def verify(models: Sequence[str] | None) -> bool:
    """Check each model under each engine, print the relative errors; True if all are small enough."""
    names = [showable(canonical_model(m)) for m in models or ENCODERS]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = Table(
        title=f"relative gradient error in float64 on {device}, by physical batch size "
        f"(must be below {TOLERANCE:g})",
        title_justify="left",
    )
    for column in ("model", "engine", "window"):
        table.add_column(column)
    for physical in PHYSICAL_BATCH_SIZES:
        table.add_column(str(physical), justify="right")
    errors: list[GradientError] = []
    for name in names:
        config = load_architecture(name)
        outline(name, config)
        for engine in ENGINES:
            with working(f"{name}, {engine}"):
                found = check_model(config, engine, device)
            for window, group in itertools.groupby(found, key=lambda error: error.window):
                table.add_row(name.rsplit("/", 1)[-1], engine, window, *map(_text, group))
            errors += found
    show(table)
    good = [error for error in errors if error.is_small]
    say(f"{len(good)} of {len(errors)} gradients equal the whole window's to rounding")
    return len(good) == len(errors)


def _text(error: GradientError) -> Text:
    text = f"{error.relative_error:.1e}"
    return Text(text) if error.is_small else Text(f"{text} WRONG", "bold red")
