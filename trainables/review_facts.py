"""What plan and report say of a data set: what was read, what was left out, and how it was cut."""

from collections.abc import Iterable, Sequence

from search_spaces import TrialConfig
from search_spaces.trial_config import EXACT, KEEP, OWN
from trainables.review_splits import ReviewSplits
from trainables.reviews import SPLITS, SourceFacts, folded, own_names

_SHOWN_CLASSES = 6  # of further classes, only the number is shown
_IMDB = "imdb"


def facts_of(splits: ReviewSplits, config: TrialConfig) -> dict[str, str]:
    """Heading -> text, in the order in which they are shown."""
    found = {
        "Rows read": f"{splits.facts.rows:,}",
        "Left out": _left_out(splits, config),
        "Class shares": _class_shares(splits),
        "Splits of the data set": _own_splits(splits, config),
        "Groups": _groups(splits, config),
    }
    return {heading: text for heading, text in found.items() if text}


def warnings_of(splits: ReviewSplits, config: TrialConfig) -> list[str]:
    """Sentences that a reader should know before trusting a study of this data."""
    found, sizes = [], splits.sizes()
    if near := splits.near_duplicates:
        same = "" if config.duplicates == KEEP else ", but for blanks, line ends and case"
        found.append(
            f"{near:,} of the {sizes['val'] + sizes['test']:,} texts of the val and test splits are in "
            f"another split too{same}: --duplicates folded leaves them out."
        )
    if splits.facts.contradictory_texts and config.duplicates == KEEP:
        found.append(
            f"The data set has {_several_labels(splits.facts)}: no model can be right on all of them."
        )
    if same := _alike(splits.label_names):
        found.append(f"Classes {same} differ by blanks or case only: they may be one.")
    smallest, tenth = min(sizes["val"], sizes["test"]), sum(sizes.values()) / 10
    if splits.groups and config.splits != OWN and config.eval_size is None and smallest < tenth / 2:
        found.append(
            f"The val and test splits have only {sizes['val']:,} and {sizes['test']:,} examples, because "
            f"group {splits.groups.largest} is large and kept whole."
        )
    if _is_pooled_imdb(splits, config):
        found.append(
            "IMDB's own halves share no film (Maas et al. 2011), and the splits cut here do: a model may "
            "know a film of the test split from training. --splits own keeps the halves."
        )
    return found


def _left_out(splits: ReviewSplits, config: TrialConfig) -> str:
    facts, parts = splits.facts, []
    if config.duplicates != KEEP:
        kind = "exact duplicates" if config.duplicates == EXACT else "duplicates, blanks and case folded"
        parts.append(f"{facts.duplicates_dropped:,} {kind}")
    if facts.empty_rows:
        parts.append(_rows(facts.empty_rows, "empty row"))
    if facts.contradictory_rows and config.duplicates != KEEP:
        parts.append(f"{_rows(facts.contradictory_rows)} of {_several_labels(facts)}")
    parts += [f"split {name}, which has no labels" for name in facts.unlabelled_splits]
    if config.splits == OWN:
        own, used = facts.own_splits, own_names(facts.own_splits).values()
        parts += [f"split {name} ({_rows(rows)})" for name, rows in own.items() if name not in used]
    return "; ".join(parts) or "nothing"


def _alike(names: Sequence[str]) -> str:
    """The names of classes that differ only in blanks and case."""
    keys = [folded(name) for name in names]
    return ", ".join(repr(name) for name, key in zip(names, keys, strict=True) if keys.count(key) > 1)


def _several_labels(facts: SourceFacts) -> str:
    count = facts.contradictory_texts
    return f"{count:,} texts with several labels" if count > 1 else "1 text with several labels"


def _class_shares(splits: ReviewSplits) -> str:
    """``negative 50.0 / 50.0 / 49.9 %`` of train, val and test, for the most frequent classes."""
    counts = splits.class_counts()
    shares = {split: 100 * own / own.sum() for split, own in counts.items()}
    common = sorted(range(len(splits.label_names)), key=lambda c: -int(counts["train"][c]))
    shown = [
        f"{splits.label_names[c]} {' / '.join(f'{shares[split][c]:.1f}' for split in SPLITS)} %"
        for c in sorted(common[:_SHOWN_CLASSES])
    ]
    rest = len(common) - len(shown)
    return f"{', '.join(shown)}{f' and {rest} rarer classes' if rest else ''} ({', '.join(SPLITS)})"


def _own_splits(splits: ReviewSplits, config: TrialConfig) -> str:
    own = splits.facts.own_splits
    names = own_names(own)
    if config.splits == OWN:
        val = "" if "val" in names else "; val is a seeded tenth of its train split"
        return f"{_listed(own.items())}: used as they are{val}"
    if not {"train", "test"} <= names.keys():
        return ""
    return f"{_listed(own.items())}: pooled and cut anew; --splits own keeps them"


def _groups(splits: ReviewSplits, config: TrialConfig) -> str:
    groups = splits.groups
    if groups is None:
        return ""
    return (
        f"{groups.count:,} in column {config.group_column}, none in two splits; the largest, "
        f"{groups.largest}, has {_rows(groups.largest_rows)}"
    )


def _is_pooled_imdb(splits: ReviewSplits, config: TrialConfig) -> bool:
    name = config.dataset.rstrip("/").rpartition("/")[2].lower()
    return name == _IMDB and config.splits != OWN and len(splits.facts.own_splits) > 1


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({_rows(rows)})" for name, rows in counts)


def _rows(count: int, what: str = "row") -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
