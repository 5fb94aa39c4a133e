"""The user's terminal: everything is printed here, as it is, and Ctrl-C is always heard."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from errors import printable

_AGAIN = 0.1  # seconds
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_LINE_END = re.compile(r"\r\n?|\n")


class _Console(Console):
    """Prints brackets and colons as they are: they may be in names from other people's stores."""

    def __init__(self, **more: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **more)

    def on_broken_pipe(self) -> None:
        """Go on in silence: hours of training must not end because a pager did."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Without a terminal, tables must not be squeezed into 80 columns of a log file.
console = _Console()
if not console.is_terminal:
    console = _Console(width=140, soft_wrap=True)


def say(line: str, colour: str | None = None) -> None:
    """Print a line."""
    console.print(line, style=colour)


def show(table: Table) -> None:
    """Print a table."""
    console.print(table)


@contextlib.contextmanager
def working(line: str) -> Iterator[Callable[[str], None]]:
    """Show in a terminal what is being done; yields a function that changes the line."""
    with console.status(Text(line)) as status:
        yield lambda line: status.update(Text(line))


def complain(line: str) -> None:
    """Print a line about what went wrong, apart from results."""
    print(line, file=sys.stderr)


def pass_on(text: str) -> None:
    """Print what another program prints, in parts as they come, without what would steer the terminal."""
    lines = _LINE_END.split(_COLOURS.sub("", text).expandtabs())
    console.out("\n".join(map(printable, lines)), end="")


def hear_signals() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the main thread, in whatever it is busy with.

    An exception raised while Python cleans up an object is shown and ignored. If a signal raised it
    (as KeyboardInterrupt, or as Ray's SystemExit), KeyboardInterrupt is raised a moment later.
    """
    # scripts start background commands with SIGINT ignored, which would leave no way to stop one cleanly
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)  # what a scheduler sends before it kills
    signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = _unraisable


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _unraisable(ignored: "sys.UnraisableHookArgs") -> None:
    if isinstance(ignored.exc_value, KeyboardInterrupt | SystemExit):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    else:
        sys.__unraisablehook__(ignored)
