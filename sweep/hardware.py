"""What trials can run on here: a GPU that this torch can use, and numbers in bfloat16."""

import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from errors import UserError
from sweep.options import SweepOptions

# from NVIDIA's compatibility table: the oldest Linux driver that runs programs built with this major CUDA
_OLDEST_DRIVER = {"12": 525, "13": 580}
_DRIVER = Path("/proc/driver/nvidia/version")
_DEVICE = Path("/dev/nvidiactl")  # a container without the GPU lacks it, but sees the driver


def gpu_expected(options: SweepOptions) -> bool:
    """Whether trials may run on a GPU; only a cluster itself knows whether it has any."""
    return options.gpus_per_trial != 0 and (bool(options.ray_address) or torch.cuda.is_available())


def bf16_available(options: SweepOptions) -> bool:
    """Whether the GPU or CPU that trials will run on here computes in bfloat16 without emulation."""
    if torch.cuda.is_available() and options.gpus_per_trial != 0:
        return torch.cuda.get_device_capability()[0] >= 8
    # read through get_capabilities: the functions for single features are private
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def check_driver(options: SweepOptions) -> None:
    """Raise UserError if a driver that is too old keeps trials here from using a GPU.

    Ray would see the GPU and give it to trials, but torch would not see it and would train on the CPU.
    """
    here = options.gpus_per_trial != 0 and not options.ray_address
    if here and torch.version.cuda and _DEVICE.exists() and not torch.cuda.is_available():
        check_version(_DRIVER.read_text() if _DRIVER.exists() else "", torch.version.cuda)


def check_version(driver: str, cuda: str) -> None:
    """Raise UserError if ``driver``, as the kernel describes it, is too old for this version of CUDA."""
    found = re.search(r"Kernel Module.*?\b(\d+)\.\d", driver)
    oldest = _OLDEST_DRIVER.get(cuda.partition(".")[0], 0)
    if found and int(found[1]) < oldest:
        raise UserError(
            f"the NVIDIA driver is {found[1]} and this torch (CUDA {cuda}) needs {oldest} or newer: "
            "update the driver, or give --gpus-per-trial 0 to train on the CPU"
        )


def cpu_model() -> str:
    """The CPU's name, which Linux keeps in a file that ``platform`` does not read."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def ran_as_here(options: SweepOptions, tags: Mapping[str, str]) -> bool:
    """Whether an earlier trial, by its tags, had the kind of GPU or CPU that trials will have here.

    False for a Ray cluster, whose machines are unknown before it is joined.
    """
    hardware, gpus = tags.get("hardware", ""), tags.get("gpus_per_trial", "")
    if options.ray_address:
        return False
    if not gpu_expected(options):
        return gpus == "0" and f"({cpu_model()})" in hardware
    kind = hardware.rpartition(" × ")[2]
    share = 1.0 if options.gpus_per_trial is None else options.gpus_per_trial
    return gpus == f"{share:g}" and bool(kind) and kind in torch.cuda.get_device_name()
