"""The faults: each does one thing to a bench at a moment, and says what it did."""

import contextlib
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults import processes
from tests.faults.bench import Bench

STOPS_WITHIN = 10.0  # seconds, after Ctrl-C


class BrokenPromiseError(AssertionError):
    """What the promise forbids has happened."""


# says what was done; None where there was nothing to be done it to
Inject = Callable[[Bench, random.Random], str | None]


@dataclass(frozen=True)
class Fault:
    """A fault, and the line of the promise that it tries."""

    name: str
    line: int
    inject: Inject


def _kill_one(name: str) -> Inject:
    def inject(bench: Bench, rng: random.Random) -> str | None:
        victims = bench.processes(name)
        if not victims:
            return None
        victim = rng.choice(victims)
        victim.kill()
        return f"pid {victim.pid}"

    return inject


def kill_driver(bench: Bench, rng: random.Random) -> str:
    """``kill -9`` the command itself, and go on while what it started is still ending."""
    bench.command.process.kill()
    bench.command.process.wait()
    return ""


def stop(what: signal.Signals) -> Inject:
    """Ctrl-C or SIGTERM, at any moment since the command can hear it."""

    def inject(bench: Bench, rng: random.Random) -> str | None:
        process = bench.command.process
        bench.command.wait_until(lambda: processes.handles(process.pid, signal.SIGTERM), 10, "it to listen")
        if not bench.command.is_running or _lost_ray(bench):
            return None  # it has ended, or is ending, of an earlier fault
        process.send_signal(what)
        try:
            seconds = bench.command.wait_until(lambda: False, 60, "the end")
        except TimeoutError as error:
            raise BrokenPromiseError(f"{what.name} did not stop the command") from error
        if process.returncode == 0 and seconds <= STOPS_WITHIN:
            return None  # too late; had it gone on for longer, it would not have heard
        said = bench.command.said()
        if process.returncode != 130 or "run the same command again to continue" not in said:
            raise BrokenPromiseError(f"{what.name}: exit code {process.returncode}: {said[-500:]}")
        if seconds > STOPS_WITHIN:
            raise BrokenPromiseError(f"{what.name}: stopped after {seconds:.1f} s")
        no_orphans(bench, STOPS_WITHIN, all_runs=False)  # what a kill has left ends later, as it can
        return f"stopped after {seconds:.1f} s"

    return inject


def _lost_ray(bench: Bench) -> bool:
    has_ray = bench.processes("raylet") and bench.processes("gcs_server")
    return "Ray dashboard" in bench.command.said() and not has_ray


def no_orphans(bench: Bench, seconds: float, all_runs: bool = True) -> None:
    """Wait until nothing runs that the command, or its latest run, has started; else BrokenPromiseError."""
    try:
        processes.wait_until(lambda: not bench.command.family(all_runs), seconds, "orphans to end")
    except TimeoutError as error:
        raise BrokenPromiseError(f"orphans: {bench.command.family(all_runs)}") from error


def damage_checkpoint(bench: Bench, rng: random.Random) -> str | None:
    """Kill the command, and change, cut or remove a file of the newest checkpoint of a trial."""
    kill_driver(bench, rng)
    newest = [
        max(folder.glob("evaluation-*"), default=None) for folder in (bench.storage / "trials").glob("*")
    ]
    files = sorted(file for folder in newest if folder for file in folder.iterdir())
    if not files:
        return None
    return damage(rng.choice(files), rng)


def damage(file: Path, rng: random.Random) -> str:
    """Change a range of bytes, cut the file off, or remove it."""
    content = bytearray(file.read_bytes())
    start = rng.randrange(len(content))
    how = rng.choice(["changed", "cut", "zeroed", "removed"])
    end = min(len(content), start + rng.choice([1, 64, 4096]))
    if not any(content[start:end]):
        how = "changed"  # zeros for zeros would be no damage
    if how == "removed":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[:start])
    else:
        content[start:end] = bytes(0 if how == "zeroed" else byte ^ 0xFF for byte in content[start:end])
        file.write_bytes(content)
    return f"{file.name} {how} from byte {start}"


def half_written_database(bench: Bench, rng: random.Random) -> str | None:
    """Kill the command and cut its database off; it must be refused, and go on from the backup."""
    kill_driver(bench, rng)
    file = bench.command.folder / "mlflow.db"
    if not file.exists():
        return None
    whole = file.read_bytes()
    length = rng.randrange(1, len(whole))
    file.write_bytes(whole[:length])
    code = bench.command.run()
    if code != 2 or "error: " not in bench.command.said() or "Traceback" in bench.command.said():
        raise BrokenPromiseError(f"a database cut after {length} of {len(whole)} bytes: exit code {code}")
    file.write_bytes(whole)
    return f"cut after {length} of {len(whole)} bytes, refused, and put back"


def fill_disk(bench: Bench, rng: random.Random) -> str | None:
    """Fill the disk of the storage for a while."""
    ballast = bench.command.folder / "ray_results" / "ballast"
    if not ballast.parent.exists():
        return None
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    seconds = rng.uniform(1.0, 8.0)
    time.sleep(seconds)  # for so long the disk is full, whatever happens
    ballast.unlink()
    return f"full for {seconds:.1f} s"


def _away(leave: Callable[[Bench], None], come_back: Callable[[Bench], None]) -> Inject:
    """Take something away, and bring it back later."""

    def inject(bench: Bench, rng: random.Random) -> str:
        leave(bench)
        seconds = rng.uniform(0.0, 15.0)
        time.sleep(seconds)  # for so long it is away, whatever happens
        come_back(bench)
        return f"away for {seconds:.1f} s"

    return inject


kill_server = _away(lambda bench: bench.server.kill(), lambda bench: bench.server.start())
pause_server = _away(lambda bench: bench.server.pause(), lambda bench: bench.server.resume())
kill_database = _away(lambda bench: bench.database.kill(), lambda bench: bench.database.start())


def kill_node(bench: Bench, rng: random.Random) -> str:
    """A machine loses power, and comes back."""
    node = rng.choice([1, 2])
    bench.cluster.kill_node(node)
    bench.cluster.wait_for(2)
    bench.cluster.start_node(node)
    return f"node {node}"


def cut_link(bench: Bench, rng: random.Random) -> str:
    """A machine's cable is pulled until it counts as lost, and plugged in again."""
    node = rng.choice([1, 2])
    bench.network.cut(node)
    bench.cluster.wait_for(2)
    bench.network.mend(node)
    bench.cluster.kill_node(node)
    bench.cluster.start_node(node)
    return f"node {node}"


LOCAL = [
    Fault("kill -9 the command", 2, kill_driver),
    Fault("kill -9 a trial's worker", 2, _kill_one("ray::")),
    Fault("kill -9 the raylet", 2, _kill_one("raylet")),
    Fault("kill -9 Ray's control server", 2, _kill_one("gcs_server")),
    Fault("Ctrl-C", 2, stop(signal.SIGINT)),
    Fault("SIGTERM", 2, stop(signal.SIGTERM)),
    Fault("damaged checkpoint", 5, damage_checkpoint),
    Fault("half-written SQLite file", 5, half_written_database),
]
SERVED = [
    Fault("kill -9 the MLflow server", 2, kill_server),
    Fault("MLflow server paused", 4, pause_server),
    Fault("kill -9 PostgreSQL under MLflow", 4, kill_database),
    Fault("kill -9 the command", 2, kill_driver),
]
CLUSTER = [Fault("kill -9 a cluster node", 7, kill_node)]
NETWORK = [Fault("cluster node's link cut", 7, cut_link)]
FULL_DISK = [Fault("disk of the storage full", 5, fill_disk)]
