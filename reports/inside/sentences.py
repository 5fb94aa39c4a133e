"""Which sentences the attention maps show."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from errors import UserError
from reports.inside.tested import count_words

_READABLE_WORDS = range(4, 17)


@dataclass(frozen=True)
class Sentence:
    """A text to look at, and why it was chosen."""

    text: str
    why: str


def given_sentences(texts: Sequence[str]) -> list[Sentence]:
    """The user's own; a UserError for one without a word."""
    if any(not text.strip() for text in texts):
        raise UserError("--text is empty: give a sentence")
    for text in texts:
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"--text '{text}' holds bytes that are not text: give it in UTF-8")
    return [Sentence(text, "given sentence") for text in texts]


def choose_sentences(
    test: pd.DataFrame, correct: pd.DataFrame, label_names: Sequence[str]
) -> list[Sentence]:
    """Up to three short test sentences: trials disagree on it, all get it right, all get it wrong.

    ``test`` has columns ``label`` and ``text``; ``correct`` is bool with a column per trial; both are
    indexed by row_id. Ties go to the shorter text, then to the lower row_id.
    """
    share = correct.mean(axis=1)
    kinds = {
        "trials disagree": share.where(share < 0.5, 1 - share),
        "all trials are right": (share == 1).astype(float),
        "all trials are wrong": (share == 0).astype(float),
    }
    found = [(why, _shortest(test["text"], score)) for why, score in kinds.items()]
    return [
        Sentence(test["text"][row], f"{why}, label {label_names[test['label'][row]]}")
        for why, row in found
        if row is not None
    ]


def _shortest(texts: pd.Series, score: pd.Series) -> int | None:
    """The row_id of the highest positive score, among readable lengths where there are any."""
    words = texts.map(count_words)
    candidates = pd.DataFrame({"score": score, "words": words})[score > 0]
    if candidates.empty:
        return None
    readable = candidates[candidates["words"].isin(_READABLE_WORDS)]
    candidates = candidates if readable.empty else readable
    ordered = candidates.rename_axis("row_id").reset_index()
    ordered = ordered.sort_values(["score", "words", "row_id"], ascending=[False, True, True])
    return int(ordered["row_id"].iloc[0])
