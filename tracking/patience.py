"""When the tracking store is away: which failures are worth repeating, and for how long."""

import threading
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    DEADLINE_EXCEEDED,
    INTERNAL_ERROR,
    REQUEST_LIMIT_EXCEEDED,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)

from errors import StoreAwayError, StoreFailedError, first_line

T = TypeVar("T")

# what MLflow says of a server it cannot reach, of one that fails, and of a locked database
_TEMPORARY_CODES = {
    ErrorCode.Name(code)
    for code in (INTERNAL_ERROR, TEMPORARILY_UNAVAILABLE, REQUEST_LIMIT_EXCEEDED, DEADLINE_EXCEEDED)
}
_ATTEMPTS = 5  # at a call that fails although the store answers
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds


def is_temporary(error: BaseException) -> bool:
    """Whether the same call may work later: the store, the network or the disk was at fault."""
    if isinstance(error, MlflowException):
        return error.error_code in _TEMPORARY_CODES
    return isinstance(error, (requests.RequestException, OSError))


class Patience:
    """Repeats calls to a store that is away.

    ``answers`` says whether the store is there; ``say`` is told once when it goes and once when it is
    back. Whatever a call raises while the store is away is the store's fault, because MLflow's own clients
    hide what they met; a call that fails ``_ATTEMPTS`` times although it answers is at fault itself.
    """

    def __init__(self, answers: Callable[[], bool], say: Callable[[str], None]) -> None:
        self._answers = answers
        self._say = say
        self._stopped = threading.Event()
        self._is_away = False

    def call(self, function: Callable[[], T], seconds: float | None = None) -> T:
        """The result of ``function``, which must be safe to repeat.

        Raises StoreFailedError where repeating is of no use, and StoreAwayError where the store is away
        after ``seconds`` (None: for as long as it takes), or once ``stop`` was called. What is not the
        store's own error passes as it is.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        attempts, pause = 0, _FIRST_PAUSE
        while True:
            if self._stopped.is_set():
                raise StoreAwayError("nothing more is written to the tracking store")
            try:
                result = function()
                self._note(None)
                return result
            except Exception as error:  # MLflow, requests and the database each have their own
                is_at_fault = self._answers()
                attempts += is_at_fault
                is_late = deadline is not None and time.monotonic() + pause > deadline
                if is_at_fault and (attempts >= _ATTEMPTS or not is_temporary(error)):
                    _give_up(error)
                if not is_at_fault:
                    self._note(error)
                if (is_late and not is_at_fault) or self._stopped.wait(pause):
                    raise StoreAwayError(
                        f"the tracking store does not answer ({first_line(error)})"
                    ) from error
                pause = min(2 * pause, _LONGEST_PAUSE)

    def stop(self) -> None:
        """Let every call that waits, now or later, end with StoreAwayError."""
        self._stopped.set()

    def _note(self, error: Exception | None) -> None:
        if error is not None and not self._is_away:
            self._say(
                f"the tracking store does not answer ({first_line(error)}): trying again until it does, "
                "nothing is lost"
            )
        elif self._is_away and error is None:
            self._say("the tracking store answers again")
        self._is_away = error is not None


def _give_up(error: Exception) -> NoReturn:
    """Raise it, with the store's name where it is the store's; a full disk here has a name of its own."""
    if isinstance(error, (MlflowException, requests.RequestException)):
        raise StoreFailedError(
            f"the tracking store fails ({first_line(error)}): mend that, and run the same command again"
        ) from error
    raise error
