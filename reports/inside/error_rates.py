"""Error rates by review length and by negation, with Wilson intervals."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.content import TableContent, table_of
from reports.evidence.statistics import wilson_interval
from reports.inside.tested import TestedCell, TestedStudy, count_words

_QUARTILES = (0.25, 0.5, 0.75)
_WORDS = (
    "not no never nothing nor neither none nobody nowhere without hardly barely scarcely cannot "
    "dont didnt doesnt isnt wasnt"
).split()
_NEGATION = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b|\wn['’]t\b", re.IGNORECASE)


@dataclass(frozen=True)
class ErrorRate:
    """A row of ``error_rates.csv``; ``low`` and ``high`` are the ends of a 95 % Wilson interval."""

    model: str
    target_batch_size: int
    scaling_rule: str
    property: str  # "words" or "negation"
    group: str
    texts: int
    errors: int
    error_rate: float
    low: float
    high: float


def has_negation(text: str) -> bool:
    """Whether an English negation occurs as a word: not, n't, no, never, nothing, nor, without, …"""
    return _NEGATION.search(text) is not None


def length_bins(words: pd.Series) -> pd.Series:
    """Quartile bins of word counts, named by the least and most words in them (``12–18``).

    The categories are in ascending order. Equal counts fall into one bin, so there may be fewer than
    four.
    """
    edges = np.unique(np.quantile(words, _QUARTILES))
    bins = pd.Series(np.searchsorted(edges, words, side="left"), words.index)
    names = {number: _span(words[bins == number]) for number in sorted(bins.unique())}
    return bins.map(names).astype(pd.CategoricalDtype(list(names.values()), ordered=True))


def _span(words: pd.Series) -> str:
    least, most = int(words.min()), int(words.max())
    return str(least) if least == most else f"{least}–{most}"


def error_rates(study: TestedStudy) -> list[ErrorRate]:
    """The error rate of every cell in every group of test texts."""
    texts = study.test["text"]
    negation = texts.map(has_negation).map({True: "with", False: "without"})
    properties = {
        "words": length_bins(texts.map(count_words)),
        "negation": negation.astype(pd.CategoricalDtype(["without", "with"], ordered=True)),
    }
    return [
        row
        for cell in study.cells
        for name, groups in properties.items()
        for row in _cell_rates(cell, name, groups)
    ]


def _cell_rates(cell: TestedCell, name: str, groups: pd.Series) -> Iterator[ErrorRate]:
    correct = cell.trial.correct().loc[groups.index]
    for group, own in correct.groupby(groups, observed=True):
        errors, texts = int((~own).sum()), len(own)
        low, high = wilson_interval(errors, texts)
        yield ErrorRate(
            cell.model,
            cell.target_batch_size,
            cell.scaling_rule,
            name,
            str(group),
            texts,
            errors,
            errors / texts,
            low,
            high,
        )


def rates_table(rows: Sequence[ErrorRate]) -> TableContent:
    """The table behind ``error_rates.csv``."""
    note = (
        "Words are counted between blanks; the groups are quartiles of the test split. Negation is an "
        "English word such as not, never, without or n't. Low and high are 95 % Wilson intervals, each "
        "for its own row: the same texts stand in many rows, so rows are not independent."
    )
    return table_of(ErrorRate, rows, "Error rate by review length and negation", note)
