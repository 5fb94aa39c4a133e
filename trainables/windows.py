"""Token arrays on a device, and an epoch cut into windows and micro-batches."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.seeding import generator
from trainables.tokens import TokenArrays


@dataclass(frozen=True)
class Batch:
    """Examples padded to the longest of them."""

    input_ids: Tensor  # (batch, length) int64
    attention_mask: Tensor  # (batch, length) int64, 1 where there is a token
    labels: Tensor  # (batch,) int64

    def __len__(self) -> int:
        return len(self.labels)


class TokenTensors:
    """One split on the training device; any set of examples becomes a padded batch without a loop."""

    def __init__(self, arrays: TokenArrays, pad_token: int, device: torch.device) -> None:
        self.pad_token = pad_token
        self.device = device
        self.lengths = _tensor(np.diff(arrays.offsets))  # stays on the CPU: it decides shapes
        self._tokens = _tensor(arrays.tokens).to(device)
        self._starts = _tensor(arrays.offsets[:-1]).to(device)
        self._lengths = self.lengths.to(device)
        self._labels = _tensor(arrays.labels).to(device)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Tensor) -> Batch:
        """The examples at ``indices``, (n,) int64 on the CPU, padded to the longest of them."""
        longest = int(self.lengths[indices].max())
        rows = indices.to(self.device, non_blocking=True)
        columns = torch.arange(longest, device=self.device)
        mask = columns < self._lengths[rows, None]
        positions = (self._starts[rows, None] + columns).clamp_(max=len(self._tokens) - 1)
        input_ids = self._tokens[positions].long().masked_fill_(~mask, self.pad_token)
        return Batch(input_ids, mask.long(), self._labels[rows])

    def batches(self, indices: Tensor, size: int) -> Iterator[Batch]:
        """Cut ``indices`` into batches of at most ``size`` examples of similar length, longest first.

        Nothing that is summed over the examples depends on their order, so sorting removes padding
        at no statistical cost; and what does not fit into memory fails at once, not later.
        """
        order = torch.argsort(self.lengths[indices], descending=True, stable=True)
        for chunk in indices[order].split(size):
            yield self.batch(chunk)


def epoch_windows(examples: int, target_batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The windows of one epoch: a seeded permutation of all examples, cut; the last may be smaller."""
    order = torch.randperm(examples, generator=generator(seed, "order", epoch))
    yield from order.split(target_batch_size)


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # Ray's shared memory is read-only, and so is everything done with these tensors.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
