"""Processes of their own whose address space is limited, so that allocations really fail."""

import ctypes
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tests.helpers import CPU, learnt, train, weights
from trainables.evaluation import evaluate
from trainables.largest_batch import largest_physical_batch_size
from trainables.trial import Trial
from trainables.windows import TokenTensors


class Outcome(NamedTuple):
    """What became of a trial, without tensors: those would be shared with a process that is gone."""

    history: list[dict[str, Any]]
    weights: dict[str, np.ndarray]
    steps: set[int]  # of the optimizer, counted by every parameter's state
    growth: int  # bytes by which the address space grew at most


_M_MMAP_THRESHOLD = -3  # of malloc.h
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])  # importing PyTorch takes longer than most of the tests


def in_fresh_process(function, *arguments):
    """Its result or its error; a process with a past has memory of its own to hand out."""
    with ProcessPoolExecutor(1, mp_context=_PROCESSES) as pool:
        return pool.submit(_predictably, function, *arguments).result()


def _predictably(function, *arguments):
    """In one thread, and with a C library that returns what is freed and does not keep it for later."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 12)
    return function(*arguments)


def trained_with(config, assets, room=None):
    """Train with ``room`` bytes more than the built trial has."""
    trial = Trial(config, assets, CPU)
    start = _status("VmSize")
    with memory_limit(room):
        train(trial)
    return outcome(trial, _status("VmPeak") - start)


def trained_with_less_later(config, assets, share):
    """Train one epoch freely, and the others with this share of what the first one took."""
    trial = Trial(config, assets, CPU)
    start = _status("VmSize")
    trial.run_epoch()
    room = int(share * (_status("VmPeak") - start))
    with memory_limit(start + room - _status("VmSize")):
        train(trial)
    return outcome(trial)


def outcome(trial, growth=0):
    steps = {int(state["step"]) for state in trial.optimizer.state.values()}
    arrays = {name: value.numpy() for name, value in weights(trial).items()}
    return Outcome(learnt(trial), arrays, steps, growth)


def evaluated_with(config, assets, room=None):
    """The evaluation, the sizes of the batches that were begun, and the growth of the address space."""
    trial = Trial(config, assets, CPU)
    data = TokenTensors(assets.val, assets.pad_token, CPU)
    sizes = []
    trial.model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    start = _status("VmSize")
    with memory_limit(room):
        result = evaluate(trial.model, data, "fp32")
    return result, sizes, _status("VmPeak") - start


def largest_with(config, assets, room, limit):
    Trial(config, assets, CPU)  # the limit is counted from where that of a trial is
    with memory_limit(room):
        return largest_physical_batch_size(config, assets, CPU, limit)


@contextmanager
def memory_limit(room):
    """Refuse every allocation that takes this process beyond ``room`` bytes more than it has."""
    if room is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
