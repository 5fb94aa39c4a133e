"""Does accumulation give the gradient of the whole window, here, with these versions?"""

from rich.table import Table

from search_spaces import UserError
from search_spaces.trial_config import ENGINES
from sweep.console import console
from trainables.encoders import ENCODERS, canonical_model, load_architecture
from trainables.gradient_check import TOLERANCE, GradientError, check_model


def verify(models: list[str] | None) -> bool:
    """Check each model under each engine, print the relative errors; True when all are small enough."""
    names = [canonical_model(m) for m in models or ENCODERS]
    table = Table(title=f"relative gradient error, float64, must be below {TOLERANCE:g}")
    for column in ("model", "engine", "window"):
        table.add_column(column)
    for column in ("examples", "physical batch size", "relative error", "result"):
        table.add_column(column, justify="right")
    errors: list[GradientError] = []
    for name in names:
        config = load_architecture(name)
        for engine in ENGINES:
            with console.status(f"{name}, {engine}"):
                errors += (found := check_model(name, config, engine))
            for error in found:
                table.add_row(*_cells(error), style="" if error.is_small else "bold red")
    if not errors:
        raise UserError("no model was named")
    console.print(table)
    missed = [error for error in errors if not error.is_small]
    worst = max(errors, key=lambda error: error.relative_error)
    console.print(
        f"{len(errors) - len(missed)} of {len(errors)} gradients agree with the whole window's; "
        f"largest relative error {worst.relative_error:.1e}"
    )
    return not missed


def _cells(error: GradientError) -> list[str]:
    return [
        error.model.rsplit("/", 1)[-1],
        error.engine,
        error.window,
        str(error.examples),
        str(error.physical_batch_size),
        f"{error.relative_error:.1e}",
        "ok" if error.is_small else "WRONG",
    ]
