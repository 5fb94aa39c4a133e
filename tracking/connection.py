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
LAST_WRITES = 3.0  # seconds for the remaining writes when the user wants to stop
_ATTEMPTS = 5  # of a call that fails although the store answers
_LOOK_EVERY = 3.0  # seconds between two looks at a slow store
_TOO_MANY_REQUESTS = 429  # from this HTTP status on, the server is at fault and not the request

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])
Write = Callable[[], object]
Refused = Callable[[Exception], object]

_never = threading.Event()
_thread = threading.local()  # in a BackgroundWriter's thread it holds ``stopped``, the event that ends it


class Connection:
    """MLflow's client for a store, with calls that are repeated while the store does not answer.

    ``say`` is told once when the store stops answering and once when it answers again; ``patience`` is
    in seconds.
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

        MLflow's clients hide the cause of an error. So any error while the store does not answer counts as
        the store's: StoreAwayError if that lasts longer than the patience. If the store answers, and a call
        fails several times or is refused, the call is at fault: StoreFailedError for an error of MLflow or
        of requests, other errors as they are.
        """
        stopped = getattr(_thread, "stopped", _never)
        patience = self.patience if stopped is _never else math.inf
        failures, deadline, pause = 0, math.inf, FIRST_PAUSE
        while not stopped.is_set():
            try:
                result = call()
            except StoppedError:  # from a nested call, which has waited already
                raise
            except Exception as error:  # MLflow, requests and the database each have their own types
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
    """Repeat a method as ``Connection.repeat`` of its object does; it must be safe to repeat as a whole."""

    @wraps(method)
    def patient(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.connection.repeat(partial(method, self, *args, **kwargs))

    return cast(Method, patient)


def in_time(call: Callable[[], None]) -> None:
    """Make a last call to MLflow, and wait for it a few seconds: a hanging server must not delay Ctrl-C."""

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
    """The error in words for the user if it is the store's; others, such as a full disk here, unchanged."""
    if not isinstance(error, (MlflowException, requests.RequestException)):
        return error
    return StoreFailedError(
        f"the tracking store fails ({first_line(error)}): mend that, and run the same command again"
    )


class BackgroundWriter:
    """Carries out writes in a thread of its own, one after the other, in the order of submission.

    A write waits for the store without limit, and so do the writes behind it.
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
        """Queue a write; if it fails, ``refused`` gets the error, and the next write is carried out."""
        with self._changed:
            self._waiting[whose] += 1
            if not self._stopped.is_set():
                self._pool.submit(self._carry_out, whose, write, refused)

    def waiting(self) -> dict[str, int]:
        """``whose`` of the submissions -> the number of writes that are not done."""
        with self._changed:
            return dict(+self._waiting)

    def wait(self, seconds: float) -> bool:
        """Wait until everything is written, for at most ``seconds``; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting.total(), seconds)

    def finish(self) -> None:
        """Wait until everything is written, however slow the store is.

        Raises StoreAwayError if the store does not answer for longer than the connection's patience.
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
        """Give up the remaining writes; returns at once, even if the store hangs."""
        with self._changed:
            self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _carry_out(self, whose: str, write: Write, refused: Refused) -> None:
        try:
            write()
        except StoreAwayError:
            return  # the writer was stopped; the write still counts as waiting
        except Exception as error:  # whatever the write raises, its trial must not look finished
            with suppress(Exception):  # nobody hears it in this thread, and `finish` would wait for ever
                refused(error)
        with self._changed:
            self._waiting[whose] -= 1
            self._changed.notify_all()

    def _left(self) -> str:
        waiting = self.waiting()
        return f"{sum(waiting.values())} writes of {len(waiting)} trials"
