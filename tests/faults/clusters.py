"""A Ray cluster of several raylets on one machine, each of which can be lost."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults import processes

_RAY = str(Path(sys.executable).parent / "ray")
# Ray's defaults notice a killed raylet after 15 s and a cut link after more than a minute. A check that
# takes 2 s three times in a row is not what a busy machine does: the raylet answers from C++.
_NOTICE_SOON = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
_COUNT_ALIVE = """
import sys, time
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo
wanted, deadline = int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
client = GcsClient(address=sys.argv[1])
while time.monotonic() < deadline:
    alive = client.get_all_node_info(timeout=5, state_filter=GcsNodeInfo.GcsNodeState.ALIVE)
    if len(alive) == wanted:
        sys.exit(0)
    time.sleep(0.1)
sys.exit(f"{len(alive)} nodes are alive, not {wanted}")
"""


@dataclass(frozen=True)
class Place:
    """Where a node lives: its address, and the command prefix that enters its network namespace."""

    ip: str
    enter: tuple[str, ...] = ()


def loopback_places(count: int) -> list[Place]:
    """Addresses for the nodes of one process's cluster.

    Not 127.0.0.1: Ray replaces that by the machine's outer address.
    """
    process = os.getpid()
    return [Place(f"127.{1 + process // 250 % 250}.{process % 250}.{2 + i}") for i in range(count)]


class Cluster:
    """Nodes by number; number 0 is the head. ``environment`` is what its clients need."""

    def __init__(self, places: Sequence[Place], folder: Path, head_cpus: int, dashboard: bool) -> None:
        self._places, self._folder = list(places), folder
        self._head_cpus, self._dashboard = head_cpus, dashboard
        self._running: dict[int, Path] = {}
        self._started = 0
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        self.address = f"{places[0].ip}:{_port()}"
        self.dashboard = f"http://{places[0].ip}:{_port()}" if dashboard else ""
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # as in an activated environment
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    @property
    def discovery(self) -> Path:
        """The file in which the head lists the nodes for Prometheus."""
        return self._running[0] / "prom_metrics_service_discovery.json"

    def start_node(self, number: int) -> None:
        """Start a node, or start one again that was lost, in its place."""
        self._started += 1
        folder = self._folder / f"{self._started}"  # short: sockets have 107 characters for their paths
        folder.mkdir()
        place = self._places[number]
        command = [*place.enter, _RAY, "start", "--block", "--node-ip-address", place.ip]
        command += ["--temp-dir", str(folder), "--object-store-memory", "100000000"]
        command += ["--include-log-monitor", "false"]
        command += self._head_options() if number == 0 else ["--num-cpus", "1", "--address", self.address]
        processes.start(folder, command, self.environment | _NOTICE_SOON)
        self._running[number] = folder

    def kill_node(self, number: int) -> None:
        """``kill -9`` the raylet and all that it started, as if the machine had lost power."""
        processes.kill(self._running.pop(number))

    def wait_for(self, nodes: int, seconds: float = 120) -> None:
        """Wait until the head sees exactly so many nodes alive."""
        command = [*self._places[0].enter, sys.executable, "-c", _COUNT_ALIVE]
        command += [self.address, str(nodes), str(seconds)]
        environment = processes.clean_environment() | self.environment
        subprocess.run(command, env=environment, check=True, timeout=seconds + 30)

    def enter(self, number: int = 0) -> tuple[str, ...]:
        """The command prefix that runs a command where a node runs."""
        return self._places[number].enter

    def stop(self) -> None:
        """End every node, the workers before the head."""
        for number in sorted(self._running, reverse=True):
            self.kill_node(number)

    def _head_options(self) -> list[str]:
        options = ["--head", "--num-cpus", str(self._head_cpus), "--port", self.address.split(":")[1]]
        options += ["--ray-client-server-port", str(_port())]
        if not self._dashboard:
            return [*options, "--include-dashboard", "false"]
        host, port = self.dashboard.removeprefix("http://").split(":")
        return [*options, "--include-dashboard", "true", "--dashboard-host", host, "--dashboard-port", port]


@contextlib.contextmanager
def ray_cluster(places: Sequence[Place], head_cpus: int = 0, dashboard: bool = False) -> Iterator[Cluster]:
    """A head and workers of one CPU each, started, perhaps not yet connected: see ``wait_for``."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    cluster = Cluster(places, folder, head_cpus, dashboard)
    try:
        for number in range(len(places)):
            cluster.start_node(number)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _port() -> int:
    return processes.free_port("")
