"""Ctrl-C and SIGTERM as KeyboardInterrupt, which is not lost."""

import signal
import sys
from typing import NoReturn

_AGAIN = 0.1  # seconds


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
