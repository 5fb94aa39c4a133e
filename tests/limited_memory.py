"""Processes of their own whose address space is limited, so that allocations really fail."""

import ctypes
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tests.helpers import CPU, learnt, train, weights
from trainables.trial import Trial


class Outcome(NamedTuple):
    """What became of a trial, without tensors: those would be shared with a process that is gone."""

    history: list[dict[str, Any]]
    weights: dict[str, np.ndarray]
    growth: int  # bytes by which the address space grew at most


_M_MMAP_THRESHOLD = -3  # of malloc.h
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])  # importing PyTorch takes longer than most of the tests


def trained_with(config, assets, room=None):
    """Train in a fresh process with ``room`` bytes more than the built trial has.

    A process with a past has memory of its own to hand out.
    """
    with ProcessPoolExecutor(1, mp_context=_PROCESSES) as pool:
        return pool.submit(_train, config, assets, room).result()


def _train(config, assets, room):
    """In one thread, and with a C library that returns what is freed and does not keep it for later."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 12)
    trial = Trial(config, assets, CPU)
    start = _status("VmSize")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (start + room if room else soft, hard))
    train(trial)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    arrays = {name: value.numpy() for name, value in weights(trial).items()}
    return Outcome(learnt(trial), arrays, _status("VmPeak") - start)


def _status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
