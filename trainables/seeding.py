"""Every random choice of a trial has a seed of its own, a pure function of the trial's seed."""

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, such as ``derive_seed(42, "order", epoch)``.

    Because it is a function of its arguments alone, a resumed trial needs no saved generator state,
    and trials with one seed see the same data order and the same head, whatever their batch size.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
