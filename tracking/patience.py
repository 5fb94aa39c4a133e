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

from search_spaces import StoreAwayError, StoreFailedError, first_line

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
    back. A call that fails ``_ATTEMPTS`` times although the store answers is at fault itself.
    """

    def __init__(self, answers: Callable[[], bool], say: Callable[[str], None]) -> None:
        self._answers = answers
        self._say = say
        self._stopped = threading.Event()
        self._is_away = False

    def call(self, function: Callable[[], T], seconds: float | None = None) -> T:
        """The result of ``function``, which must be safe to repeat.

        Raises StoreFailedError where repeating is of no use, and StoreAwayError after ``seconds`` of a
        store that is away (None: for as long as it takes), or once ``stop`` was called. What is not the
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
                attempts += self._is_at_fault(error)
                if attempts >= _ATTEMPTS:
                    _give_up(error)
                self._wait(pause, deadline, error)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def stop(self) -> None:
        """Let every call that waits, now or later, end with StoreAwayError."""
        self._stopped.set()

    def _is_at_fault(self, error: Exception) -> bool:
        """Whether the call is, and not the store, which is noted; raises what is not worth repeating."""
        if not is_temporary(error):
            _give_up(error)
        if self._answers():
            return True
        self._note(error)
        return False

    def _wait(self, pause: float, deadline: float | None, error: Exception) -> None:
        late = deadline is not None and time.monotonic() + pause > deadline
        if late or self._stopped.wait(pause):
            raise StoreAwayError(f"the tracking store does not answer ({first_line(error)})") from error

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
