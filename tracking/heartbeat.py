"""Signs of life in the tracking store, for invocations that share nothing else."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from mlflow.tracking import MlflowClient

HEARTBEAT = "heartbeat"  # the tag that counts up while the invocation is at work
EVERY = 10.0  # seconds
PATIENCE = 4 * EVERY
_PROMPT = EVERY / 4  # seconds; a look that takes longer says nothing about the other


@contextlib.contextmanager
def heartbeat(
    client: MlflowClient, run_id: str, lost: Callable[[], None], every: float = EVERY
) -> Iterator[None]:
    """Count up the run's tag in the background, every so many seconds, until the block ends.

    Calls ``lost`` once where the run was ended by somebody who took this one for dead.
    """
    stopped = threading.Event()

    def beat() -> None:
        for count in itertools.count(1):
            if stopped.wait(every):
                return
            with contextlib.suppress(Exception):  # a store that is away tells nobody else either
                client.set_tag(run_id, HEARTBEAT, str(count))
                if client.get_run(run_id).info.status != "RUNNING" and not stopped.is_set():
                    lost()
                    return

    # a daemon: a store that does not answer must not keep the command from ending
    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


def beating(client: MlflowClient, run_ids: Sequence[str], patience: float = PATIENCE) -> str | None:
    """The first of the runs whose tag changes within so many seconds; None where none does.

    It looks at change, not at times, because the clocks of two machines need not agree, and starts to
    count anew when the store was slow, because the others had to wait for it too.
    """
    before = {run_id: _count(client, run_id) for run_id in run_ids}
    looked = started = time.monotonic()
    while looked - started < patience:
        time.sleep(min(1.0, patience / 10))
        began = time.monotonic()
        for run_id, count in before.items():
            if _count(client, run_id) != count:
                return run_id
        looked = time.monotonic()
        if looked - began > _PROMPT:
            started = looked
    return None


def _count(client: MlflowClient, run_id: str) -> str:
    count: str = client.get_run(run_id).data.tags.get(HEARTBEAT, "")
    return count
