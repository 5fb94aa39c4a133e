"""What a trial ran on and with, as tags of its run: a report must be able to say so later."""

import platform
from importlib.metadata import version
from pathlib import Path

import ray

from sweep.cluster import Resources

_PACKAGES = ("torch", "transformers", "accelerate", "ray", "mlflow")
_ACCELERATOR = "accelerator_type:"  # how Ray names the kinds of GPU in a cluster


def environment_tags(resources: Resources) -> dict[str, str]:
    """``hardware``, ``versions`` and ``gpus_per_trial``; needs a running Ray."""
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
        f"{total.get('CPU', 0):g} CPU cores" + (f" ({_cpu_model()})" if nodes == 1 else ""),
        f"{gpus:g} × {' and '.join(kinds) or 'GPU'}" if gpus else "no GPU",
    ]
    return ", ".join(parts)


def _cpu_model() -> str:
    """Linux keeps the name where ``platform`` does not look."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
