"""The one console that everything is printed to."""

import os
import sys

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence: hours of training must not end because a pager did."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Without a terminal, tables must not be squeezed into 80 columns of a log file.
console = _Console(highlight=False)
if not console.is_terminal:
    console = _Console(highlight=False, width=140, soft_wrap=True)
