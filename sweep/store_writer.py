"""Writes to the tracking store in the background, in order, while training goes on."""

import queue
import threading
from collections import Counter
from collections.abc import Callable

from errors import StoreAwayError
from tracking import Patience

Write = Callable[[], None]
Refused = Callable[[Exception], None]


class StoreWriter:
    """One thread that carries out writes in the order they were submitted.

    While the store is away it waits, and everything behind waits with it. A write that the store
    refuses is handed to its ``refused`` callback, and the next one has its turn.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._writes: queue.Queue[tuple[str, Write, Refused]] = queue.Queue()
        self._waiting: Counter[str] = Counter()
        self._changed = threading.Condition()
        # a daemon: a store that is away must not keep the command from ending
        threading.Thread(target=self._work, name="store-writer", daemon=True).start()

    def waiting(self) -> dict[str, int]:
        """Whose writes are not done: the ``whose`` of their submission -> how many."""
        with self._changed:
            return dict(self._waiting)

    def submit(self, whose: str, write: Write, refused: Refused) -> None:
        """Queue a write, which must be safe to repeat."""
        with self._changed:
            self._waiting[whose] += 1
        self._writes.put((whose, write, refused))

    def wait(self, seconds: float) -> bool:
        """Wait until everything is written, at most so long; says whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def stop(self) -> None:
        """Give up what is not written."""
        self._patience.stop()

    def _work(self) -> None:
        while True:
            whose, write, refused = self._writes.get()
            try:
                self._patience.call(write)
            except StoreAwayError:
                return  # stopped; what is left counts as waiting
            except Exception as error:  # whatever the store raises, the trial must not look finished
                refused(error)
            self._done(whose)

    def _done(self, whose: str) -> None:
        with self._changed:
            self._waiting[whose] -= 1
            self._waiting += Counter()  # drops the zeros
            self._changed.notify_all()
