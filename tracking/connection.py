"""Calls that wait for the tracking store, and writes in the background."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial, wraps
from typing import Any, TypeVar, cast

import requests
from mlflow.exceptions import MlflowException

from errors import StoppedError, StoreAwayError, StoreFailedError, first_line
from tracking.store_address import Say, ask, client_of

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between two attempts
LAST_WRITES = 3.0  # seconds for MLflow to take what is left when the user wants to stop
_ATTEMPTS = 5  # at a call that fails although the store answers
_LOOK_EVERY = 3.0  # seconds, at a store that takes its time
_TOO_MANY_REQUESTS = 429  # the HTTP status from which on the server, and not the request, is at fault

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])
Write = Callable[[], object]
Refused = Callable[[Exception], object]

_never = threading.Event()
_thread = threading.local()  # in the thread of a BackgroundWriter, ``stopped`` is set when it is to end


class Connection:
    """MLflow's client for a store, with calls that are repeated while the store is away.

    ``say`` is told once when the store goes and once when it is back; ``patience`` is in seconds.
    """

    def __init__(self, tracking_uri: str, say: Say, patience: float) -> None:
        self.tracking_uri = tracking_uri
        self.client = client_of(tracking_uri)
        self.say = say
        self.patience = patience
        self._is_away = False

    def answers(self) -> bool:
        try:
            ask(self.tracking_uri)
        except Exception:  # as in check_store
            return False
        return True

    def repeat(self, call: Callable[[], T]) -> T:
        """The result of ``call``, which must be safe to repeat.

        Whatever it raises while the store does not answer is the store's fault, because MLflow's clients
        hide what they met: StoreAwayError once that lasts longer than the patience. A call that fails
        several times although the store answers, or that the store refuses, is at fault itself:
        StoreFailedError for an error of MLflow or of requests, other errors as they are.
        """
        stopped = getattr(_thread, "stopped", _never)
        patience = self.patience if stopped is _never else math.inf
        failures, deadline, pause = 0, math.inf, FIRST_PAUSE
        while not stopped.is_set():
            try:
                result = call()
            except StoppedError:  # a call within this one has waited already
                raise
            except Exception as error:  # MLflow, requests and the database each have their own
                if self.answers():
                    failures, deadline = failures + 1, math.inf
                    if failures == _ATTEMPTS or not _is_temporary(error):
                        raise _of_store(error) from error
                else:
                    why = f"the tracking store does not answer ({first_line(error)})"
                    self._note(True, f"{why}: trying again until it does, nothing is lost")
                    deadline = min(deadline, time.monotonic() + patience)
                    if time.monotonic() + pause > deadline:
                        raise StoreAwayError(why) from error
            else:
                self._note(False, "the tracking store answers again")
                return result
            stopped.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise StoreAwayError("nothing more is written to the tracking store")

    def _note(self, is_away: bool, line: str) -> None:
        if is_away != self._is_away:
            self.say(line)
        self._is_away = is_away


def retried(method: Method) -> Method:
    """Repeat a method, which must be safe to repeat as a whole, as its object's Connection says."""

    @wraps(method)
    def patient(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.connection.repeat(partial(method, self, *args, **kwargs))

    return cast(Method, patient)


def in_time(call: Callable[[], None]) -> None:
    """Give a last call to MLflow some seconds: a server that hangs must not hold up Ctrl-C."""

    def attempt() -> None:
        with suppress(Exception):
            call()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(LAST_WRITES)


def _is_temporary(error: Exception) -> bool:
    """Whether the same call may work later: the store, the network or the disk was at fault."""
    if isinstance(error, MlflowException):
        return bool(error.get_http_status_code() >= _TOO_MANY_REQUESTS)
    return isinstance(error, (requests.RequestException, OSError))


def _of_store(error: Exception) -> Exception:
    """The error in words for the user where it is the store's; a full disk here has a name of its own."""
    if not isinstance(error, (MlflowException, requests.RequestException)):
        return error
    return StoreFailedError(
        f"the tracking store fails ({first_line(error)}): mend that, and run the same command again"
    )


class BackgroundWriter:
    """Carries out writes in a thread of its own, one after the other, in the order of submission.

    What a write calls of the store waits for as long as it takes, and the writes behind it wait as well.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(
            1, "store-writer", partial(setattr, _thread, "stopped", self._stopped)
        )
        self._waiting: Counter[str] = Counter()
        self._changed = threading.Condition()

    def submit(self, whose: str, write: Write, refused: Refused) -> None:
        """Queue a write; ``refused`` gets the error of one that fails, and the next has its turn."""
        with self._changed:
            self._waiting[whose] += 1
            if not self._stopped.is_set():
                self._pool.submit(self._carry_out, whose, write, refused)

    def waiting(self) -> dict[str, int]:
        """Whose writes are not done, by the ``whose`` of their submission, and how many."""
        with self._changed:
            return dict(+self._waiting)

    def wait(self, seconds: float) -> bool:
        """Wait until everything is written, at most so long; says whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting.total(), seconds)

    def finish(self) -> None:
        """Wait until everything is written, however slow the store is.

        Raises StoreAwayError where the store does not answer for longer than the connection's patience.
        """
        if not self.wait(_LOOK_EVERY):
            self._connection.say(f"waiting for the tracking store to take what is left: {self._left()}")
        seen = time.monotonic()
        while not self.wait(_LOOK_EVERY):
            if self._connection.answers():
                seen = time.monotonic()
            elif time.monotonic() - seen > self._connection.patience:
                again = "run the same command again to write them"
                raise StoreAwayError(f"the tracking store lacks {self._left()}: {again}")

    def stop(self) -> None:
        """Give up what is not written; returns at once, even where the store hangs."""
        with self._changed:
            self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _carry_out(self, whose: str, write: Write, refused: Refused) -> None:
        try:
            write()
        except StoreAwayError:
            return  # stopped: it counts as waiting
        except Exception as error:  # whatever the write raises, its trial must not look finished
            with suppress(Exception):  # nobody would hear of it, and `finish` would wait for ever
                refused(error)
        with self._changed:
            self._waiting[whose] -= 1
            self._changed.notify_all()

    def _left(self) -> str:
        waiting = self.waiting()
        return f"{sum(waiting.values())} writes of {len(waiting)} trials"
