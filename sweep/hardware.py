"""What the machine can do, asked before anything is trained."""

import torch


def bf16_available() -> bool:
    """Whether this machine's GPU, or else its CPU, computes in bfloat16 rather than emulating it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability()[0] >= 8
    # read through get_capabilities: the functions for single features are private
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
