"""Where a study runs and what surrounds it, so that each of it can be taken away."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults import processes
from tests.faults.clusters import Cluster, loopback_places, ray_cluster
from tests.faults.networks import Network, network
from tests.faults.servers import Postgres, Server, mlflow_server, postgres
from tests.faults.study import Command


@dataclass
class Bench:
    """A command and its surroundings; those that a kind of bench does not have are None."""

    command: Command
    tracking_uri: str
    folder: Path
    server: Server | None = None
    database: Postgres | None = None
    cluster: Cluster | None = None
    network: Network | None = None

    @property
    def storage(self) -> Path:
        return self.command.folder / "ray_results" / "faults"

    def processes(self, name: str) -> list[psutil.Process]:
        """What the command has started under this name, or part of it."""
        found = []
        for process in processes.family(self.command.folder):
            with contextlib.suppress(psutil.Error):
                if name in process.name() or name in " ".join(process.cmdline()[:2]):
                    found.append(process)
        return found


@dataclass(frozen=True)
class Moment:
    """When to strike: so many seconds after the command has said ``text`` for the ``count``-th time."""

    text: str
    count: int
    seconds: float

    def come(self, command: Command) -> bool:
        """Wait for it; False where the command ended first."""
        command.wait_until(lambda: command.said().count(self.text) >= self.count, 420, str(self))
        with contextlib.suppress(TimeoutError):  # which is what is hoped for
            command.wait_until(lambda: False, self.seconds, "the moment")
        return command.is_running

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s after '{self.text}' × {self.count}"


def moment(rng: random.Random) -> Moment:
    """Any moment of a study: as it starts, while it trains, while it tests."""
    part = rng.random()
    if part < 0.15:
        return Moment("", 0, rng.uniform(0.0, 12.0))
    if part < 0.9:
        return Moment("epoch ", rng.randint(1, 8), rng.uniform(0.0, 1.5))
    return Moment("testing ", 1, rng.uniform(0.0, 3.0))


@contextlib.contextmanager
def local(folder: Path) -> Iterator[Bench]:
    """Ray and SQLite, as on a laptop."""
    with Command(folder / "study") as command:
        yield Bench(command, command.sqlite_uri, folder)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Bench]:
    """MLflow as a server on PostgreSQL."""
    with postgres() as database, mlflow_server(folder / "mlflow", database.uri) as server:
        # a server that is paused must be found out soon, as a real one is by its longer timeouts
        impatient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        with Command(folder / "study", "--tracking-uri", server.uri, environment=impatient) as command:
            yield Bench(command, server.uri, folder, server=server, database=database)


@contextlib.contextmanager
def machines(folder: Path, over_network: bool = False, dashboard: bool = False) -> Iterator[Bench]:
    """Three Ray nodes, MLflow as a server on PostgreSQL, a shared folder."""
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network(3)) if over_network else None
        places = net.places if net else loopback_places(3)
        cluster = stack.enter_context(ray_cluster(places, dashboard=dashboard))
        database = stack.enter_context(postgres())
        host = net.host if net else "127.0.0.1"
        server = stack.enter_context(mlflow_server(folder / "mlflow", database.uri, host))
        cluster.wait_for(3)
        options = ("--ray-address", cluster.address, "--tracking-uri", server.uri)
        surroundings = {"environment": cluster.environment, "enter": cluster.enter()}
        command = stack.enter_context(Command(folder / "study", *options, **surroundings))
        yield Bench(command, server.uri, folder, server, database, cluster, net)
