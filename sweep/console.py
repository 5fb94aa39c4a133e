"""The one console that everything is printed to."""

from rich.console import Console

# Without a terminal, tables must not be squeezed into 80 columns of a log file.
console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=140, soft_wrap=True)
