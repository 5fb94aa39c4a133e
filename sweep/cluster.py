"""Ray: start it or join it, and turn the user's wishes into resources per trial."""

import contextlib
import json
import logging
import os
import platform
import signal
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psutil
import ray
from ray._private import ray_constants
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from errors import StoppedError, UserError, first_line, last_line
from sweep.hardware import cpu_model
from sweep.options import SweepOptions
from sweep.ray_home import (
    NotStartedError,
    make_token,
    protect_token,
    ray_folder,
    temporary_files_in,
    token_file,
)
from sweep.terminal import say

_ANSWERS_WITHIN = 5.0  # seconds, to take a connection, and to speak as Ray does
_CLIENT = "ray://"
_TINY = 1e-9  # 1.0 // 0.1 is 9
PROJECT = Path(__file__).resolve().parent.parent
NOT_FOR_WORKERS = ".git .venv mlruns mlflow.db optuna.db results ray_results tests docs".split()
_PACKAGES = ("torch", "transformers", "accelerate", "ray", "mlflow")
_ACCELERATOR = "accelerator_type:"  # how Ray names the kinds of GPU in a cluster


@dataclass(frozen=True)
class Resources:
    """What each trial gets, and how many fit at once."""

    gpus: float
    cpus: float
    concurrent: int

    def for_ray(self) -> dict[str, float]:
        """The resources of one trial in Ray's words."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


@contextmanager
def ray_session(address: str | None, dashboard_host: str) -> Iterator[str]:
    """Start Ray here, or join the cluster at ``address``; yields the dashboard's address."""
    protect_token()
    if address:
        check_cluster(address)
        with _connected({"address": address} | _project(), address) as dashboard:
            yield dashboard
        return
    make_token()
    # "local": never a cluster of somebody else that runs on this machine
    local = {"address": "local", "include_dashboard": True, "dashboard_host": dashboard_host}
    with ray_folder() as folder, _connected(local | {"_temp_dir": str(folder)}) as dashboard:
        yield dashboard


@contextmanager
def _connected(arguments: dict[str, Any], address: str | None = None) -> Iterator[str]:
    arguments |= {"log_to_driver": False, "logging_level": logging.ERROR}
    on_termination = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        if not address:
            stack.enter_context(_on_loopback())
            stack.enter_context(temporary_files_in(Path(arguments["_temp_dir"]).parent))
        warnings.simplefilter("ignore")
        context = _connect(address, arguments)
    signal.signal(signal.SIGTERM, on_termination)  # Ray replaces the handler by one that stops at once
    try:
        yield context.dashboard_url or ""
    except ray.exceptions.RayError as error:
        raise StoppedError(f"Ray has failed ({last_line(error)}): run the same command again") from error
    finally:
        ray.shutdown()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Keep Ray's servers on 127.0.0.1, as on macOS and Windows; elsewhere they listen to every network.

    ``ray.init`` has no argument for this, and replaces 127.0.0.1 if it is given as the node's address.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _project() -> dict[str, Any]:
    """Give a cluster's workers this project, unless a job has already brought it.

    Ray refuses a driver that names another working_dir than ``ray job submit --working-dir`` has.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    if "working_dir" in (job.get("runtime_env") or {}):
        return {}
    return {"runtime_env": {"working_dir": str(PROJECT), "excludes": NOT_FOR_WORKERS}}


def check_cluster(address: str) -> None:
    """Raise UserError if no Ray answers at a cluster's address, before anything is prepared for it."""
    try:
        _check_answers(address)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: BaseException) -> UserError:
    reason = first_line(error)
    return UserError(f"the Ray cluster at {address} cannot be reached ({reason}): check --ray-address")


def _check_answers(address: str) -> None:
    """Raise OSError if nothing answers at a cluster's address, or something that is not Ray.

    Ray itself would try for minutes and print lines of its own.
    """
    is_client = address.startswith(_CLIENT)  # Ray's own proxy, for drivers outside of the cluster
    place = address.removeprefix(_CLIENT) if is_client else canonicalize_bootstrap_address(address) or ""
    host, _, port = place.rpartition(":")
    if not port.isdecimal():
        return  # Ray itself reads addresses of other forms
    socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_WITHIN).close()
    with contextlib.closing(init_grpc_channel(place)) as channel:
        try:
            if is_client:
                grpc.channel_ready_future(channel).result(timeout=_ANSWERS_WITHIN)
            else:
                asked = gcs_service_pb2.GetClusterIdRequest()  # type: ignore[attr-defined]
                ask = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId
                ask(asked, timeout=_ANSWERS_WITHIN, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                ours = f"the one in RAY_AUTH_TOKEN or {token_file()}"
                raise ConnectionError(f"its token is not {ours}") from None
            raise ConnectionError("what listens there is no Ray") from None
        except grpc.FutureTimeoutError:
            raise ConnectionError("what listens there is no Ray") from None


def _connect(address: str | None, arguments: dict[str, Any]) -> Any:
    before = set(psutil.Process().children(recursive=True))
    try:
        return ray.init(**arguments)
    except BaseException as error:
        _end_children(before)  # Ray gives up and leaves its own processes running
        if isinstance(error, SystemExit):  # Ray's own answer to SIGTERM while it starts
            raise KeyboardInterrupt from error
        if not isinstance(error, Exception):  # Ctrl-C; Ray raises errors of many kinds, also plain ones
            raise
        if address:
            raise _unreachable(address, error) from error
        raise NotStartedError(f"Ray does not start on this machine ({first_line(error)})") from error


def _end_children(before: set[psutil.Process]) -> None:
    """End the child processes that are not in ``before``."""
    for child in set(psutil.Process().children(recursive=True)) - before:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def check_shared(folder: Path) -> None:
    """Raise UserError if a machine of the cluster does not see the same folder at this path."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(nodes) < 2:
        return
    probe = folder / f".seen-by-all-{uuid4().hex}"
    probe.touch()
    try:
        answers = {node["NodeManagerAddress"]: _ask_node(node["NodeID"], probe) for node in nodes}
        blind = [address for address, answer in answers.items() if not ray.get(answer)]
    except ray.exceptions.RayError as error:
        raise UserError(f"a machine of the cluster does not answer: {first_line(error)}") from error
    finally:
        probe.unlink()
    if blind:
        raise UserError(
            f"--storage-path: {folder} is not the same folder on {', '.join(sorted(blind))}: "
            "give one that all machines share"
        )


def _ask_node(node_id: str, probe: Path) -> "ray.ObjectRef[bool]":
    there = NodeAffinitySchedulingStrategy(node_id, soft=True)  # if it is lost, another one answers
    return ray.remote(Path.exists).options(num_cpus=0, scheduling_strategy=there).remote(probe)


def resources_per_trial(options: SweepOptions) -> Resources:
    """``fitting_resources`` for the machines that are alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return fitting_resources(options, [(has.get("GPU", 0.0), has.get("CPU", 0.0)) for has in alive])


def fitting_resources(options: SweepOptions, machines: list[tuple[float, float]]) -> Resources:
    """One GPU a trial if any machine has one, else the CPU; ``machines`` are (GPUs, cores) each.

    A trial runs on one machine, so each machine counts by itself, not the sum of all. UserError if a trial
    needs more than any machine has.
    """
    gpus = options.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if any(has for has, _ in machines) else 0.0
    able = [(has_gpus, has_cpus) for has_gpus, has_cpus in machines if has_gpus >= gpus]
    if not able:
        raise UserError(f"--gpus-per-trial {gpus:g} needs a GPU, and no machine has one: give 0 or nothing")
    cpus = options.cpus_per_trial or _cores_per_trial(gpus, able)
    fits = sum(_fits(gpus, cpus, *machine) for machine in able)
    if not fits:
        most = max(has for _, has in able)
        raise UserError(f"--cpus-per-trial {cpus:g} is more than the {most:g} cores of one machine")
    return Resources(gpus, cpus, min(fits, options.max_concurrent or fits))


def _cores_per_trial(gpus: float, machines: list[tuple[float, float]]) -> float:
    """A GPU's share of its machine's cores, one to four; one core if trials run on the CPU."""
    if not gpus:
        return 1.0
    return max(1.0, min(4.0, *(has_cpus * gpus // has_gpus for has_gpus, has_cpus in machines)))


def _fits(gpus: float, cpus: float, has_gpus: float, has_cpus: float) -> int:
    """How many trials a machine takes at once."""
    by_cores = int(has_cpus / cpus + _TINY)
    if not gpus:
        return by_cores
    # a share lies within one GPU: at 0.4 each GPU takes two trials
    return min(by_cores, int(has_gpus) * int(1 / gpus + _TINY))


def announce(dashboard: str, resources: Resources, pages: Mapping[str, str]) -> None:
    """Say what trials run on, and where they can be watched."""
    if not resources.gpus:
        say("no GPU in use: trials run on the CPU")
    say(
        f"{resources.concurrent} trials at once, each with {resources.cpus:g} CPU"
        + (f" and {resources.gpus:g} GPU" if resources.gpus else "")
    )
    if dashboard:
        token = "it asks for the token of `ray get-auth-token`"
        say(f"Ray dashboard  http://{dashboard}  ({token})")
    for name, address in pages.items():
        say(f"{name:<14} {address}")


def environment_tags(resources: Resources) -> dict[str, str]:
    """What a trial runs on and with, as tags of its run; needs a running Ray."""
    versions = [f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in _PACKAGES)]
    return {
        "hardware": _hardware(),
        "versions": ", ".join(versions),
        "gpus_per_trial": f"{resources.gpus:g}",
    }


def _hardware() -> str:
    total = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    gpus = total.get("GPU", 0)
    kinds = [name.removeprefix(_ACCELERATOR) for name in total if name.startswith(_ACCELERATOR)]
    parts = [
        f"{nodes} machine{'s' * (nodes > 1)}",
        f"{total.get('CPU', 0):g} CPU cores" + (f" ({cpu_model()})" if nodes == 1 else ""),
        f"{gpus:g} × {' and '.join(kinds) or 'GPU'}" if gpus else "no GPU",
    ]
    return ", ".join(parts)
