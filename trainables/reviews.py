"""Data sets -> checked, deduplicated reviews, with the facts of what was found and what was left out."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from errors import UserError, printable
from search_spaces import TrialConfig
from search_spaces.trial_config import FOLDED, KEEP, OWN
from trainables import demo_reviews
from trainables.review_files import SourcePart, read_parts

SPLITS = ("train", "val", "test")
SPLIT_OF = dict.fromkeys(("valid", "validation", "dev"), "val") | {name: name for name in SPLITS}
_SECRET = -1  # the label of every row in a split whose labels are kept secret
_SECRETS = (_SECRET, str(_SECRET))
_UNSUPERVISED = "unsupervised"  # the name of such a split in the hub's IMDB
_BOOLEANS = {"true", "True", "TRUE", "false", "False", "FALSE"}  # as pandas reads them
_WHOLE = re.compile(r"\s*[+-]?\d{1,300}\s*", re.ASCII)
_FRACTION = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


@dataclass(frozen=True)
class Reviews:
    """A labelled data set. ``row_ids`` are row numbers in the source, before rows are dropped."""

    texts: list[str]
    labels: np.ndarray  # (n,) int64, indices into label_names
    row_ids: np.ndarray  # (n,) int64
    label_names: tuple[str, ...]

    def select(self, indices: np.ndarray) -> "Reviews":
        texts = [self.texts[i] for i in indices]
        return Reviews(texts, self.labels[indices], self.row_ids[indices], self.label_names)


@dataclass(frozen=True)
class SourceFacts:
    """Counts of what a data set holds and of what was left out."""

    rows: int
    empty_rows: int  # with neither a text nor a label
    contradictory_texts: int  # with more than one label
    contradictory_rows: int
    duplicates_dropped: int
    own_splits: Mapping[str, int]  # the source's labelled splits -> rows
    unlabelled_splits: Sequence[str]


@dataclass(frozen=True)
class LoadedReviews:
    """A whole data set. ``splits``: each review's split in the source, (n,) str."""

    reviews: Reviews
    splits: np.ndarray
    groups: np.ndarray | None  # (n,) str, blanks and case folded; None without a group column
    facts: SourceFacts


def load_reviews(config: TrialConfig) -> LoadedReviews:
    """Load and check a data set: a hub id, a local folder, or one CSV, TSV, JSON or Parquet file.

    Raises UserError for anything that is wrong with the data.
    """
    parts = _parts(config)
    frame = _frame(parts, config)
    if frame.empty:
        raise UserError(f"data set '{config.dataset}' has no rows: give one with texts and labels")
    rows, unlabelled = len(frame), _unlabelled_splits(frame)
    frame = frame[~frame["split"].isin(unlabelled)]
    if frame.empty:
        raise UserError(f"data set '{config.dataset}' has no labelled split: give one with labels")
    own_splits = {str(name): len(own) for name, own in frame.groupby("split", sort=False)}
    if config.splits == OWN:
        frame = frame[frame["split"].isin(_used_splits(own_splits, config).values())]
    is_empty = frame["text"].isna() & frame["label"].isna()
    frame = frame[~is_empty]
    if frame.empty:
        raise UserError(f"data set '{config.dataset}' has empty rows only: give one with texts and labels")
    source = _Source(parts, frame)
    _check_characters(source)
    _check_texts(source, config.text_column)
    labels, label_names = _checked_labels(source, config.label_column)
    if config.group_column:
        _refuse_missing(source, "group", config.group_column)
    frame = frame.assign(label=labels.astype(np.int64), key=_keys(frame["text"], config.duplicates))
    kept, contradictory = _without_repetition(frame, config)
    facts = SourceFacts(
        rows=rows,
        empty_rows=int(is_empty.sum()),
        contradictory_texts=frame["key"][contradictory].nunique(),
        contradictory_rows=int(contradictory.sum()),
        duplicates_dropped=0 if config.duplicates == KEEP else int((~kept & ~contradictory).sum()),
        own_splits=own_splits,
        unlabelled_splits=unlabelled,
    )
    frame = frame[kept]
    reviews = Reviews(
        frame["text"].tolist(), frame["label"].to_numpy(), frame.index.to_numpy(), label_names
    )
    groups = np.array(list(map(_group_name, frame["group"]))) if config.group_column else None
    return LoadedReviews(reviews, frame["split"].to_numpy(dtype=str), groups, facts)


def folded(text: str) -> str:
    """The text in lower case, with one blank for each run of blanks and line ends."""
    return " ".join(text.casefold().split())


def own_names(splits: Iterable[str]) -> dict[str, str]:
    """train, val or test -> the data set's name for it, for those that it has."""
    found: dict[str, str] = {}
    for name in splits:
        if meant := SPLIT_OF.get(name.lower()):
            found.setdefault(meant, name)
    return found


def _used_splits(own_splits: Mapping[str, int], config: TrialConfig) -> dict[str, str]:
    names = own_names(own_splits)
    if missing := [name for name in ("train", "test") if name not in names]:
        raise UserError(
            f"--splits own needs a train and a test split with labels; {config.dataset} has no "
            f"{' and no '.join(missing)} but {', '.join(own_splits)}: leave it out, and new splits are cut"
        )
    return names


def _group_name(value: Any) -> str:
    """A group as text, ``folded``; 3.0 becomes 3: a missing value turns all numbers into fractions."""
    number = _typed_cell(value) if isinstance(value, str) else value
    whole = isinstance(number, float) and number.is_integer()
    return printable(folded(str(int(number) if whole else value)))


def _parts(config: TrialConfig) -> list[SourcePart]:
    text, label, group = config.text_column, config.label_column, config.group_column
    if config.dataset != demo_reviews.NAME:
        return read_parts(config.dataset, [text, label, *([group] if group else [])], config.encoding)
    if group:
        raise UserError(f"{demo_reviews.NAME} have no groups: leave --group-column out")
    texts, classes = demo_reviews.generate()
    return [SourcePart("train", {text: texts, label: classes}, demo_reviews.LABEL_NAMES)]


def _frame(parts: Sequence[SourcePart], config: TrialConfig) -> pd.DataFrame:
    """A row per row of the source; None for a missing value; ``part`` and ``row`` give its place there."""
    columns = {"text": config.text_column, "label": config.label_column, "group": config.group_column}
    frames = []
    for number, part in enumerate(parts):
        secret = _SECRET if part.class_names else None
        found: dict[str, Any] = {
            name: _objects(
                None if _is_missing(value) or (name == "label" and value == secret) else value
                for value in part.columns.get(column or "", [None] * part.size)
            )
            for name, column in columns.items()
        }
        split = printable(part.split)
        frames.append(pd.DataFrame(found | {"split": split, "part": number, "row": range(part.size)}))
    return pd.concat(frames, ignore_index=True)


def _objects(values: Iterable[Any]) -> pd.Series:
    """The values unchanged: without ``object``, pandas turns whole numbers beside a None into floats."""
    return pd.Series(list(values), dtype=object)


def _is_missing(value: Any) -> bool:
    """Whether a cell is empty; the texts None, NA and null are words."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _unlabelled_splits(frame: pd.DataFrame) -> list[str]:
    """The splits without any label; if no split has labels, only one that is called ``unsupervised``."""
    is_secret = frame["label"].map(lambda label: label in _SECRETS)
    if is_secret.groupby(frame["split"]).any().sum() > is_secret.groupby(frame["split"]).all().sum():
        is_secret[:] = False  # some split has -1 beside other labels, so -1 is a class
    is_without = (frame["label"].isna() | is_secret).groupby(frame["split"], sort=False).all()
    without = [str(split) for split in is_without.index[is_without]]
    if len(without) < len(is_without):
        return without
    return [split for split in without if split == _UNSUPERVISED]


# -- checks ----------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """The rows of a data set, and the parts from which they come."""

    parts: Sequence[SourcePart]
    frame: pd.DataFrame

    def place(self, position: Any) -> str:
        """The place of a row in its file, given its position in the source: ``row 27``."""
        at = self.frame.loc[position]
        return self.parts[at["part"]].place(at["row"])


def _refuse_missing(source: _Source, what: str, column: str) -> None:
    """Raise UserError if rows have no ``text``, ``label`` or ``group``."""
    _refuse(source, source.frame[what].isna(), what, column)


def _refuse(source: _Source, is_missing: pd.Series, what: str, column: str) -> None:
    if is_missing.any():
        count = int(is_missing.sum())
        raise UserError(
            f"{count:,} {'rows have' if count > 1 else 'row has'} no {what} in column '{column}' "
            f"(the first is {source.place(is_missing.idxmax())}): "
            f"remove them or name another column with --{what}-column"
        )


def _check_texts(source: _Source, column: str) -> None:
    _refuse(source, source.frame["text"].map(lambda text: not isinstance(text, str)), "text", column)


def _check_characters(source: _Source) -> None:
    """Raise UserError for half of a character, which JSON can write but no file can store."""
    for what in ("text", "label", "group"):
        for position, value in source.frame[what].items():
            try:
                str(value).encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"the {what} in {source.place(position)} holds half of a character, which no file can "
                    "keep: write it anew"
                ) from None


def _checked_labels(source: _Source, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as indices into the sorted classes, (n,) int64, and the names of the classes."""
    _refuse_missing(source, "label", column)
    part, values = source.parts[source.frame["part"].iloc[0]], source.frame["label"]
    if any(not isinstance(value, str | int | float) for value in values):
        raise UserError(f"column '{column}' holds neither numbers nor names: name another one")
    if not part.is_typed:
        values = _objects(_typed(values)).set_axis(values.index)
    _refuse_mixture(source, values, column)
    fractions = values.map(lambda value: isinstance(value, float) and not value.is_integer())
    if fractions.any():
        first: Any = fractions.idxmax()
        example = f"{values[first]} in {source.place(first)}"
        raise UserError(
            f"column '{column}' holds fractions ({example}), not classes: name another --label-column"
        )
    exact = [value if isinstance(value, str) else int(value) for value in values]
    labels, classes = pd.factorize(np.array(exact, dtype=object), sort=True)
    if len(classes) < 2:
        raise UserError(f"all labels in column '{column}' are {list(classes)}: two classes are needed")
    names = part.class_names
    return labels, tuple(printable(names[label] if names else str(label)) for label in classes)


def _typed(cells: pd.Series) -> Iterable[Any]:
    """The values in the cells of a text file: booleans if all cells are, else numbers and words."""
    if set(cells) <= _BOOLEANS:
        return (cell.lower() == "true" for cell in cells)
    return map(_typed_cell, cells)


def _typed_cell(cell: str) -> int | float | str:
    if _WHOLE.fullmatch(cell):
        return int(cell)
    return float(cell) if _FRACTION.fullmatch(cell) else cell


def _refuse_mixture(source: _Source, values: pd.Series, column: str) -> None:
    """Raise UserError if some labels are numbers and others are names."""
    is_name = values.map(lambda value: isinstance(value, str))
    if is_name.nunique() < 2:
        return
    positions: tuple[Any, ...] = values.index[0], is_name.ne(is_name.iloc[0]).idxmax()
    kinds = [f"{source.frame['label'].loc[at]!r} in {source.place(at)}" for at in positions]
    raise UserError(
        f"column '{column}' mixes numbers and names, {' and '.join(kinds)}: give every class a name"
    )


# -- repeated texts --------------------------------------------------------------------------------


def _keys(texts: pd.Series, duplicates: str) -> list[str]:
    """A key per text; texts with the same key count as one."""
    return [folded(text) for text in texts] if duplicates == FOLDED else texts.tolist()


def _without_repetition(frame: pd.DataFrame, config: TrialConfig) -> tuple[pd.Series, pd.Series]:
    """Which rows are kept, and which have a text that has another label elsewhere: bool, by position.

    Of a repeated text the first row is kept. If the source's splits are used, a row of test goes before one
    of val, and that before one of train, so that the test split loses the least.
    """
    contradictory = frame.groupby("key")["label"].transform("nunique") > 1
    if config.duplicates == KEEP:
        return pd.Series(True, index=frame.index), contradictory
    order = frame["key"]
    if config.splits == OWN:
        rank = {name: -SPLITS.index(SPLIT_OF[name.lower()]) for name in frame["split"].unique()}
        order = order.iloc[frame["split"].map(rank).argsort(kind="stable").to_numpy()]
    return ~order.duplicated().reindex(frame.index) & ~contradictory, contradictory
