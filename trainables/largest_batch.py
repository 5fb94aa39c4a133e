"""The largest physical batch size that fits into memory, found by trying."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from search_spaces import TrialConfig
from trainables.memory import DoesNotFitError, free_memory, is_out_of_memory
from trainables.noise_scale import GradientGroups
from trainables.trial import Trial, TrialAssets
from trainables.windows import Batch

HEADROOM = 0.1  # of a GPU's memory, for fragments, workspaces and the contexts of processes that share it


def largest_physical_batch_size(
    config: TrialConfig,
    assets: TrialAssets,
    device: torch.device,
    limit: int,
) -> int:
    """The largest of 1, 2, 4, … and ``limit`` examples whose training fits into the memory of ``device``.

    Each size makes whole optimizer steps as a trial does where it needs most: every text ``max_length``
    tokens long, the optimizer's state allocated, and the second set of gradients that measuring the noise
    takes. On a GPU the search keeps to nine tenths of what this process may have, which is a trial's share;
    on a CPU it ends where the machine refuses memory. Raises DoesNotFitError where not even one fits.
    """
    largest = 0
    with _memory_budget(device, 1 - HEADROOM):
        for size in _doubled(limit):
            if not _fits(config, assets, device, size):
                break
            largest = size
    if not largest:
        raise DoesNotFitError(
            f"{config.model_name} does not fit into memory with one text of {config.max_length} tokens: "
            "set a smaller --max-length or model, or give trials more memory (--gpus-per-trial)"
        )
    return largest


def _doubled(limit: int) -> Iterator[int]:
    powers = (2**n for n in itertools.count())
    yield from itertools.takewhile(lambda size: size < limit, powers)
    yield limit


def _fits(config: TrialConfig, assets: TrialAssets, device: torch.device, size: int) -> bool:
    free_memory()  # what is left of the size before
    try:
        _train(Trial(config, assets, device), size)
    except Exception as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def _train(trial: Trial, size: int) -> None:
    vocabulary = trial.model.encoder.get_input_embeddings().num_embeddings
    shape = (size, trial.config.max_length)
    batch = Batch(
        torch.randint(vocabulary, shape, device=trial.device),
        torch.ones(shape, dtype=torch.long, device=trial.device),
        torch.zeros(size, dtype=torch.long, device=trial.device),
    )
    trial.model.train()
    for _ in range(2):  # the optimizer's state appears with the first step and stays for the second
        gradients = GradientGroups(trial.model.parameters(), groups=2, micro_batches=2, examples=2 * size)
        trial.engine.accumulate([batch, batch], gradients.after_backward)
        trial.engine.update()


@contextmanager
def _memory_budget(device: torch.device, fraction: float) -> Iterator[None]:
    """Let PyTorch allocate at most this fraction of what it may; only a GPU can be told."""
    if device.type != "cuda":
        yield
        return
    allowed = torch.cuda.get_per_process_memory_fraction(device)
    torch.cuda.set_per_process_memory_fraction(allowed * fraction, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(allowed, device)
