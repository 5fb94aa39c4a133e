"""An MLflow tracking server as a real process that can be killed, restarted and paused."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.faults import processes


class MlflowServer:
    """A server at a fixed address; what it keeps survives ``kill`` and ``start``."""

    def __init__(self, folder: Path, backend_uri: str, host: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._backend_uri = backend_uri
        self._host, self._port = host, processes.free_port(host)
        self.uri = f"http://{self._host}:{self._port}"

    def start(self) -> None:
        """Start; ``wait_until_healthy`` says when it answers."""
        command = [str(Path(sys.executable).parent / "mlflow"), "server", "--workers", "1"]
        command += ["--host", self._host, "--port", str(self._port)]
        command += ["--backend-store-uri", self._backend_uri, "--artifacts-destination", "artifacts"]
        quick = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = processes.start(self._folder, command, quick)

    def wait_until_healthy(self, seconds: float = 120) -> None:
        """Migrating an empty database comes first and takes most of the time."""
        processes.wait_until(self._is_healthy, seconds, f"MLflow at {self.uri}")

    def kill(self) -> None:
        """``kill -9`` the server and its workers."""
        processes.kill(self._folder)
        self._process.wait()

    def pause(self) -> None:
        """Stop answering without closing a connection."""
        processes.send(self._folder, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after ``pause``."""
        processes.send(self._folder, signal.SIGCONT)

    def _is_healthy(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"MLflow ended: {(self._folder / 'output.log').read_text()[-1000:]}")
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.uri}/health", timeout=5).ok
        return False


@contextlib.contextmanager
def mlflow_server(folder: Path, backend_uri: str, host: str = "127.0.0.1") -> Iterator[MlflowServer]:
    """A server, started, perhaps not yet healthy, with its artifacts in ``<folder>/artifacts``."""
    server = MlflowServer(folder, backend_uri, host)
    server.start()
    try:
        yield server
    finally:
        server.kill()
