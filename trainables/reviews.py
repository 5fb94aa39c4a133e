"""Data sets -> checked, deduplicated reviews -> seeded, stratified 8:1:1 splits."""

import contextlib
import hashlib
import json
import math
import os
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


@dataclass(frozen=True)
class Reviews:
    """A labelled data set. ``row_ids`` are positions in the source, before anything was dropped."""

    texts: list[str]
    labels: np.ndarray  # (n,) int64, indices into label_names
    row_ids: np.ndarray  # (n,) int64
    label_names: tuple[str, ...]
    duplicates_dropped: int

    def select(self, indices: np.ndarray) -> "Reviews":
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
    counts = np.bincount(reviews.labels, minlength=len(reviews.label_names))
    if counts.min() < MIN_PER_CLASS:
        raise UserError(
            f"class '{reviews.label_names[counts.argmin()]}' has {counts.min()} examples; "
            f"an 8:1:1 split needs at least {MIN_PER_CLASS} of each class"
        )
    held_out = len(reviews.texts) // 10
    train, rest = _divided(reviews, np.arange(len(reviews.texts)), 2 * held_out, config.split_seed)
    val, test = _divided(reviews, rest, held_out, config.split_seed)
    sizes = {"--train-size": (config.train_size, len(train)), "--eval-size": (config.eval_size, held_out)}
    for flag, (wanted, available) in sizes.items():
        if wanted is not None and not len(counts) <= wanted <= available:
            limits = f"the {len(counts)} classes and the {available} examples of that split"
            raise UserError(f"{flag} {wanted} is not between {limits}")
    return ReviewSplits(
        train=_subset(reviews, train, config.train_size, config.split_seed),
        val=_subset(reviews, val, config.eval_size, config.split_seed),
        test=_subset(reviews, test, config.eval_size, config.split_seed),
        label_names=reviews.label_names,
        duplicates_dropped=reviews.duplicates_dropped,
    )


def _divided(reviews: Reviews, indices: np.ndarray, second: int, seed: int) -> list[np.ndarray]:
    """``indices`` in two parts of the same share of every class; ``second`` of them in the second."""
    labels = reviews.labels[indices]
    return train_test_split(indices, test_size=second, stratify=labels, random_state=seed)


def _subset(reviews: Reviews, indices: np.ndarray, size: int | None, seed: int) -> Reviews:
    if size is None:
        return reviews.select(indices)
    try:
        return reviews.select(_divided(reviews, indices, size, seed)[1])
    except ValueError:  # a class is too rare, or too little is left out, to choose by class
        return reviews.select(indices[:size])


def load_reviews(config: TrialConfig) -> Reviews:
    """Load and check a data set: a hub id, a local folder, or one CSV, JSON or Parquet file."""
    if config.dataset == demo_reviews.NAME:
        texts, classes = demo_reviews.generate()
        labels, label_names = np.array(classes), demo_reviews.LABEL_NAMES
    else:
        table = _load_table(config.dataset)
        for column in (config.text_column, config.label_column):
            if column not in table.column_names:
                raise unknown(f"column of {config.dataset}", column, table.column_names)
        texts = list(table[config.text_column])
        missing = [not isinstance(text, str) or not text.strip() for text in texts]
        _refuse_rows(missing, config.text_column, "text")
        labels, label_names = _checked_labels(table, config.label_column)
    row_ids = np.arange(len(texts))
    if not config.keep_duplicates:
        row_ids = np.flatnonzero(~pd.Series(texts, dtype=object).duplicated())
    kept = [texts[i] for i in row_ids]
    return Reviews(kept, labels[row_ids].astype(np.int64), row_ids, label_names, len(texts) - len(kept))


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
        # rows longer than the header: pandas would move the columns, or leave the rest out
        warnings.simplefilter("error", pd.errors.ParserWarning)
        options: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True}
        if (path / "state.json").exists():  # written by Dataset.save_to_disk
            return datasets.DatasetDict(train=datasets.load_from_disk(str(path), keep_in_memory=True))
        if path.is_dir():
            return datasets.load_dataset(str(path), **options)
        if path.suffix == ".json":
            _check_characters(path)
        if path.suffix == ".csv":
            options["index_col"] = False
        return datasets.load_dataset(_FILE_FORMATS[path.suffix], data_files=str(path), **options)


def _check_characters(path: Path) -> None:
    """Raise ValueError where JSON spells half of a character, as in "\\ud83d", which would be left out."""
    with contextlib.suppress(json.JSONDecodeError):  # a file of lines; the library checks those itself
        json.dumps(json.loads(path.read_bytes()), ensure_ascii=False).encode()


def _checked_labels(table: datasets.Dataset, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as indices into the sorted classes, (n,) int64, and the names of the classes."""
    values, feature = list(table[name]), table.features[name]
    has_names = isinstance(feature, datasets.ClassLabel)
    unlabelled = -1 if has_names else ""
    missing = [v is None or v == unlabelled or (isinstance(v, float) and math.isnan(v)) for v in values]
    _refuse_rows(missing, name, "label")
    if any(isinstance(v, float) and not v.is_integer() for v in values):
        raise UserError(f"column '{name}' holds fractions, not classes: name another --label-column")
    if any(not isinstance(v, (str, int, float)) for v in values):
        raise UserError(f"column '{name}' holds neither numbers nor names: name another one")
    if len({isinstance(v, str) for v in values}) > 1:
        raise UserError(f"column '{name}' mixes numbers and names: give every class a name")
    values = [v if isinstance(v, str) else int(v) for v in values]
    labels, classes = pd.factorize(np.array(values, dtype=object), sort=True)
    if len(classes) < 2:
        raise UserError(f"all labels in column '{name}' are {list(classes)}: two classes are needed")
    return labels, tuple(feature.int2str(c) if has_names else str(c) for c in classes)


def _refuse_rows(missing: Sequence[bool], column: str, what: str) -> None:
    if any(missing):
        raise UserError(
            f"{sum(missing)} rows have no {what} in column '{column}' "
            f"(the first is row {missing.index(True)}): "
            f"remove them or name another column with --{what}-column"
        )
