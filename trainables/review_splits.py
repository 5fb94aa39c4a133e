"""Reviews -> seeded, stratified 8:1:1 splits, groups kept whole; or the splits that the data set has."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from errors import UserError
from search_spaces import TrialConfig
from search_spaces.trial_config import OWN
from trainables.reviews import SPLITS, LoadedReviews, Reviews, SourceFacts, folded, load_reviews, own_names

MIN_PER_CLASS = 20  # so that each of the 8:1:1 splits gets every class
_FOLDS = 10  # one is the val split, one the test split, the others the training split


@dataclass(frozen=True)
class GroupFacts:
    """The groups of a data set; no group is in two splits."""

    count: int
    largest: str
    largest_rows: int


@dataclass(frozen=True)
class ReviewSplits:
    """The three splits of one data set, their digest, and facts on how they were made."""

    train: Reviews
    val: Reviews
    test: Reviews
    label_names: tuple[str, ...]
    facts: SourceFacts
    groups: GroupFacts | None = None

    def sizes(self) -> dict[str, int]:
        return {name: len(getattr(self, name).texts) for name in SPLITS}

    def class_counts(self) -> dict[str, np.ndarray]:
        """Split -> how many examples each class has there, (classes,)."""
        return {
            name: np.bincount(getattr(self, name).labels, minlength=len(self.label_names))
            for name in SPLITS
        }

    def digest(self) -> str:
        """16 hex digits that change with any text, any label and any example's split."""
        digest = hashlib.sha256("\0".join(self.label_names).encode())
        for name in SPLITS:
            split: Reviews = getattr(self, name)
            digest.update(f"\0{name}\0".encode())
            digest.update(split.row_ids.tobytes() + split.labels.tobytes())
            digest.update("\0".join(split.texts).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    @cached_property
    def near_duplicates(self) -> int:
        """How many texts of val and test are in another split too, ignoring blanks, line ends and case."""
        keys = {name: [folded(text) for text in getattr(self, name).texts] for name in SPLITS}
        places: dict[str, set[str]] = {}
        for name, own in keys.items():
            for key in own:
                places.setdefault(key, set()).add(name)
        return sum(len(places[key]) > 1 for name in ("val", "test") for key in keys[name])


def load_splits(config: TrialConfig) -> ReviewSplits:
    """Load, check, deduplicate and split the data set that ``config`` names.

    Raises UserError for anything that is wrong with the data.
    """
    loaded = load_reviews(config)
    parts = _own_parts(loaded, config) if config.splits == OWN else _new_parts(loaded, config)
    _check_classes(parts, loaded.reviews, config)
    _check_sizes(parts, loaded.reviews, config)
    sizes = {"train": config.train_size, "val": config.eval_size, "test": config.eval_size}
    return ReviewSplits(
        **{name: _subset(loaded.reviews, parts[name], sizes[name], config.split_seed) for name in SPLITS},
        label_names=loaded.reviews.label_names,
        facts=loaded.facts,
        groups=_group_facts(loaded.groups),
    )


# -- how a data set is cut: split -> indices of its reviews ------------------------------------------


def _new_parts(loaded: LoadedReviews, config: TrialConfig) -> dict[str, np.ndarray]:
    """All reviews, cut 8:1:1."""
    everything = np.arange(len(loaded.reviews.texts))
    _check_count(loaded, everything, "an 8:1:1 split")
    if loaded.groups is not None:
        val, test, *others = _folds(loaded, everything, config)
        return {"train": np.sort(np.concatenate(others)), "val": val, "test": test}
    held_out = len(everything) // 10
    train, rest = _divided(loaded.reviews, everything, 2 * held_out, config.split_seed)
    val, test = _divided(loaded.reviews, rest, held_out, config.split_seed)
    return {"train": train, "val": val, "test": test}


def _own_parts(loaded: LoadedReviews, config: TrialConfig) -> dict[str, np.ndarray]:
    """The data set's own splits; if it has no val split, a tenth of its train split becomes one."""
    names = own_names(loaded.facts.own_splits)
    parts = {split: np.flatnonzero(loaded.splits == names[split]) for split in SPLITS if split in names}
    _check_groups_apart(loaded, parts)
    if "val" not in parts:
        parts["train"], parts["val"] = _tenth(loaded, parts["train"], config)
    return parts


def _tenth(loaded: LoadedReviews, train: np.ndarray, config: TrialConfig) -> tuple[np.ndarray, np.ndarray]:
    _check_count(loaded, train, "a val split from a tenth of the train split")
    if loaded.groups is not None:
        val, *rest = _folds(loaded, train, config)
        return np.sort(np.concatenate(rest)), val
    kept, val = _divided(loaded.reviews, train, len(train) // 10, config.split_seed)
    return kept, val


def _folds(loaded: LoadedReviews, indices: np.ndarray, config: TrialConfig) -> list[np.ndarray]:
    """``indices`` in ten parts that share no group; the parts nearest to a tenth in size come first."""
    assert loaded.groups is not None
    labels, groups = loaded.reviews.labels[indices], loaded.groups[indices]
    if (count := len(set(groups))) < _FOLDS:
        raise UserError(
            f"column '{config.group_column}' has {count} groups, and splits that keep groups whole need "
            f"{_FOLDS} or more: name another --group-column, or leave it out"
        )
    cut = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=config.split_seed)
    folds = [indices[fold] for _, fold in cut.split(indices, labels, groups)]
    return sorted(folds, key=lambda fold: abs(len(fold) - len(indices) / _FOLDS))


def _divided(reviews: Reviews, indices: np.ndarray, second: int, seed: int) -> list[np.ndarray]:
    """``indices`` in two parts with the same class shares; the second part has ``second`` of them."""
    labels = reviews.labels[indices]
    return train_test_split(indices, test_size=second, stratify=labels, random_state=seed)


def _subset(reviews: Reviews, indices: np.ndarray, size: int | None, seed: int) -> Reviews:
    if size is None:
        return reviews.select(indices)
    try:
        return reviews.select(_divided(reviews, indices, size, seed)[1])
    except ValueError:  # a class has too few examples, or too few are left out, to stratify
        return reviews.select(indices[:size])


def _group_facts(groups: np.ndarray | None) -> GroupFacts | None:
    if groups is None:
        return None
    names, counts = np.unique(groups, return_counts=True)
    return GroupFacts(len(names), str(names[counts.argmax()]), int(counts.max()))


# -- checks ------------------------------------------------------------------------------------------


def _check_count(loaded: LoadedReviews, indices: np.ndarray, what: str) -> None:
    reviews, left_out = loaded.reviews, loaded.facts.contradictory_rows
    counts = np.bincount(reviews.labels[indices], minlength=len(reviews.label_names))
    if counts.min() < MIN_PER_CLASS:
        also = f" ({left_out:,} rows are left out, whose texts have several labels)" if left_out else ""
        raise UserError(
            f"class '{reviews.label_names[counts.argmin()]}' has {counts.min()} examples{also}; "
            f"{what} needs at least {MIN_PER_CLASS} of each class"
        )


def _check_classes(parts: Mapping[str, np.ndarray], reviews: Reviews, config: TrialConfig) -> None:
    """Raise UserError for a split that lacks a class."""
    for split, indices in parts.items():
        counts = np.bincount(reviews.labels[indices], minlength=len(reviews.label_names))
        if counts.min() == 0:
            whose = "leave --splits own out, and new splits have every class"
            whole = "its groups are too few to be kept whole: name another --group-column, or leave it out"
            raise UserError(
                f"the {split} split has no example of class '{reviews.label_names[counts.argmin()]}': "
                f"{whose if config.splits == OWN else whole}"
            )


def _check_groups_apart(loaded: LoadedReviews, parts: Mapping[str, np.ndarray]) -> None:
    """Raise UserError if splits of the data set's own share a group."""
    if loaded.groups is None:
        return
    own = {split: set(loaded.groups[indices]) for split, indices in parts.items()}
    for one, other in combinations(own, 2):
        if shared := own[one] & own[other]:
            raise UserError(
                f"{len(shared)} groups, '{min(shared)}' among them, are in the {one} and in the {other} "
                "split of the data set: leave --splits own out, and new splits keep groups whole"
            )


def _check_sizes(parts: Mapping[str, np.ndarray], reviews: Reviews, config: TrialConfig) -> None:
    classes, held_out = len(reviews.label_names), min(len(parts["val"]), len(parts["test"]))
    sizes = {
        "--train-size": (config.train_size, len(parts["train"])),
        "--eval-size": (config.eval_size, held_out),
    }
    for flag, (wanted, available) in sizes.items():
        if wanted is not None and not classes <= wanted <= available:
            limits = f"the {classes} classes and the {available} examples of that split"
            raise UserError(f"{flag} {wanted} is not between {limits}")
