"""Where attention goes: sinks and entropy over test texts, by model x target batch size x rule."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reports.content import TableContent, table_of
from reports.inside.reloaded import Reading
from reports.inside.tested import TestedCell


@dataclass(frozen=True)
class AttentionStatistics:
    """Means over tokens and heads, then over texts."""

    special_token_share: float  # weight on special tokens
    top_token_share: float  # weight on the token that gets most
    entropy: float  # of what a token attends to, nats
    relative_entropy: float  # entropy / ln(length): 1 where attention is uniform


@dataclass(frozen=True)
class AttentionRow:
    """A row of ``attention.csv``."""

    model: str
    target_batch_size: int
    scaling_rule: str
    texts: int
    special_token_share: float
    top_token_share: float
    entropy: float
    relative_entropy: float


def text_statistics(weights: np.ndarray, special: np.ndarray) -> AttentionStatistics:
    """Statistics of one text of at least two tokens.

    ``weights`` are (heads, length, length) without padding, each row summing to 1; ``special`` is
    (length,) bool. Entropy is taken per head and row, as in Clark et al. 2019 (arXiv:1906.04341).
    """
    received = weights.mean(axis=1)  # (heads, length): by each token, averaged over who looks
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    entropy = float(-(weights * logs).sum(axis=2).mean())
    return AttentionStatistics(
        special_token_share=float(received[:, special].sum(axis=1).mean()),
        top_token_share=float(received.max(axis=1).mean()),
        entropy=entropy,
        relative_entropy=entropy / float(np.log(weights.shape[-1])),
    )


def mean_statistics(readings: Iterable[Reading]) -> tuple[AttentionStatistics, int]:
    """The mean over texts, each weighing the same, and how many they are.

    A text of one token has nothing to choose from and is left out.
    """
    each = [text_statistics(r.weights, r.special) for r in readings if len(r.tokens) > 1]
    columns = AttentionStatistics.__dataclass_fields__
    means = {name: float(np.mean([getattr(value, name) for value in each])) for name in columns}
    return AttentionStatistics(**means), len(each)


def attention_row(cell: TestedCell, statistics: AttentionStatistics, texts: int) -> AttentionRow:
    """The statistics of a cell's trial as a row."""
    return AttentionRow(cell.model, cell.target_batch_size, cell.scaling_rule, texts, **vars(statistics))


def attention_table(rows: Sequence[AttentionRow], where: str) -> TableContent:
    """The table behind ``attention.csv``; ``where`` names the layer and heads."""
    note = (
        f"Attention weights in {where} of the best-epoch models, averaged over tokens, heads and texts. "
        "Special tokens are [CLS], [SEP] and their like; the top token is the one that gets the most "
        "weight in its text. Entropy is in nats; relative entropy divides it by the logarithm of the "
        "number of tokens, so that 1 is uniform attention."
    )
    return table_of(AttentionRow, rows, "Where attention goes", note)
