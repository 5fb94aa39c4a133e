"""The user's terminal: the one console that everything is printed to, and Ctrl-C that is always heard."""

import os
import signal
import sys
from typing import NoReturn

from rich.console import Console

_AGAIN = 0.1  # seconds


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence: hours of training must not end because a pager did."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Without a terminal, tables must not be squeezed into 80 columns of a log file.
console = _Console(highlight=False)
if not console.is_terminal:
    console = _Console(highlight=False, width=140, soft_wrap=True)


def say(line: str) -> None:
    """Print a line as it is, whatever brackets it holds."""
    console.print(line, markup=False)


def hear_signals() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the main thread, in whatever it is busy with.

    Python ignores what is raised while it cleans an object up, and shows a traceback of it; what a
    signal raised just then, which may be Ray's SystemExit, becomes a KeyboardInterrupt a moment later.
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
