"""What is read from files and folders of reviews, how it is split, and what is refused in one line."""

import json
from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pytest

from tests.helpers import SHARED, make_config, needs_shared
from tests.review_files import by_split, folder_of, load, numbered, refused, split, write
from trainables.reviews import SPLITS

TEXTS = [f"review number {i}" for i in range(40)]
LABELS = [0, 1] * 20
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})
MANY = 25_000  # rows: libraries guess the types of columns from the first 10,000


def with_class_labels(labels=LABELS, names=("positive", "negative")):
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
    rows = {"text": TEXTS[: len(labels)], "label": labels}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


# -- what can be read ------------------------------------------------------------------------------


def test_the_splits_of_a_folder_are_pooled_without_an_unsupervised_one_and_columns_can_be_named(tmp_path):
    frame = FRAME.rename(columns={"text": "review", "label": "sentiment"})
    unlabelled = pd.DataFrame({"review": ["nobody", "judged", "these"], "sentiment": -1})
    for name, rows in (("train", frame[:30]), ("test", frame[30:]), ("unsupervised", unlabelled)):
        write(tmp_path / "data" / f"{name}-00000-of-00001.parquet", rows)
    reviews = load(tmp_path, text_column="review", label_column="sentiment")
    assert (reviews.texts, reviews.labels.tolist()) == (TEXTS, LABELS)


LONG = [f"1234567890123456789{i}" for i in (0, 1)]  # more digits than a number keeps
WORDS = ["Favor", "Against", "None", "NA", "null", "n/a", "nan", "NaN", "inf"]  # not missing


@pytest.mark.parametrize(
    ("file", "labels", "names", "indices"),
    [
        ("names.jsonl", ["c", "a", "b", "d"], ("a", "b", "c", "d"), [2, 0, 1, 3]),
        ("integers.jsonl", [4, 2, -1], ("-1", "2", "4"), [2, 1, 0]),
        ("floats.jsonl", [1.0, 0.0], ("0", "1"), [1, 0]),
        ("truth.jsonl", [True, False], ("0", "1"), [1, 0]),
        ("order of numbers.jsonl", [1, 10, 9], ("1", "9", "10"), [0, 2, 1]),
        ("order of texts.jsonl", ["1", "10", "9"], ("1", "10", "9"), [0, 1, 2]),
        ("columns.json", '{"text": ["a", "b"], "label": [true, false]}', ("0", "1"), [1, 0]),
        ("floats.csv", ["4", "2", "2.0", "+4"], ("2", "4"), [1, 0, 0, 1]),
        ("order of numbers.csv", ["10", "9", "-1", "9"], ("-1", "9", "10"), [2, 1, 0, 1]),
        ("truth.csv", ["True", "False", "true", "FALSE"], ("0", "1"), [1, 0, 1, 0]),
        ("digits.csv", LONG, tuple(LONG), [0, 1]),
        ("words.csv", WORDS, tuple(sorted(WORDS)), [sorted(WORDS).index(word) for word in WORDS]),
    ],
)
def test_labels_become_indices_into_sorted_names(tmp_path, file, labels, names, indices):
    reviews = load(write(tmp_path / file, labels if isinstance(labels, str) else numbered(labels)))
    assert (reviews.label_names, reviews.labels.tolist()) == (names, indices)
    assert reviews.labels.dtype == np.int64


def test_names_of_classes_can_be_shown_and_stay_as_people_write_them(tmp_path):
    path = write(tmp_path / "x.csv", "text,label\na,\x1b]0;owned\x07\nb,خیلی‌خوب\nc,とても　良い\n")
    assert load(path).label_names == ("\\x1b]0;owned\\x07", "خیلی‌خوب", "とても　良い")


@pytest.mark.parametrize("kind", [lambda rows: rows, lambda rows: datasets.DatasetDict(train=rows)])
def test_class_labels_bring_their_own_names_in_their_own_order(tmp_path, kind):
    kind(with_class_labels()).save_to_disk(tmp_path)
    reviews = load(tmp_path)
    assert reviews.label_names == ("positive", "negative")
    assert reviews.labels.tolist() == LABELS


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_column_that_nobody_asked_for_may_hold_anything(tmp_path, suffix):
    nothing = "" if suffix == ".csv" else None
    frame = numbered([i % 2 for i in range(MANY + 1)], note=[nothing] * MANY + ["a note"])
    reviews = load(write(tmp_path / f"noted{suffix}", frame))
    assert (len(reviews.texts), reviews.label_names) == (MANY + 1, ("0", "1"))


def test_a_folder_that_says_how_to_read_its_files_is_read_so(tmp_path):
    write(tmp_path / "train.csv", numbered(["None", "Favor"] * 40), sep=";")
    config = 'configs:\n- config_name: default\n  data_files: train.csv\n  sep: ";"\n'
    (tmp_path / "README.md").write_text(f"---\n{config}---\n")
    assert load(tmp_path).label_names == ("Favor", "None")


def test_files_separated_by_tabs_are_read(tmp_path):
    frame = numbered(["None", "Favor"] * 40)
    for path in (tmp_path / "one.tsv", tmp_path / "folder" / "train.tsv"):
        write(path, frame, sep="\t")
    for place in (tmp_path / "one.tsv", tmp_path / "folder"):
        assert load(place).texts == list(frame["text"])
        assert load(place).label_names == ("Favor", "None")


CAFE = numbered(["bon", "mauvais"] * 40, "le café numéro")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_another_encoding_is_named_and_can_be_given(tmp_path, suffix, encoding):
    path = write(tmp_path / f"cafe{suffix}", CAFE, encoding=encoding)
    reason = refused(path)
    assert reason == f"{path} is not in utf-8: give the encoding that it has, such as --encoding {encoding}"
    assert load(path, encoding=encoding).texts == list(CAFE["text"])
    assert split(path, encoding=encoding).digest() == split(write(tmp_path / "plain.csv", CAFE)).digest()


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_mark_of_the_byte_order_is_no_part_of_a_name(tmp_path, suffix):
    path = write(tmp_path / f"windows{suffix}", CAFE, encoding="utf-8-sig")
    assert load(path).texts == list(CAFE["text"])


def test_encodings_have_one_name():
    assert {make_config(encoding=name).encoding for name in ("UTF-8", "utf8", "utf_8")} == {"utf-8"}


# -- splits ----------------------------------------------------------------------------------------


def test_duplicates_are_kept_or_dropped_and_counted_and_row_ids_are_positions_in_the_source(tmp_path):
    repeated = pd.concat([FRAME[:3], FRAME, FRAME[-2:]], ignore_index=True)
    path = write(tmp_path / "reviews.csv", repeated)
    assert load(path, duplicates="keep").texts == list(repeated["text"])
    splits = split(path)
    assert splits.facts.duplicates_dropped == 5
    assert sorted(np.concatenate(by_split(splits, "row_ids"))) == [0, 1, 2, *range(6, 43)]
    for part in (splits.train, splits.val, splits.test):
        assert part.texts == list(repeated["text"][part.row_ids])
        assert part.labels.tolist() == list(repeated["label"][part.row_ids])


def test_splits_are_8_1_1_and_hold_every_example_once(tmp_path):
    for size, held_out in ((100, 10), (103, 10), (109, 10), (110, 11)):
        splits = split(write(tmp_path / "reviews.csv", numbered([i % 2 for i in range(size)])))
        assert splits.sizes() == {"train": size - 2 * held_out, "val": held_out, "test": held_out}
        assert sorted(np.concatenate(by_split(splits, "row_ids"))) == list(range(size))


def test_splits_are_stratified(tmp_path):
    path = write(tmp_path / "x.csv", numbered(["a"] * 100 + ["b"] * 60 + ["c"] * 40))
    counts = [Counter(labels) for labels in by_split(split(path), "labels")]
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
    path = write(tmp_path / "reviews.csv", FRAME)
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
def test_the_digest_of_a_file_stays_the_same(tmp_path, suffix):
    assert split(write(tmp_path / f"reviews{suffix}", FRAME), seed=3).digest() == "99dc1d4e27aa7ff2"


def test_the_digest_of_named_classes_stays_the_same(tmp_path):
    with_class_labels(names=["neg", "pos"]).to_parquet(tmp_path / "reviews.parquet")
    assert split(tmp_path).digest() == "fdbf58a2ce09b703"


def test_the_digest_changes_with_the_split_a_text_a_label_and_a_class_name(tmp_path):
    path = write(tmp_path / "reviews.csv", FRAME)
    found = [split(path, **{name: 3}).digest() for name in ("split_seed", "train_size", "eval_size")]
    for changes in (
        {"text": ["review number nought", *TEXTS[1:]]},
        {"label": [1, 0, *LABELS[2:]]},
        {"label": [2, 3] * 20},
    ):
        found.append(split(write(path, FRAME.assign(**changes))).digest())
    assert len({"99dc1d4e27aa7ff2", *found}) == 7


# -- what is refused -------------------------------------------------------------------------------


def test_missing_file_or_folder_is_named_and_alternatives_to_the_hub_are_given():
    for place in ("missing.csv", "/nowhere/reviews", "./nowhere", "~/nowhere.jsonl", "~no-such-user/x.csv"):
        assert f"no such data set file or folder: {place}" in refused(place)
    reason = refused("someone/some-reviews")
    assert "'someone/some-reviews' cannot be read" in reason
    assert "CSV" in reason


# a row is named as a spreadsheet counts, blank lines included
GAPS = 'text,label\n"two\nlines",0\n\na fine film,1\n   \ndull,\nlong,\n'


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("x.parquet", b"PAR1 and then nothing of the kind", "x.parquet' cannot be read"),
        ("x.csv", 'text,label\na,b\n"never closed,1\n', "x.csv' cannot be read"),
        ("x.jsonl", '{"text": "a fine film", "label"\n', "x.jsonl' cannot be read"),
        ("x.csv", "text,label\n", "x.csv' has no rows"),
        ("x.json", "[]", "x.json' has no rows"),
        ("x.jsonl", "\n", "x.jsonl' has no rows"),
        ("x.csv", "text,label\n" + ",\n" * 50, "has empty rows only"),
        ("x.txt", "a fine film\n", ".csv, .json, .jsonl, .parquet"),
        ("x.csv", GAPS, "2 rows have no label in column 'label' (the first is row 6): remove them"),
        ("x.csv", GAPS, "or name another column with --label-column"),
        ("x.csv", 'text,label\n""\n \n""\na,0\nb,\n', "(the first is row 6)"),
        ("x.csv", "text,label\na,4\nb,3\nc,4.5\n", "holds fractions (4.5 in row 4)"),
        (
            "x.csv",
            "text,label\na film, really,0\n",
            "has more cells than the header: put texts with commas",
        ),
        ("x.csv", "text,label\na,0,x\nb,1\n", "has more cells than the header"),
        ("x.csv", "text,label\n1,a,0\n2,b,1\n", "has more cells than the header"),
        ("x.csv", "text;label\na, really;0\n", "are separated by ';': save it with commas"),
        ("x.csv", "id,text,text,label\n1,a,b,0\n", "has several columns called 'text': rename all but one"),
        ("x.jsonl", '{"text": "a", "label": 0}\n{"text": "b\n', "line 2 is not JSON: Unterminated string"),
        ("x.jsonl", '{"text": "a", "label": 0}\n{"text": "b\n', "starting at, column 10"),
        (
            "x.jsonl",
            numbered([0, 1]).to_json(),
            "is one JSON object: write a list of objects, or one object",
        ),
    ],
)
def test_a_file_is_refused_with_its_reason(tmp_path, file, content, words):
    assert words in refused(write(tmp_path / file, content))


def test_a_folder_of_something_else_is_refused(tmp_path):
    assert f"'{tmp_path}' cannot be read" in refused(tmp_path)
    write(tmp_path / "set" / "data" / "unsupervised-00000-of-00001.parquet", FRAME.assign(label=-1))
    assert "no labelled split" in refused(tmp_path / "set")
    halves = {"train": numbered([0, 1] * 20), "test": numbered([0, 1] * 20)}
    halves["test"].loc[3, "text"] = ""
    assert "(the first is row 4 of split test)" in refused(folder_of(tmp_path / "a", ".parquet", **halves))
    halves["test"] = halves["test"].rename(columns={"text": "review"})
    folder = folder_of(tmp_path / "b", **halves)
    assert f"unknown column of {folder / 'test.csv'} 'text'" in refused(folder)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"text_column": "texts"}, "'texts': did you mean text?"),
        ({"label_column": "labels"}, "'labels': did you mean label?"),
        ({"label_column": "qqqq"}, "choose from label, text"),
        ({"label_column": "text"}, "text, label and group need a column each"),
        ({"train_size": 33}, "--train-size 33 is not between the 2 classes and the 32 examples"),
        ({"train_size": 1}, "--train-size 1 "),
        ({"eval_size": 5}, "--eval-size 5 is not between the 2 classes and the 4 examples"),
        ({"encoding": "utf-16"}, "such as --encoding cp1252"),
    ],
)
def test_a_column_a_size_or_an_encoding_that_there_is_not_is_refused_with_what_there_is(
    tmp_path, wanted, words
):
    assert words in refused(write(tmp_path / "reviews.csv", CAFE[:40]), **wanted)


def test_an_encoding_is_for_text(tmp_path):
    path = write(tmp_path / "cafe.parquet", CAFE)
    assert "--encoding is for CSV and JSON files" in refused(path, encoding="cp1252")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": [None, *LABELS[1:]]}, "1 row has no label in column 'label' (the first is record 1)"),
        ({"label": ["a", ""] * 20}, "20 rows have no label in column 'label' (the first is record 2)"),
        ({"label": ["a", " "] * 20}, "20 rows have no label in column 'label' (the first is record 2)"),
        ({"text": [*TEXTS[:-1], None]}, "1 row has no text in column 'text' (the first is record 40)"),
        ({"text": [*TEXTS[:-2], " ", ""]}, "2 rows have no text"),
        ({"text": range(40)}, "40 rows have no text"),
        ({"label": 1}, "two classes are needed"),
        ({"label": [[0], [1]] * 20}, "neither numbers nor names"),
        ({"label": [0] * 31 + [1] * 9}, "class '1' has 9 examples"),
        ({"label": ["bad"] * 3 + ["good"] * 37}, "class 'bad' has 3 examples"),
        ({"text": TEXTS[:20] * 2, "label": [0] * 20 + [1] * 20}, "class '0' has 0 examples"),
    ],
    ids="none empty-label blank-label no-text blank-text number one list nine three double".split(),
)
def test_unusable_column_is_refused_with_its_reason(tmp_path, columns, words):
    assert words in refused(write(tmp_path / "reviews.json", FRAME.assign(**columns)))


@pytest.mark.parametrize(
    ("suffix", "places"),
    [
        (".csv", "'0' in row 2 and 'positive' in row 25002"),
        (".jsonl", "0 in line 1 and 'positive' in line 25001"),
    ],
)
def test_numbers_and_then_names_are_refused_with_the_first_row_of_each(tmp_path, suffix, places):
    frame = numbered([i % 2 for i in range(MANY)] + ["positive", "negative"])
    reason = refused(write(tmp_path / f"reviews{suffix}", frame))
    assert reason == f"column 'label' mixes numbers and names, {places}: give every class a name"


@pytest.mark.parametrize("missing", [-1, None])
def test_unlabelled_rows_of_a_class_label_are_missing(tmp_path, missing):
    path = tmp_path / "reviews.parquet"
    with_class_labels([0, 1, missing, 1] * 10).to_parquet(path)
    assert "10 rows have no label in column 'label' (the first is row 3)" in refused(path)


@pytest.mark.parametrize("what", ["text", "label", "g"])
def test_half_of_a_character_is_refused_wherever_it_is(tmp_path, what):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "g": str(i)} for i in range(60)]
    rows[7][what] = "\ud83d"
    path = write(tmp_path / "half.json", json.dumps(rows))
    assert "in record 8 holds half of a character" in refused(path, group_column="g")


# -- real data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        pytest.param("rt_polarity", 10_662, marks=needs_shared("rt_polarity")),
        pytest.param("imdb", 50_000, marks=[needs_shared("imdb"), pytest.mark.slow]),
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
