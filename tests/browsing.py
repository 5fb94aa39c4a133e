"""Chromium, and the servers whose pages it opens."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import requests

from tests.faults import processes

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@contextlib.contextmanager
def server(folder: Path, command: Sequence[str], address: str) -> Iterator[str]:
    """A server with ``folder`` as its own, from when it answers at ``address``."""
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)

    def answers() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            return requests.get(address, timeout=5).ok
        return False

    try:
        processes.wait_until(answers, 120, f"{command[0]} to answer")
        yield address
    finally:
        process.terminate()
        process.wait(60)
