"""A PostgreSQL of one's own on loopback, from Debian's binaries."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2

from tests.faults import processes

_USER = _DATABASE = "mlflow"


class Postgres:
    """One database in a folder; ``uri`` stays the same through ``kill`` and ``start``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._binaries = _binaries()
        self._account = _account()
        self._port = processes.free_port()
        self._process: subprocess.Popen | None = None
        self.uri = f"postgresql+psycopg2://{_USER}@127.0.0.1:{self._port}/{_DATABASE}"

    def create(self) -> None:
        """Initialise the data folder, start, create the database."""
        if self._account is not None:
            os.chown(self._folder, self._account, -1)
        command = [self._binaries / "initdb", "--no-sync", "-D", "data", "-U", _USER, "--auth=trust"]
        subprocess.run(command, cwd=self._folder, user=self._account, check=True, stdout=subprocess.DEVNULL)
        self.start()
        with contextlib.closing(self._connect("postgres")) as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {_DATABASE}")

    def start(self) -> None:
        """Start on the data that there is, and wait until it answers."""
        settings = [
            "listen_addresses=127.0.0.1",
            f"port={self._port}",
            f"unix_socket_directories={self._folder}",
            "fsync=off",  # processes are killed here, the machine is not
        ]
        command = [str(self._binaries / "postgres"), "-D", "data"]
        command += [word for setting in settings for word in ("-c", setting)]
        self._process = processes.start(self._folder, command, user=self._account)
        processes.wait_until(self._answers, 60, "PostgreSQL to answer")

    def kill(self) -> None:
        """``kill -9`` the postmaster; returns when its children have noticed and are gone too."""
        postmaster = self._running()
        children = psutil.Process(postmaster.pid).children(recursive=True)
        postmaster.kill()
        postmaster.wait()
        _, left = psutil.wait_procs(children, timeout=30)
        assert not left

    def stop(self) -> None:
        """Disconnect everyone and shut down cleanly."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's "fast" shutdown
            self._process.wait(timeout=60)

    def _running(self) -> subprocess.Popen:
        assert self._process is not None
        return self._process

    def _connect(self, database: str) -> psycopg2.extensions.connection:
        return psycopg2.connect(
            host="127.0.0.1", port=self._port, user=_USER, dbname=database, connect_timeout=5
        )

    def _answers(self) -> bool:
        if self._running().poll() is not None:
            raise RuntimeError(f"PostgreSQL ended: {(self._folder / 'output.log').read_text()[-1000:]}")
        with contextlib.suppress(psycopg2.OperationalError):
            self._connect("postgres").close()
            return True
        return False


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A fresh PostgreSQL, started, with an empty database at its ``uri``."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    database = Postgres(folder)
    try:
        database.create()
        yield database
    finally:
        database.stop()
        shutil.rmtree(folder)


def postgres_missing() -> str:
    """Why there is no PostgreSQL to start, empty where there is."""
    try:
        _binaries()
    except FileNotFoundError as error:
        return str(error)
    return ""


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not found:
        raise FileNotFoundError("no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql")
    return found[-1].parent


def _account() -> int | None:
    """Who runs the server: PostgreSQL refuses root."""
    return pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None
