"""What is easily overlooked in a data set: repeated texts, own splits, groups; and what is said of it."""

import datasets
import numpy as np
import pandas as pd
import pytest

from reports import write_report
from sweep.options import SweepOptions
from sweep.plan import make_plan
from tests.review_files import (
    by_split,
    facts,
    folder_of,
    load,
    numbered,
    refused,
    split,
    warnings,
    write,
)
from tests.small_study import STUDY, write_small_study
from trainables.reviews import SPLITS, folded


def halves(train=100, test=30):
    """Two splits of two classes each, by the pairs of rows they have."""
    return {"train": numbered([0, 1] * train, "train"), "test": numbered([0, 1] * test, "test")}


def test_empty_rows_at_the_end_of_a_spreadsheet_are_left_out_and_counted(tmp_path):
    path = write(tmp_path / "reviews.csv", numbered([0, 1] * 40, note="x"))
    path.write_text(path.read_text() + ",,\n,,note\n")
    assert split(path).digest() == split(write(tmp_path / "whole.csv", numbered([0, 1] * 40))).digest()
    said = facts(path)
    assert said["Rows read"] == "82"
    assert "2 empty rows" in said["Left out"]


# -- repeated texts ----------------------------------------------------------------------------------


def test_texts_with_two_labels_are_left_out_and_said(tmp_path):
    doubtful = pd.DataFrame({"text": ["so so"] * 60, "label": [0, 1] * 30})
    path = write(tmp_path / "reviews.csv", pd.concat([numbered([0, 1] * 40), doubtful]))
    assert "so so" not in load(path).texts
    assert split(path).digest() == split(write(tmp_path / "without.csv", numbered([0, 1] * 40))).digest()
    assert facts(path)["Left out"] == "0 exact duplicates; 60 rows of 1 text with several labels"
    assert warnings(path) == []
    assert load(path, duplicates="keep").texts.count("so so") == 60
    assert any("has 1 text with several labels" in each for each in warnings(path, duplicates="keep"))


FINE = [f"A Fine film, number {i}" for i in range(200)]
ALMOST = FINE + [f"a fine\r\n  film, number {i} " for i in range(200)]


def test_texts_that_differ_by_blanks_and_case_are_counted_across_splits_and_can_be_dropped(tmp_path):
    path = write(tmp_path / "almost.csv", pd.DataFrame({"text": ALMOST, "label": [0, 1] * 200}))
    splits = split(path)
    assert splits.facts.duplicates_dropped == 0
    owners = {}
    for name in SPLITS:
        for text in getattr(splits, name).texts:
            owners.setdefault(" ".join(text.lower().split()), []).append(name)
    expected = sum(len(set(o)) > 1 for o in owners.values() for name in o if name != "train")
    assert 0 < expected == splits.near_duplicates
    said = f"{expected} of the 80 texts of the val and test splits are in another split too"
    assert warnings(path)[0].startswith(f"{said}, but for blanks, line ends and case")
    apart = split(path, duplicates="folded")
    assert (apart.facts.duplicates_dropped, apart.near_duplicates) == (200, 0)
    assert sorted(np.concatenate(by_split(apart, "row_ids"))) == list(range(200))
    assert warnings(path, duplicates="folded") == []
    assert facts(path, duplicates="folded")["Left out"] == "200 duplicates, blanks and case folded"


def test_folding_contradicts_where_exact_texts_do_not(tmp_path):
    frame = pd.concat([numbered([0, 1] * 40), pd.DataFrame({"text": ["Dull.", "dull. "], "label": [0, 1]})])
    path = write(tmp_path / "reviews.csv", frame)
    assert split(path).facts.contradictory_texts == 0
    assert split(path, duplicates="folded").facts.contradictory_texts == 1
    assert folded("  Straße\r\n\tX ") == folded("STRASSE x")


# -- splits of its own -------------------------------------------------------------------------------


def test_own_splits_are_pooled_and_said_or_kept(tmp_path):
    folder = folder_of(tmp_path, **halves())
    assert facts(folder)["Splits of the data set"] == (
        "train (200 rows), test (60 rows): pooled and cut anew; --splits own keeps them"
    )
    assert split(folder).sizes() == {"train": 208, "val": 26, "test": 26}
    own = split(folder, splits="own")
    assert own.test.texts == [f"test {i}" for i in range(60)]
    assert own.sizes() == {"train": 180, "val": 20, "test": 60}
    assert np.bincount(own.val.labels).tolist() == [10, 10]
    assert sorted(own.train.texts + own.val.texts) == sorted(f"train {i}" for i in range(200))
    assert own.val.texts == split(folder, splits="own").val.texts
    assert own.val.texts != split(folder, splits="own", split_seed=7).val.texts
    assert facts(folder, splits="own")["Splits of the data set"] == (
        "train (200 rows), test (60 rows): used as they are; val is a seeded tenth of its train split"
    )


def test_a_val_split_of_its_own_is_used_and_an_unlabelled_one_is_named_and_left_out(tmp_path):
    (tmp_path / "data").mkdir()
    parts = {name: [0, 1] * 20 for name in ("train", "validation", "test")} | {"unsupervised": [-1, -1]}
    for name, labels in parts.items():
        rows = datasets.Dataset.from_pandas(numbered(labels, name))
        rows.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    own = split(tmp_path, splits="own")
    assert own.val.texts == [f"validation {i}" for i in range(40)]
    assert own.sizes() == {"train": 40, "val": 40, "test": 40}
    for splits in ("own", "pooled"):
        assert "split unsupervised, which has no labels" in facts(tmp_path, splits=splits)["Left out"]


def test_a_test_split_without_a_label_column_is_unlabelled(tmp_path):
    parts = halves()
    folder = folder_of(tmp_path, train=parts["train"], test=parts["test"][["text"]])
    assert split(folder).facts.unlabelled_splits == ["test"]
    reason = refused(folder, splits="own")
    assert "needs a train and a test split with labels" in reason
    assert "has no test but train" in reason


def test_a_split_of_secret_labels_is_unlabelled_unless_minus_one_is_a_class(tmp_path):
    parts = {"train": numbered([0, 1] * 40, "train"), "dev": numbered([0, 1] * 20, "dev")}
    secret = numbered([-1] * 30, "test")
    splits = split(folder_of(tmp_path / "glue", **parts, test=secret))
    assert splits.label_names == ("0", "1")
    assert splits.facts.unlabelled_splits == ["test"]
    signed = split(folder_of(tmp_path / "signed", train=numbered([-1, 1] * 40, "train"), test=secret))
    assert signed.facts.unlabelled_splits == []
    assert sum(signed.sizes().values()) == 110


def test_a_text_of_two_own_splits_stays_in_the_test_split(tmp_path):
    parts = halves()
    parts["train"].loc[3, "text"] = "test 1"
    own = split(folder_of(tmp_path, **parts), splits="own")
    assert own.facts.duplicates_dropped == 1
    assert own.test.texts == [f"test {i}" for i in range(60)]
    assert "test 1" not in own.train.texts + own.val.texts


def test_classes_that_an_own_split_lacks_are_named(tmp_path):
    parts = {"train": numbered(["a", "b"] * 40, "train"), "test": numbered(["a"] * 20, "test")}
    assert "the test split has no example of class 'b'" in refused(
        folder_of(tmp_path, **parts), splits="own"
    )


def test_splits_that_are_not_used_change_nothing(tmp_path):
    """Neither their texts, nor their labels, nor a class that only they have."""
    parts = {name: frame.assign(label=frame["label"].astype(str)) for name, frame in halves().items()}
    alone = split(folder_of(tmp_path / "alone", ".jsonl", **parts), splits="own")
    other_labels = parts["test"].assign(label=["1", "0"] * 30)
    extra = pd.concat([parts["train"][:50], other_labels, numbered(["third"] * 3, "x")])
    folder = folder_of(tmp_path / "three", ".jsonl", **parts, extra=extra)
    files = [f"  - split: {name}\n    path: {name}.jsonl\n" for name in ("extra", "train", "test")]
    config = f"configs:\n- config_name: default\n  data_files:\n{''.join(files)}"
    (folder / "README.md").write_text(f"---\n{config}---\n")
    own = split(folder, splits="own")
    assert by_split(own, "texts") == by_split(alone, "texts")
    assert "split extra (113 rows)" in facts(folder, splits="own")["Left out"]


# -- groups ------------------------------------------------------------------------------------------


def patients(count, rows):
    """Reviews of patients whose names are spelled in two ways; each has mostly one class."""
    frame = numbered([int(p < count // 2) for p in range(count) for _ in range(rows)])
    names = [f"Patient {p}" if i % 2 else f" patient  {p}" for p in range(count) for i in range(rows)]
    return frame.assign(patient=names)


def test_no_group_is_in_two_splits(tmp_path):
    frame = pd.concat([patients(50, 6), numbered([0, 1] * 30, "h").assign(patient="Huge")])
    path = write(tmp_path / "notes.csv", frame)
    splits = split(path, group_column="patient")
    groups = {text: folded(name) for text, name in zip(frame["text"], frame["patient"], strict=True)}
    own = [{groups[text] for text in texts} for texts in by_split(splits, "texts")]
    assert [len(a & b) for a, b in ((own[0], own[1]), (own[0], own[2]), (own[1], own[2]))] == [0, 0, 0]
    assert len(set().union(*own)) == 51
    assert "huge" in own[0]  # the largest group would make the test split a quarter too large
    for part in (splits.val, splits.test):
        assert 27 <= len(part.texts) <= 45
        assert 0.3 <= part.labels.mean() <= 0.7
    assert sum(splits.sizes().values()) == 360
    assert facts(path, group_column="patient")["Groups"] == (
        "51 in column patient, none in two splits; the largest, huge, has 60 rows"
    )
    rows = split(path)
    assert len({groups[t] for t in rows.train.texts} & {groups[t] for t in rows.test.texts}) > 10


def test_numbers_of_groups_are_the_same_however_they_are_written(tmp_path):
    numbers = [f"{p}" if i % 2 else f"{p}.0" for p in range(40) for i in range(6)]
    path = write(tmp_path / "notes.csv", patients(40, 6).assign(patient=numbers))
    assert split(path, group_column="patient").groups.count == 40


def test_groups_that_cannot_be_kept_apart_are_refused(tmp_path):
    few = write(tmp_path / "few.csv", patients(6, 10))
    reason = refused(few, group_column="patient")
    assert "has 6 groups, and splits that keep groups whole need 10" in reason
    assert "unknown column" in refused(few, group_column="doctor")


@pytest.mark.parametrize("gap", ["", "  "])
def test_a_row_without_a_group_is_refused(tmp_path, gap):
    frame = patients(30, 4)
    frame.loc[5, "patient"] = gap
    reason = refused(write(tmp_path / "gap.csv", frame), group_column="patient")
    assert "1 row has no group in column 'patient' (the first is row 7)" in reason
    assert "--group-column" in reason


def test_own_splits_keep_groups_apart_or_say_that_they_do_not(tmp_path):
    parts = {
        "train": patients(40, 6),
        "test": patients(40, 2).assign(text=[f"test {i}" for i in range(80)]),
    }
    reason = refused(folder_of(tmp_path / "a", **parts), splits="own", group_column="patient")
    assert "40 groups, 'patient 0' among them, are in the train and in the test split" in reason
    parts["test"]["patient"] = "other " + parts["test"]["patient"]
    own = split(folder_of(tmp_path / "b", **parts), splits="own", group_column="patient")
    train = parts["train"]
    names = {text: folded(name) for text, name in zip(train["text"], train["patient"], strict=True)}
    assert not {names[t] for t in own.train.texts} & {names[t] for t in own.val.texts}


def test_small_splits_of_large_groups_are_flagged(tmp_path):
    others = numbered([0, 1] * 20, "x").assign(g=[f"g{i // 2 % 10}" for i in range(40)])
    path = write(tmp_path / "one.csv", pd.concat([numbered([0, 1] * 140).assign(g="huge"), others]))
    (warning,) = warnings(path, group_column="g")
    assert "because group huge is large and kept whole" in warning


# -- what is said ------------------------------------------------------------------------------------


def test_imdb_pooled_says_that_its_halves_shared_no_film(tmp_path):
    folder = folder_of(tmp_path / "imdb", **halves(40, 40))
    (warning,) = warnings(folder)
    assert "halves share no film (Maas et al. 2011)" in warning
    assert "--splits own" in warning
    assert warnings(folder, splits="own") == []
    assert warnings(folder_of(tmp_path / "others", **halves(40, 40))) == []


def test_class_shares_are_said_for_each_split(tmp_path):
    path = write(tmp_path / "reviews.csv", numbered(["good"] * 150 + ["bad"] * 50))
    shares = "bad 25.0 / 25.0 / 25.0 %, good 75.0 / 75.0 / 75.0 % (train, val, test)"
    assert facts(path)["Class shares"] == shares
    many = write(tmp_path / "many.csv", numbered([f"c{i % 9}" for i in range(900)]))
    assert facts(many)["Class shares"].endswith("and 3 rarer classes (train, val, test)")


def test_classes_that_differ_by_blanks_or_case_are_flagged(tmp_path):
    path = write(tmp_path / "reviews.csv", numbered(["pos", "neg", " neg", "Pos"] * 30))
    expected = "Classes ' neg', 'Pos', 'neg', 'pos' differ by blanks or case only: they may be one."
    assert warnings(path) == [expected]


@pytest.fixture
def almost(tmp_path):
    """Options of a study on texts that are almost repeated, one of them with two labels."""
    frame = pd.DataFrame({"text": ALMOST, "label": [0, 1] * 200}).replace({ALMOST[0]: ALMOST[1]})
    path = write(tmp_path / "almost.csv", frame)
    return {"dataset": str(path), "models": ["bert-tiny"], "target_batch_sizes": [32], "eval_size": 30}


def test_the_plan_says_what_was_found(almost):
    dataset = make_plan(SweepOptions(space="fixed_lr", **almost), bf16_available=False).plan.dataset
    assert dataset.warnings == warnings(almost["dataset"], eval_size=30) != []
    assert dataset.facts == facts(almost["dataset"], eval_size=30)
    assert "2 rows of 1 text with several labels" in dataset.facts["Left out"]


@pytest.mark.slow
def test_the_report_says_what_was_found(almost, tmp_path):
    uri = write_small_study(tmp_path, **almost, train_size=200, assignments=["noise_every=0"])
    report = write_report(uri, STUDY, str(tmp_path / "results"))
    sizes = {"train_size": 200, "eval_size": 30}
    expected = [*warnings(almost["dataset"], **sizes), facts(almost["dataset"], **sizes)["Left out"]]
    assert len(expected) == 2
    for page in ("report.html", "report.md"):
        text = (report.page.parent / page).read_text()
        assert [each for each in expected if each not in text] == []
