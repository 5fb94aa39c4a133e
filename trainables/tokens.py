"""Texts -> token arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

_SLICE = 1000  # texts in a call; Python hears Ctrl-C only between two


@dataclass(frozen=True)
class TokenArrays:
    """One tokenised split: the texts' token ids end to end, so that nothing is padded in storage."""

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
    for start in range(0, len(texts), _SLICE):
        encoded += tokenizer(
            list(texts[start : start + _SLICE]),
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
