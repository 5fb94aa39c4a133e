"""Texts -> token arrays -> the seeded windows of an epoch -> padded batches."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_TEXTS_PER_CALL = 1000  # because Python handles Ctrl-C only between two calls of the tokenizer


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, such as ``derive_seed(42, "order", epoch)``.

    The seed is a function of the arguments alone. So a resumed trial needs no saved generator state, and
    trials with the same seed have the same data order and the same head at any batch size.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


@dataclass(frozen=True)
class TokenArrays:
    """One tokenised split: the token ids of all texts in one array, without padding."""

    tokens: np.ndarray  # (total tokens,) int32
    offsets: np.ndarray  # (n + 1,) int64; text i is tokens[offsets[i]:offsets[i + 1]]
    labels: np.ndarray  # (n,) int64
    row_ids: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.labels)


def tokenize(
    texts: Sequence[str],
    labels: np.ndarray,
    row_ids: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> TokenArrays:
    """Tokenise with special tokens, truncating at ``max_length`` tokens."""
    encoded: list[list[int]] = []
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        encoded += tokenizer(
            list(texts[start : start + _TEXTS_PER_CALL]),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
    lengths = np.fromiter((len(ids) for ids in encoded), np.int64, len(encoded))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.fromiter((i for ids in encoded for i in ids), np.int32, offsets[-1])
    return TokenArrays(tokens, offsets, labels, row_ids)


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that pads a batch; tokenizers without one get 0, which the attention mask hides."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


@dataclass(frozen=True)
class Batch:
    """Examples padded to the longest of them."""

    input_ids: Tensor  # (batch, length) int64
    attention_mask: Tensor  # (batch, length) int64, 1 where there is a token
    labels: Tensor  # (batch,) int64

    def __len__(self) -> int:
        return len(self.labels)


class TokenTensors:
    """One split on the training device; makes a padded batch of any set of examples, without a loop."""

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

    def longest_first(self, indices: Tensor) -> Tensor:
        """``indices`` by the length of their texts; equal lengths keep their order."""
        return indices[torch.argsort(self.lengths[indices], descending=True, stable=True)]

    def batches(self, indices: Tensor, size: int) -> list[Batch]:
        """Cut ``indices`` into batches of at most ``size`` examples of similar length, longest first.

        Sums over the examples do not depend on their order, so sorting removes padding at no statistical
        cost; and batches that do not fit into memory fail first, not late.
        """
        return [self.batch(chunk) for chunk in self.longest_first(indices).split(size)]


def epoch_windows(examples: int, target_batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The windows of one epoch: a seeded permutation of all examples, cut; the last may be smaller."""
    order = torch.randperm(examples, generator=generator(seed, "order", epoch))
    yield from order.split(target_batch_size)


def windows_between(
    first: int, last: int, examples: int, target_batch_size: int, seed: int
) -> Iterator[tuple[int, int, Tensor]]:
    """The windows of the steps after ``first`` up to ``last``, across epochs.

    Yields epoch, counted from 1, number in the epoch, counted from 0, and window.
    """
    windows: list[Tensor] = []
    for step in range(first, last):
        epoch, number = divmod(step, -(-examples // target_batch_size))
        if not (windows and number):
            windows = list(epoch_windows(examples, target_batch_size, seed, epoch + 1))
        yield epoch + 1, number, windows[number]


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # the arrays are read-only in Ray's shared memory, and these tensors are only read
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
