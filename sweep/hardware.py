"""What the machine can do, asked before anything is trained."""

import torch

from sweep.options import SweepOptions


def gpu_expected(options: SweepOptions) -> bool:
    """Whether trials may run on a GPU; only a cluster itself knows whether it has any."""
    return options.gpus_per_trial != 0 and (bool(options.ray_address) or torch.cuda.is_available())


def bf16_available(options: SweepOptions) -> bool:
    """Whether what trials will run on here, GPU or CPU, computes in bfloat16 and does not emulate it."""
    if torch.cuda.is_available() and options.gpus_per_trial != 0:
        return torch.cuda.get_device_capability()[0] >= 8
    # read through get_capabilities: the functions for single features are private
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
