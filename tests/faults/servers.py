"""Servers, such as MLflow's and PostgreSQL, as real processes that can be killed, started and paused."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import psutil
import psycopg2
import requests

from tests.faults import processes

_USER = _DATABASE = "mlflow"
_QUICK = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
_INITDB = max(  # of the newest version
    Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]), default=None
)


class Server:
    """A process in a folder of its own that serves ``uri``; its data survives ``kill`` and ``start``.

    In a ``with`` block it runs, and is ready when ``uri`` with ``health`` behind it answers.
    """

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        uri: str,
        health: str = "",
        *,
        environment: dict[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        self.uri = uri
        self._folder, self._command, self._health, self._user = folder, command, health, user
        self._environment = _QUICK | (environment or {})

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self.kill)
            self.start()
            stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start on the data that there is, and wait until it answers: a new database takes most of it."""
        self.process = processes.start(self._folder, self._command, self._environment, self._user)
        processes.wait_until(self._is_ready, 180, f"{self._command[0]} to answer")

    def family(self) -> list[psutil.Process]:
        """The process and all that descend from it, in a container too, where nothing has our mark."""
        if self.process.poll() is not None:
            return []
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def kill(self) -> None:
        """``kill -9`` it; returns when its children are gone too."""
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        processes.kill(self._folder)
        _, left = psutil.wait_procs(family, timeout=30)
        assert not left

    def pause(self) -> None:
        """Stop answering without closing a connection."""
        processes.send(self._folder, signal.SIGSTOP)

    def resume(self) -> None:
        """Answer again after ``pause``."""
        processes.send(self._folder, signal.SIGCONT)

    def answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(self.uri + self._health, timeout=5).ok
        return False

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"it ended: {(self._folder / 'output.log').read_text()[-3000:]}")
        return self.answers()


def mlflow_server(
    folder: Path, backend_uri: str, host: str = "127.0.0.1", environment: dict[str, str] | None = None
) -> Server:
    """MLflow's, with its artifacts in ``<folder>/artifacts``."""
    folder.mkdir(parents=True, exist_ok=True)
    port = processes.free_port(host)
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--workers", "1"]
    command += ["--host", host, "--port", str(port), "--backend-store-uri", backend_uri]
    command += ["--artifacts-destination", "artifacts"]
    command += ["--app-name", "basic-auth"] if "MLFLOW_AUTH_CONFIG_PATH" in (environment or {}) else []
    return Server(folder, command, f"http://{host}:{port}", "/health", environment=environment)


class Postgres(Server):
    """One database, from Debian's binaries, on loopback; PostgreSQL refuses to be run by root."""

    def __init__(self, folder: Path) -> None:
        user = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None
        self._port = processes.free_port()
        uri = f"postgresql+psycopg2://{_USER}@127.0.0.1:{self._port}/{_DATABASE}"
        # without fsync: processes are killed here, the machine is not
        settings = (
            f"listen_addresses=127.0.0.1 port={self._port} unix_socket_directories={folder} fsync=off"
        )
        options = [word for setting in settings.split() for word in ("-c", setting)]
        command = [str(_INITDB.with_name("postgres")), "-D", "data", *options]
        super().__init__(folder, command, uri, user=user)

    def create(self) -> None:
        """Initialise the data folder, start, create the database."""
        if self._user is not None:
            os.chown(self._folder, self._user, -1)
        command = [_INITDB, "--no-sync", "-D", "data", "-U", _USER, "--auth=trust"]
        subprocess.run(command, cwd=self._folder, user=self._user, check=True, stdout=subprocess.DEVNULL)
        self.start()
        with contextlib.closing(self._connect()) as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {_DATABASE}")

    def answers(self) -> bool:
        with contextlib.suppress(psycopg2.OperationalError):
            self._connect().close()
            return True
        return False

    def _connect(self) -> psycopg2.extensions.connection:
        where = {"host": "127.0.0.1", "port": self._port, "dbname": "postgres"}
        return psycopg2.connect(**where, user=_USER, connect_timeout=5)


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A fresh PostgreSQL that answers, with an empty database at its ``uri``."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    database = Postgres(folder)
    try:
        database.create()
        yield database
    finally:
        database.kill()
        shutil.rmtree(folder)


def postgres_missing() -> str:
    """Why there is no PostgreSQL to start, empty where there is."""
    return "" if _INITDB else "no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql"
