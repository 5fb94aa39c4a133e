from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pytest

from tests.helpers import SHARED, make_config, needs_shared, refusal
from trainables.review_splits import load_splits
from trainables.reviews import SPLITS, load_reviews

TEXTS = [f"review number {i}" for i in range(40)]
LABELS = [0, 1] * 20
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})


def write(path, frame=FRAME):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=path.suffix == ".jsonl")
    return path


def with_class_labels(labels=LABELS, names=("positive", "negative")):
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
    rows = {"text": TEXTS[: len(labels)], "label": labels}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def load(path, **overrides):
    return load_reviews(make_config(dataset=str(path), **overrides)).reviews


def split(path, **overrides):
    return load_splits(make_config(dataset=str(path), **overrides))


def by_split(splits, field):
    return [list(getattr(getattr(splits, name), field)) for name in SPLITS]


# -- what can be loaded ----------------------------------------------------------------------------


def test_the_splits_of_a_folder_are_pooled_without_an_unsupervised_one_and_columns_can_be_named(tmp_path):
    frame = FRAME.rename(columns={"text": "review", "label": "sentiment"})
    unlabelled = pd.DataFrame({"review": ["nobody", "judged", "these"], "sentiment": -1})
    for split, rows in (("train", frame[:30]), ("test", frame[30:]), ("unsupervised", unlabelled)):
        write(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows)
    reviews = load(tmp_path, text_column="review", label_column="sentiment")
    assert (reviews.texts, reviews.labels.tolist()) == (TEXTS, LABELS)


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (["pos", "neg"] * 20, ("neg", "pos"), [1, 0] * 20),
        ([4, 2] * 20, ("2", "4"), [1, 0] * 20),
        ([-1, 1] * 20, ("-1", "1"), [0, 1] * 20),
        ([1.0, 0.0] * 20, ("0", "1"), [1, 0] * 20),
        ([True, False] * 20, ("0", "1"), [1, 0] * 20),
        (["c", "a", "b", "d"] * 10, ("a", "b", "c", "d"), [2, 0, 1, 3] * 10),
    ],
    ids=["strings", "integers", "minus one", "floats", "booleans", "four classes"],
)
def test_labels_become_indices_into_sorted_names(tmp_path, labels, names, indices):
    reviews = load(write(tmp_path / "reviews.jsonl", FRAME.assign(label=labels)))
    assert reviews.label_names == names
    assert reviews.labels.tolist() == indices
    assert reviews.labels.dtype == np.int64


def test_names_of_classes_can_be_shown_and_stay_as_people_write_them(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\na,\x1b]0;owned\x07\nb,خیلی‌خوب\nc,とても　良い\n", encoding="utf-8")
    names = load(path).label_names
    assert names == ("\\x1b]0;owned\\x07", "خیلی‌خوب", "とても　良い")


@pytest.mark.parametrize("kind", [lambda rows: rows, lambda rows: datasets.DatasetDict(train=rows)])
def test_class_labels_bring_their_own_names_in_their_own_order(tmp_path, kind):
    kind(with_class_labels()).save_to_disk(tmp_path)
    reviews = load(tmp_path)
    assert reviews.label_names == ("positive", "negative")
    assert reviews.labels.tolist() == LABELS


# -- duplicates ------------------------------------------------------------------------------------

REPEATED = pd.concat([FRAME[:3], FRAME, FRAME[-2:]], ignore_index=True)


def test_duplicates_are_kept_or_dropped_and_counted_and_row_ids_are_positions_in_the_source(tmp_path):
    path = write(tmp_path / "reviews.csv", REPEATED)
    kept = load(path, duplicates="keep")
    assert kept.texts == list(REPEATED["text"])
    splits = split(path)
    assert splits.facts.duplicates_dropped == 5
    assert sorted(np.concatenate(by_split(splits, "row_ids"))) == [0, 1, 2, *range(6, 43)]
    for part in (splits.train, splits.val, splits.test):
        assert part.texts == list(REPEATED["text"][part.row_ids])
        assert part.labels.tolist() == list(REPEATED["label"][part.row_ids])


# -- splits ----------------------------------------------------------------------------------------


def numbered(classes):
    return pd.DataFrame({"text": [f"text {i}" for i in range(len(classes))], "label": classes})


def test_splits_are_8_1_1_and_hold_every_example_once(tmp_path):
    for size, held_out in ((100, 10), (103, 10), (109, 10), (110, 11)):
        splits = split(write(tmp_path / "reviews.csv", numbered([i % 2 for i in range(size)])))
        assert splits.sizes() == {"train": size - 2 * held_out, "val": held_out, "test": held_out}
        assert sorted(np.concatenate(by_split(splits, "row_ids"))) == list(range(size))


def test_splits_are_stratified(tmp_path):
    frame = numbered(["a"] * 100 + ["b"] * 60 + ["c"] * 40)
    counts = [Counter(labels) for labels in by_split(split(write(tmp_path / "x.csv", frame)), "labels")]
    assert counts == [{0: 80, 1: 48, 2: 32}, {0: 10, 1: 6, 2: 4}, {0: 10, 1: 6, 2: 4}]


def test_sizes_take_stratified_subsets_of_their_splits(tmp_path):
    path = write(tmp_path / "reviews.csv", numbered([0, 0, 0, 1] * 100))
    whole, part = split(path), split(path, train_size=40, eval_size=20)
    assert part.sizes() == {"train": 40, "val": 20, "test": 20}
    for name in SPLITS:
        chosen, source = getattr(part, name), getattr(whole, name)
        assert set(chosen.row_ids) <= set(source.row_ids)
        assert len(set(chosen.row_ids)) == len(chosen.row_ids)
        assert chosen.labels.mean() == 0.25


def test_a_size_may_be_any_that_the_split_has(tmp_path):
    path = write(tmp_path / "reviews.csv")
    for size in (31, 32):
        assert split(path, train_size=size).sizes() == {"train": size, "val": 4, "test": 4}
    rare = write(tmp_path / "rare.csv", numbered([0] * 20 + [1] * 980))
    assert split(rare, eval_size=50).sizes() == {"train": 800, "val": 50, "test": 50}


def test_twenty_examples_of_a_class_are_enough_for_every_split(tmp_path):
    for others in (20, 27, 39, 58, 79):
        splits = split(write(tmp_path / "reviews.csv", numbered([0] * 20 + [1] * others)))
        assert [set(labels) for labels in by_split(splits, "labels")] == [{0, 1}] * 3


# -- the digest: finished trials are recognised by it ----------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_the_digest_of_a_file_holds(tmp_path, suffix):
    assert split(write(tmp_path / f"reviews{suffix}")).digest() == "99dc1d4e27aa7ff2"


def test_the_digest_of_named_classes_holds(tmp_path):
    with_class_labels(names=["neg", "pos"]).to_parquet(tmp_path / "reviews.parquet")
    assert split(tmp_path).digest() == "fdbf58a2ce09b703"


def test_digest_changes_with_the_split_a_text_a_label_and_a_class_name_and_not_with_the_trial_seed(
    tmp_path,
):
    path = write(tmp_path / "reviews.csv")
    assert split(path, seed=3).digest() == "99dc1d4e27aa7ff2"
    changed = [split(path, **{name: 3}).digest() for name in ("split_seed", "train_size", "eval_size")]
    for frame in (
        FRAME.assign(text=["review number nought", *TEXTS[1:]]),
        FRAME.assign(label=[1, 0, *LABELS[2:]]),
        FRAME.assign(label=[2, 3] * 20),
    ):
        changed.append(split(write(path, frame)).digest())
    assert len({"99dc1d4e27aa7ff2", *changed}) == 7


# -- what is refused -------------------------------------------------------------------------------


def test_missing_file_or_folder_is_named_and_alternatives_to_the_hub_are_given():
    for place in ("missing.csv", "/nowhere/reviews", "./nowhere", "~/nowhere.jsonl", "~no-such-user/x.csv"):
        assert f"no such data set file or folder: {place}" in refusal(split, place)
    reason = refusal(split, "someone/some-reviews")
    assert "'someone/some-reviews' cannot be read" in reason
    assert "CSV" in reason


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("parquet", b"PAR1 and then nothing of the kind"),
        ("csv", b'text,label\na,b\n"never closed,1\n'),
        ("jsonl", b'{"text": "a fine film", "label"\n'),
    ],
)
def test_unreadable_file_is_refused_by_name(tmp_path, suffix, content):
    path = tmp_path / f"reviews.{suffix}"
    path.write_bytes(content)
    assert f"'{path}' cannot be read" in refusal(split, path)


def test_a_file_without_rows_is_refused(tmp_path):
    for suffix, content in (("csv", "text,label\n"), ("json", "[]"), ("jsonl", "\n")):
        path = tmp_path / f"reviews.{suffix}"
        path.write_text(content)
        assert f"'{path}' has no rows" in refusal(split, path)


def test_a_folder_or_a_file_of_something_else_is_refused(tmp_path):
    assert f"'{tmp_path}' cannot be read" in refusal(split, tmp_path)
    (tmp_path / "reviews.txt").write_text("a fine film\n")
    assert ".csv, .json, .jsonl, .parquet" in refusal(split, tmp_path / "reviews.txt")
    write(tmp_path / "set" / "data" / "unsupervised-00000-of-00001.parquet", FRAME.assign(label=-1))
    assert "no labelled split" in refusal(split, tmp_path / "set")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"text_column": "texts"}, "'texts': did you mean text?"),
        ({"label_column": "labels"}, "'labels': did you mean label?"),
        ({"label_column": "qqqq"}, "choose from label, text"),
        ({"train_size": 33}, "--train-size 33 is not between the 2 classes and the 32 examples"),
        ({"train_size": 1}, "--train-size 1 "),
        ({"eval_size": 5}, "--eval-size 5 is not between the 2 classes and the 4 examples"),
    ],
)
def test_a_column_or_a_size_that_there_is_not_is_refused_with_what_there_is(tmp_path, wanted, words):
    assert words in refusal(split, write(tmp_path / "reviews.csv"), **wanted)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": [None, *LABELS[1:]]}, "1 row has no label in column 'label' (the first is record 1)"),
        ({"label": ["a", ""] * 20}, "20 rows have no label in column 'label' (the first is record 2)"),
        ({"text": [*TEXTS[:-1], None]}, "1 row has no text in column 'text' (the first is record 40)"),
        ({"text": [*TEXTS[:-2], " ", ""]}, "2 rows have no text"),
        ({"text": range(40)}, "40 rows have no text"),
        ({"label": [0.0, 1.0, 0.5, 1.0] * 10}, "fractions"),
        ({"label": 1}, "two classes are needed"),
        ({"label": [[0], [1]] * 20}, "neither numbers nor names"),
        ({"label": [0] * 31 + [1] * 9}, "class '1' has 9 examples"),
        ({"label": ["bad"] * 3 + ["good"] * 37}, "class 'bad' has 3 examples"),
        ({"text": TEXTS[:20] * 2, "label": [0] * 20 + [1] * 20}, "class '0' has 0 examples"),
        ({"label": [1, "good"] * 20}, "mixes numbers and names"),
    ],
    ids="none empty-label no-text blank-text number fraction one list nine three double mix".split(),
)
def test_unusable_column_is_refused_with_its_reason(tmp_path, columns, words):
    assert words in refusal(split, write(tmp_path / "reviews.json", FRAME.assign(**columns)))


@pytest.mark.parametrize("missing", [-1, None])
def test_unlabelled_rows_of_a_class_label_are_missing(tmp_path, missing):
    path = tmp_path / "reviews.parquet"
    with_class_labels([0, 1, missing, 1] * 10).to_parquet(path)
    assert "10 rows have no label in column 'label' (the first is row 3)" in refusal(split, path)


# -- real data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        pytest.param("rt_polarity", 10_662, marks=needs_shared("rt_polarity")),
        pytest.param("imdb", 50_000, marks=needs_shared("imdb")),
    ],
)
def test_real_data_is_split_whole(name, rows):
    files = sorted((SHARED / name).glob("*.parquet"), key=lambda path: path.stem != "train")
    source = pd.concat(map(pd.read_parquet, files), ignore_index=True)
    splits = split(SHARED / name)
    assert len(source) == rows
    assert splits.facts.duplicates_dropped == source["text"].duplicated().sum()
    kept = rows - splits.facts.duplicates_dropped
    assert splits.sizes()["val"] == splits.sizes()["test"] == kept // 10
    share = np.concatenate(by_split(splits, "labels")).mean()
    for part in (splits.train, splits.val, splits.test):
        assert part.texts == list(source["text"].iloc[part.row_ids])
        assert part.labels.tolist() == list(source["label"].iloc[part.row_ids])
        assert abs(part.labels.mean() - share) <= 1 / (kept // 10)
    assert len(set(np.concatenate(by_split(splits, "row_ids")))) == sum(splits.sizes().values()) == kept
    assert len(set().union(*by_split(splits, "texts"))) == kept  # no text in two splits
