from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pytest

from errors import UserError
from tests.helpers import SHARED, make_config, message, needs_shared
from trainables import demo_reviews
from trainables.reviews import SPLITS, load_reviews, load_splits

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


def write_class_labels(path, labels, names):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    rows = {"text": TEXTS[: len(labels)], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def load(path, **overrides):
    return load_reviews(make_config(dataset=str(path), **overrides))


def split(path, **overrides):
    return load_splits(make_config(dataset=str(path), **overrides))


def refusal(path, **overrides):
    with pytest.raises(UserError) as raised:
        split(path, **overrides)
    return message(raised)


def by_split(splits, field):
    return [list(getattr(getattr(splits, name), field)) for name in SPLITS]


# -- what can be loaded ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_file_is_read_in_its_own_order(tmp_path, suffix):
    reviews = load(write(tmp_path / f"reviews{suffix}"))
    assert reviews.texts == TEXTS
    assert reviews.labels.tolist() == LABELS
    assert reviews.row_ids.tolist() == list(range(40))
    assert reviews.label_names == ("0", "1")
    assert reviews.duplicates_dropped == 0


def test_the_splits_of_a_folder_are_pooled(tmp_path):
    write(tmp_path / "train.csv", FRAME[:30])
    write(tmp_path / "test.csv", FRAME[30:])
    reviews = load(tmp_path)
    assert reviews.texts == TEXTS
    assert reviews.labels.tolist() == LABELS


def test_an_unsupervised_split_is_left_out(tmp_path):
    write(tmp_path / "data" / "train-00000-of-00001.parquet")
    unlabelled = pd.DataFrame({"text": ["nobody", "judged", "these"], "label": -1})
    write(tmp_path / "data" / "unsupervised-00000-of-00001.parquet", unlabelled)
    assert load(tmp_path).texts == TEXTS


def test_columns_can_be_named(tmp_path):
    frame = FRAME.rename(columns={"text": "review", "label": "sentiment"})
    path = write(tmp_path / "reviews.csv", frame)
    reviews = load(path, text_column="review", label_column="sentiment")
    assert (reviews.texts, reviews.labels.tolist()) == (TEXTS, LABELS)


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (["pos", "neg"] * 20, ("neg", "pos"), [1, 0] * 20),
        ([4, 2] * 20, ("2", "4"), [1, 0] * 20),
        ([1.0, 0.0] * 20, ("0", "1"), [1, 0] * 20),
        ([True, False] * 20, ("0", "1"), [1, 0] * 20),
        (["c", "a", "b", "d"] * 10, ("a", "b", "c", "d"), [2, 0, 1, 3] * 10),
    ],
    ids=["strings", "integers", "floats", "booleans", "four classes"],
)
def test_labels_become_indices_into_sorted_names(tmp_path, labels, names, indices):
    reviews = load(write(tmp_path / "reviews.jsonl", FRAME.assign(label=labels)))
    assert reviews.label_names == names
    assert reviews.labels.tolist() == indices
    assert reviews.labels.dtype == np.int64


def test_class_label_brings_its_own_names_in_its_own_order(tmp_path):
    path = write_class_labels(tmp_path / "reviews.parquet", LABELS, ["positive", "negative"])
    reviews = load(path)
    assert reviews.label_names == ("positive", "negative")
    assert reviews.labels.tolist() == LABELS


# -- duplicates ------------------------------------------------------------------------------------

REPEATED = pd.concat([FRAME[:3], FRAME, FRAME[-2:]], ignore_index=True)


def test_duplicates_are_dropped_and_counted(tmp_path):
    reviews = load(write(tmp_path / "reviews.csv", REPEATED))
    assert reviews.duplicates_dropped == 5
    assert reviews.texts == TEXTS
    assert reviews.labels.tolist() == LABELS


def test_duplicates_can_be_kept(tmp_path):
    reviews = load(write(tmp_path / "reviews.csv", REPEATED), keep_duplicates=True)
    assert reviews.duplicates_dropped == 0
    assert reviews.texts == list(REPEATED["text"])


def test_row_ids_are_positions_in_the_source(tmp_path):
    splits = split(write(tmp_path / "reviews.csv", REPEATED))
    row_ids = np.concatenate(by_split(splits, "row_ids"))
    assert sorted(row_ids) == [0, 1, 2, *range(6, 43)]
    for name in SPLITS:
        part = getattr(splits, name)
        assert part.texts == list(REPEATED["text"][part.row_ids])
        assert part.labels.tolist() == list(REPEATED["label"][part.row_ids])
    assert splits.duplicates_dropped == 5


def test_no_text_is_in_two_splits(tmp_path):
    often = pd.concat([FRAME] * 5, ignore_index=True)
    train, val, test = map(set, by_split(split(write(tmp_path / "reviews.csv", often)), "texts"))
    assert not train & val
    assert not train & test
    assert not val & test


# -- splits ----------------------------------------------------------------------------------------


def numbered(classes):
    return pd.DataFrame({"text": [f"text {i}" for i in range(len(classes))], "label": classes})


@pytest.mark.parametrize(("size", "held_out"), [(100, 10), (103, 10), (109, 10), (110, 11)])
def test_splits_are_8_1_1_and_hold_every_example_once(tmp_path, size, held_out):
    splits = split(write(tmp_path / "reviews.csv", numbered([i % 2 for i in range(size)])))
    assert splits.sizes() == {"train": size - 2 * held_out, "val": held_out, "test": held_out}
    assert sorted(np.concatenate(by_split(splits, "row_ids"))) == list(range(size))


def test_splits_are_stratified(tmp_path):
    frame = numbered(["a"] * 100 + ["b"] * 60 + ["c"] * 40)
    counts = [Counter(labels) for labels in by_split(split(write(tmp_path / "x.csv", frame)), "labels")]
    assert counts == [{0: 80, 1: 48, 2: 32}, {0: 10, 1: 6, 2: 4}, {0: 10, 1: 6, 2: 4}]


def test_split_seed_decides_the_split_and_the_trial_seed_does_not(tmp_path):
    path = write(tmp_path / "reviews.csv")
    first = by_split(split(path, split_seed=1), "row_ids")
    assert by_split(split(path, split_seed=1, seed=7), "row_ids") == first
    assert by_split(split(path, split_seed=2), "row_ids") != first


def test_sizes_take_stratified_subsets_of_their_splits(tmp_path):
    path = write(tmp_path / "reviews.csv", numbered([0, 0, 0, 1] * 100))
    whole, part = split(path), split(path, train_size=40, eval_size=20)
    assert part.sizes() == {"train": 40, "val": 20, "test": 20}
    for name in SPLITS:
        chosen, source = getattr(part, name), getattr(whole, name)
        assert set(chosen.row_ids) <= set(source.row_ids)
        assert len(set(chosen.row_ids)) == len(chosen.row_ids)
        assert chosen.labels.mean() == 0.25


@pytest.mark.parametrize("train_size", [31, 32])
def test_a_size_may_take_almost_all_or_all_of_a_split(tmp_path, train_size):
    assert split(write(tmp_path / "reviews.csv"), train_size=train_size).sizes()["train"] == train_size


@pytest.mark.parametrize("others", [20, 27, 39, 58, 79])
def test_twenty_examples_of_a_class_are_enough_for_every_split(tmp_path, others):
    splits = split(write(tmp_path / "reviews.csv", numbered([0] * 20 + [1] * others)))
    assert [set(labels) for labels in by_split(splits, "labels")] == [{0, 1}] * 3


def test_eval_size_works_with_a_rare_class(tmp_path):
    path = write(tmp_path / "reviews.csv", numbered([0] * 20 + [1] * 980))
    assert split(path, eval_size=50).sizes() == {"train": 800, "val": 50, "test": 50}


# -- the digest ------------------------------------------------------------------------------------


@pytest.fixture
def digest(tmp_path):
    return split(write(tmp_path / "original.csv")).digest()


def test_digest_does_not_depend_on_where_the_data_lies(tmp_path, digest):
    assert split(write(tmp_path / "elsewhere" / "copy.parquet")).digest() == digest


@pytest.mark.parametrize(
    "change",
    [{"split_seed": 1}, {"train_size": 20}, {"eval_size": 3}],
    ids=lambda change: next(iter(change)),
)
def test_digest_changes_with_the_split(tmp_path, digest, change):
    assert split(write(tmp_path / "copy.csv"), **change).digest() != digest


def test_digest_changes_with_a_text_a_label_and_a_class_name(tmp_path, digest):
    text = FRAME.assign(text=["review number nought", *TEXTS[1:]])
    label = FRAME.assign(label=[1, 0, *LABELS[2:]])
    names = FRAME.assign(label=[2, 3] * 20)
    digests = [split(write(tmp_path / "changed.csv", frame)).digest() for frame in (text, label, names)]
    assert len({digest, *digests}) == 4


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "missing.csv",
        "missing.parquet",
        "/nowhere/reviews",
        "./nowhere",
        "~/nowhere.jsonl",
        "~no-such-user/x.csv",
    ],
)
def test_missing_file_or_folder_is_named(place):
    assert place in refusal(place)


def test_hub_id_out_of_reach_is_named_and_alternatives_given():
    reason = refusal("someone/some-reviews")
    assert "'someone/some-reviews' cannot be read" in reason
    assert "CSV" in reason


def test_other_file_formats_are_refused_with_those_that_are_read(tmp_path):
    path = tmp_path / "reviews.txt"
    path.write_text("a fine film\n")
    assert ".csv, .json, .jsonl, .parquet" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("reviews.parquet", b"PAR1 and then nothing of the kind"),
        ("reviews.csv", bytes(range(256)) * 20),
        ("reviews.csv", b'text,label\na,b\n"never closed,1\n'),
        ("reviews.csv", b""),
        ("reviews.csv", b"text,label\n"),
        ("reviews.jsonl", b'{"text": "a fine film", "label"\n'),
    ],
    ids=["parquet", "binary csv", "unclosed quote", "empty", "header alone", "json"],
)
def test_unreadable_file_is_refused_by_name(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert f"'{path}' cannot be read" in refusal(path)


def test_folder_without_data_is_refused(tmp_path):
    assert f"'{tmp_path}' cannot be read" in refusal(tmp_path)


def test_folder_with_unlabelled_data_alone_is_refused(tmp_path):
    write(tmp_path / "data" / "unsupervised-00000-of-00001.parquet")
    assert refusal(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"text_column": "texts"}, "'texts': did you mean text?"),
        ({"label_column": "labels"}, "'labels': did you mean label?"),
        ({"label_column": "qqqq"}, "choose from label, text"),
    ],
)
def test_missing_column_suggests_those_there_are(tmp_path, wanted, words):
    assert words in refusal(write(tmp_path / "reviews.csv"), **wanted)


def first_label(value):
    return FRAME.assign(label=[value, *LABELS[1:]])


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (first_label(None), "1 rows have no label in column 'label' (the first is row 0)"),
        (
            FRAME.assign(label=["a", ""] * 20),
            "20 rows have no label in column 'label' (the first is row 1)",
        ),
        (
            FRAME.assign(text=[*TEXTS[:-1], None]),
            "1 rows have no text in column 'text' (the first is row 39)",
        ),
        (FRAME.assign(text=[*TEXTS[:-2], " ", ""]), "2 rows have no text"),
        (FRAME.assign(text=range(40)), "40 rows have no text"),
        (first_label(0.5), "fractions"),
        (FRAME.assign(label=1), "two classes are needed"),
        (FRAME.assign(label=[[0], [1]] * 20), "neither numbers nor names"),
        (FRAME.assign(label=[0] * 31 + [1] * 9), "class '1' has 9 examples"),
        (FRAME.assign(label=["bad"] * 3 + ["good"] * 37), "class 'bad' has 3 examples"),
    ],
    ids="no-label empty-label no-text blank-text number fraction one-class list nine three".split(),
)
def test_unusable_column_is_refused_with_its_reason(tmp_path, frame, words):
    assert words in refusal(write(tmp_path / "reviews.jsonl", frame))


def test_nan_labels_are_missing(tmp_path):
    path = write(tmp_path / "reviews.parquet", FRAME.assign(label=[0.0, float("nan")] * 20))
    assert "20 rows have no label" in refusal(path)


@pytest.mark.parametrize("missing", [-1, None])
def test_unlabelled_rows_of_a_class_label_are_missing(tmp_path, missing):
    path = write_class_labels(tmp_path / "reviews.parquet", [0, 1, missing, 1] * 10, ["bad", "good"])
    assert "10 rows have no label in column 'label' (the first is row 2)" in refusal(path)


def test_minus_one_is_a_class_like_any_other_where_labels_are_plain_numbers(tmp_path):
    path = write(tmp_path / "reviews.csv", FRAME.assign(label=[-1, 1] * 20))
    assert load(path).label_names == ("-1", "1")


def test_a_fraction_far_down_the_column_is_refused_too(tmp_path):
    frame = numbered([float(i % 2) for i in range(1500)])
    frame.loc[1400:, "label"] = 0.5
    assert "fractions" in refusal(write(tmp_path / "reviews.parquet", frame))


def test_a_class_that_only_duplicates_had_is_refused(tmp_path):
    contradicted = pd.concat([FRAME.assign(label=0), FRAME.assign(label=1)], ignore_index=True)
    assert refusal(write(tmp_path / "reviews.csv", contradicted))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"train_size": 33}, "--train-size 33 is not between the 2 classes and the 32 examples"),
        ({"train_size": 1}, "--train-size 1 "),
        ({"eval_size": 5}, "--eval-size 5 is not between the 2 classes and the 4 examples"),
    ],
)
def test_a_size_that_the_split_cannot_give_is_refused(tmp_path, sizes, words):
    assert words in refusal(write(tmp_path / "reviews.csv"), **sizes)


# -- the generated corpus --------------------------------------------------------------------------


def test_demo_corpus_is_a_function_of_its_seed():
    assert demo_reviews.generate(300, seed=1) == demo_reviews.generate(300, seed=1)
    assert demo_reviews.generate(300, seed=1) != demo_reviews.generate(300, seed=2)


def test_demo_corpus_is_distinct_balanced_and_of_the_size_asked_for():
    texts, labels = demo_reviews.generate(1000)
    assert len(texts) == len(labels) == len(set(texts)) == 1000
    assert set(labels) == {0, 1}
    assert 0.4 <= np.mean(labels) <= 0.6


def test_demo_corpus_loads_without_a_file():
    splits = split(demo_reviews.NAME)
    assert splits.sizes() == {"train": 3200, "val": 400, "test": 400}
    assert splits.label_names == ("negative", "positive")


# -- real data -------------------------------------------------------------------------------------


def assert_8_1_1_and_faithful(splits, source, held_out):
    sizes = splits.sizes()
    assert (sizes["val"], sizes["test"]) == (held_out, held_out)
    assert sizes["train"] == 8 * held_out + sum(sizes.values()) % 10
    share = np.concatenate(by_split(splits, "labels")).mean()
    for name in SPLITS:
        part = getattr(splits, name)
        assert part.texts == list(source["text"].iloc[part.row_ids])
        assert part.labels.tolist() == list(source["label"].iloc[part.row_ids])
        assert abs(part.labels.mean() - share) <= 1 / held_out
    row_ids = np.concatenate(by_split(splits, "row_ids"))
    assert len(set(row_ids)) == len(row_ids)


@needs_shared("rt_polarity")
def test_rt_polarity_is_split_whole():
    source = pd.read_parquet(SHARED / "rt_polarity" / "train.parquet")
    splits = split(SHARED / "rt_polarity")
    assert sum(splits.sizes().values()) + splits.duplicates_dropped == len(source) == 10_662
    assert splits.duplicates_dropped == source["text"].duplicated().sum()
    assert_8_1_1_and_faithful(splits, source, held_out=1066)
    assert len(set().union(*by_split(splits, "texts"))) == sum(splits.sizes().values())


@pytest.fixture(scope="module")
def imdb():
    return pd.concat(pd.read_parquet(SHARED / "imdb" / f"{name}.parquet") for name in ("train", "test"))


@needs_shared("imdb")
def test_imdb_without_its_duplicates(imdb):
    splits = split(SHARED / "imdb")
    assert splits.duplicates_dropped == imdb["text"].duplicated().sum() == 418
    assert_8_1_1_and_faithful(splits, imdb, held_out=4958)
    train, val, test = map(set, by_split(splits, "texts"))
    assert len(train | val | test) == 50_000 - 418 == sum(splits.sizes().values())


@needs_shared("imdb")
def test_imdb_with_its_duplicates_is_the_published_50_000(imdb):
    splits = split(SHARED / "imdb", keep_duplicates=True)
    assert splits.sizes() == {"train": 40_000, "val": 5_000, "test": 5_000}
    assert splits.duplicates_dropped == 0
    assert_8_1_1_and_faithful(splits, imdb, held_out=5_000)
    assert [labels.count(1) for labels in by_split(splits, "labels")] == [20_000, 2_500, 2_500]
