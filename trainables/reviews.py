"""Data sets -> checked, deduplicated reviews -> seeded, stratified 8:1:1 splits."""

import hashlib
import math
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from errors import UserError, first_line, unknown
from search_spaces import TrialConfig
from trainables import demo_reviews

SPLITS = ("train", "val", "test")
MIN_PER_CLASS = 20  # so that each of the 8:1:1 splits gets every class
_FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}

# one of the two escapes, such as \ud83d\ude00, that JSON needs for a character beyond the first 65,536
_HALF_CHARACTER = re.compile(
    rb"(?<!\\)(?:\\\\)*(?:\\u[dD][89abAB][\da-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][\da-fA-F]{2})\\u[dD][c-fC-F][\da-fA-F]{2})"
)


@dataclass(frozen=True)
class Reviews:
    """A labelled data set. ``row_ids`` are positions in the source, before anything was dropped."""

    texts: list[str]
    labels: np.ndarray  # (n,) int64, indices into label_names
    row_ids: np.ndarray  # (n,) int64
    label_names: tuple[str, ...]
    duplicates_dropped: int

    def select(self, indices: np.ndarray) -> "Reviews":
        """The reviews at ``indices``, in that order."""
        texts = [self.texts[i] for i in indices]
        return Reviews(texts, self.labels[indices], self.row_ids[indices], self.label_names, 0)


@dataclass(frozen=True)
class ReviewSplits:
    """The three splits of one data set, and the digest that identifies them."""

    train: Reviews
    val: Reviews
    test: Reviews
    label_names: tuple[str, ...]
    duplicates_dropped: int

    def sizes(self) -> dict[str, int]:
        """Examples in each split, by its name."""
        return {name: len(getattr(self, name).texts) for name in SPLITS}

    def digest(self) -> str:
        """16 hex digits that change with any text, label or split membership."""
        digest = hashlib.sha256("\0".join(self.label_names).encode())
        for name in SPLITS:
            split: Reviews = getattr(self, name)
            digest.update(f"\0{name}\0".encode())
            digest.update(split.row_ids.tobytes() + split.labels.tobytes())
            digest.update("\0".join(split.texts).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


def load_splits(config: TrialConfig) -> ReviewSplits:
    """Load, check, deduplicate and split the data set that ``config`` names.

    Raises UserError for anything that is wrong with the data.
    """
    reviews = load_reviews(config)
    _check_class_sizes(reviews)
    held_out = len(reviews.texts) // 10

    def split(indices: np.ndarray, second: int) -> list[np.ndarray]:
        return train_test_split(
            indices,
            test_size=second,
            stratify=reviews.labels[indices],
            random_state=config.split_seed,
        )

    train, rest = split(np.arange(len(reviews.texts)), 2 * held_out)
    val, test = split(rest, held_out)
    sizes = {"--train-size": config.train_size, "--eval-size": config.eval_size}
    for flag, available in (("--train-size", len(train)), ("--eval-size", held_out)):
        wanted = sizes[flag]
        if wanted is not None and not len(reviews.label_names) <= wanted <= available:
            raise UserError(
                f"{flag} {wanted} is not between the {len(reviews.label_names)} classes and the "
                f"{available} examples of that split"
            )

    def subset(indices: np.ndarray, size: int | None) -> Reviews:
        try:
            return reviews.select(indices if size is None else split(indices, size)[1])
        except ValueError:  # a class is too rare, or too little is left out, to choose by class
            return reviews.select(indices[:size])

    return ReviewSplits(
        train=subset(train, config.train_size),
        val=subset(val, config.eval_size),
        test=subset(test, config.eval_size),
        label_names=reviews.label_names,
        duplicates_dropped=reviews.duplicates_dropped,
    )


def load_reviews(config: TrialConfig) -> Reviews:
    """Load and check a data set: a hub id, a local folder, or one CSV, JSON or Parquet file."""
    if config.dataset == demo_reviews.NAME:
        texts, classes = demo_reviews.generate()
        names = ("negative", "positive")
        return _deduplicated(texts, np.array(classes), names, config.keep_duplicates)
    table = _load_table(config.dataset)
    for column in (config.text_column, config.label_column):
        if column not in table.column_names:
            raise unknown(f"column of {config.dataset}", column, table.column_names)
    texts = _checked_texts(table[config.text_column], config.text_column)
    labels, label_names = _checked_labels(table, config.label_column)
    return _deduplicated(texts, labels, label_names, config.keep_duplicates)


def _load_table(dataset: str) -> datasets.Dataset:
    path = Path(os.path.expanduser(dataset))  # noqa: PTH111 - Path.expanduser raises for ~stranger
    exists = os.path.exists(path)  # noqa: PTH110 - Path.exists raises for long names
    looks_local = dataset.startswith((".", "/", "~")) or path.suffix in _FILE_FORMATS
    if looks_local and not exists:
        raise UserError(f"no such data set file or folder: {dataset}")
    if exists and path.is_file() and path.suffix not in _FILE_FORMATS:
        formats = ", ".join(_FILE_FORMATS)
        raise UserError(f"{dataset} is not one of the file formats that are read: {formats}")
    try:
        loaded = _load_local(path) if exists else datasets.load_dataset(dataset)
    except Exception as error:  # the library raises a different type for every kind of bad input
        reason = first_line(error.__cause__ or error)
        raise UserError(
            f"data set '{dataset}' cannot be read ({reason}): give a hub id while the hub is in "
            "reach, a folder, or a CSV, JSON or Parquet file"
        ) from error
    # the hub's IMDB carries a third split without labels
    labelled = [loaded[name] for name in loaded if name != "unsupervised"]
    if not labelled:
        raise UserError(f"data set '{dataset}' has no labelled split")
    return datasets.concatenate_datasets(labelled)


def _load_local(path: Path) -> datasets.DatasetDict:
    """Read a file or a folder into memory: no copy of somebody's reviews stays in the user's cache."""
    with tempfile.TemporaryDirectory() as cache, warnings.catch_warnings():
        # rows longer than the header: pandas would move the columns, or leave the rest out, and go on
        warnings.simplefilter("error", pd.errors.ParserWarning)
        options: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True}
        if path.is_dir():
            return datasets.load_dataset(str(path), **options)
        if path.suffix == ".json" and _HALF_CHARACTER.search(path.read_bytes()):
            raise ValueError("it spells half of a character, which would be left out")
        kind = _FILE_FORMATS[path.suffix]
        if kind == "csv":
            options["index_col"] = False
        return datasets.load_dataset(kind, data_files=str(path), **options)


def _checked_texts(column: Sequence[Any], name: str) -> list[str]:
    texts = list(column)
    bad = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if bad:
        raise UserError(
            f"{len(bad)} rows have no text in column '{name}' (the first is row {bad[0]}): "
            "remove them or name another column with --text-column"
        )
    return texts


def _checked_labels(table: datasets.Dataset, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    values = list(table[name])
    feature = table.features[name]
    has_names = isinstance(feature, datasets.ClassLabel)
    bad = [i for i, value in enumerate(values) if _is_missing(value, has_names)]
    if bad:
        raise UserError(
            f"{len(bad)} rows have no label in column '{name}' (the first is row {bad[0]}): "
            "remove them or name another column with --label-column"
        )
    if any(isinstance(v, float) and not v.is_integer() for v in values):
        raise UserError(f"column '{name}' holds fractions, not classes: name another --label-column")
    if any(not isinstance(v, (str, int, float)) for v in values):
        raise UserError(f"column '{name}' holds neither numbers nor names: name another one")
    if len({isinstance(v, str) for v in values}) > 1:
        raise UserError(f"column '{name}' mixes numbers and names: give every class a name")
    values = [int(v) if isinstance(v, (bool, float)) else v for v in values]
    classes = sorted(set(values))
    if len(classes) < 2:
        raise UserError(f"all labels in column '{name}' are {classes}: two classes are needed")
    index = {value: i for i, value in enumerate(classes)}
    names = tuple(feature.int2str(c) if has_names else str(c) for c in classes)
    return np.array([index[v] for v in values], dtype=np.int64), names


def _is_missing(value: Any, is_class_index: bool) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return value == -1 if is_class_index else value == ""


def _deduplicated(
    texts: list[str], labels: np.ndarray, label_names: tuple[str, ...], keep_duplicates: bool
) -> Reviews:
    row_ids = np.arange(len(texts))
    if not keep_duplicates:
        first: dict[str, int] = {}
        for i, text in enumerate(texts):
            first.setdefault(text, i)
        row_ids = np.fromiter(first.values(), np.int64, len(first))
    kept = [texts[i] for i in row_ids]
    dropped = len(texts) - len(kept)
    return Reviews(kept, labels[row_ids].astype(np.int64), row_ids, label_names, dropped)


def _check_class_sizes(reviews: Reviews) -> None:
    counts = np.bincount(reviews.labels, minlength=len(reviews.label_names))
    label, count = int(counts.argmin()), int(counts.min())
    if count < MIN_PER_CLASS:
        raise UserError(
            f"class '{reviews.label_names[label]}' has {count} examples; "
            f"an 8:1:1 split needs at least {MIN_PER_CLASS} of each class"
        )
