"""Processes of the test bench: started with a mark, found by it, and ended whatever they have become."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

_MARK = "BATCHSCALE_TEST_BENCH"
# the developer's own, if any
_FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI")


_started: dict[Path, list[subprocess.Popen]] = defaultdict(list)  # to be reaped once they are killed


def start(
    folder: Path, command: Sequence[str], environment: dict[str, str] | None = None, user: int | None = None
) -> subprocess.Popen:
    """Start a command in its own session, with its output in ``<folder>/output.log``."""
    with (folder / "output.log").open("a") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=clean_environment() | (environment or {}) | {_MARK: str(folder)},
            start_new_session=True,
            user=user,
        )
    _started[folder].append(process)
    return process


def clean_environment() -> dict[str, str]:
    """The environment without what would lead to somebody else's cluster or store."""
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN}


def handles(pid: int, what: signal.Signals) -> bool:
    """Whether the process has a handler of its own for this signal; False for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (what - 1) & 1)


def family(folder: Path, since: float = 0.0) -> list[psutil.Process]:
    """Everything that descends from what was started in ``folder``, orphans and new sessions included.

    Processes that began before ``since`` (seconds since 1970) are left out.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_of_it = process.environ().get(_MARK) == str(folder) and process.create_time() >= since
            if is_of_it and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def send(folder: Path, what: signal.Signals) -> None:
    for process in family(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(what)


def kill(folder: Path) -> None:
    """``kill -9`` the whole family, those that it starts meanwhile too; returns when all are gone."""

    def all_gone() -> bool:
        send(folder, signal.SIGKILL)
        return not family(folder)

    wait_until(all_gone, 30, f"{folder.name} to be gone")
    for process in _started.pop(folder, []):
        process.wait()


def wait_until(happened: Callable[[], bool], seconds: float, what: str) -> float:
    """Poll; returns the seconds it took, TimeoutError beyond the deadline."""
    started = time.monotonic()
    while not happened():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.1)
    return time.monotonic() - started


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as server:
        server.bind((host, 0))
        return server.getsockname()[1]
