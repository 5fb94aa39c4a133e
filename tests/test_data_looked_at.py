"""Files and data sets that are easily misread: read as what they are, or refused in one line that helps."""

import json

import datasets
import numpy as np
import pandas as pd
import pytest

from reports import write_report
from tests.helpers import make_config, refusal
from tests.small_study import STUDY, write_small_study
from trainables.review_facts import facts_of, warnings_of
from trainables.review_splits import load_splits
from trainables.reviews import SPLITS, folded, load_reviews

MANY = 25_000  # rows: libraries guess the types of columns from the first 10,000


def config_of(path, **overrides):
    return make_config(dataset=str(path), **overrides)


def load(path, **overrides):
    return load_reviews(config_of(path, **overrides))


def split(path, **overrides):
    return load_splits(config_of(path, **overrides))


def facts(path, **overrides):
    config = config_of(path, **overrides)
    return facts_of(load_splits(config), config)


def warnings(path, **overrides):
    config = config_of(path, **overrides)
    return warnings_of(load_splits(config), config)


def numbered(labels, **columns):
    return pd.DataFrame({"text": [f"text {i}" for i in range(len(labels))], "label": labels} | columns)


def csv(path, frame, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, **options)
    return path


# -- words, numbers and empty cells ------------------------------------------------------------------


def test_words_that_libraries_take_for_missing_are_classes_and_texts(tmp_path):
    labels = ["Favor", "Against", "None", "NA", "null", "n/a", "nan", "NaN", "inf"] * 20
    reviews = load(csv(tmp_path / "stance.csv", numbered(labels))).reviews
    assert reviews.label_names == tuple(sorted(set(labels)))
    assert [reviews.label_names[label] for label in reviews.labels] == labels
    texts = ["None", "NA", "null", "n/a", "nan", "007", "1e5", "True"]
    frame = pd.DataFrame({"text": texts, "label": [0, 1] * 4})
    assert load(csv(tmp_path / "texts.csv", frame)).reviews.texts == texts


def test_a_cell_without_anything_in_it_is_missing_and_its_row_is_named_as_a_spreadsheet_counts(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text('text,label\n"two\nlines",0\n\na fine film,1\n   \ndull,\nlong,\n')
    reason = refusal(load, path)
    assert "2 rows have no label in column 'label' (the first is row 6)" in reason  # blank lines count
    assert "remove them or name another column with --label-column" in reason


def test_empty_rows_at_the_end_of_a_spreadsheet_are_left_out_and_counted(tmp_path):
    path = csv(tmp_path / "reviews.csv", numbered([0, 1] * 40, note="x"))
    path.write_text(path.read_text() + ",,\n,,note\n")
    assert split(path).digest() == split(csv(tmp_path / "whole.csv", numbered([0, 1] * 40))).digest()
    said = facts(path)
    assert said["Rows read"] == "82"
    assert "2 empty rows" in said["Left out"]


def test_a_column_that_nobody_asked_for_may_hold_anything(tmp_path):
    notes = [""] * MANY + ["a note"]
    path = csv(tmp_path / "noted.csv", numbered([i % 2 for i in range(MANY + 1)], note=notes))
    reviews = load(path).reviews
    assert (len(reviews.texts), reviews.label_names) == (MANY + 1, ("0", "1"))
    lines = [{"text": f"text {i}", "label": i % 2, "note": None} for i in range(MANY)]
    lines.append({"text": "the last", "label": 1, "note": "a note"})
    path = tmp_path / "noted.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert load(path).reviews.texts[-1] == "the last"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_numbers_and_then_names_are_refused_with_the_first_row_of_each(tmp_path, suffix):
    frame = numbered([i % 2 for i in range(MANY)] + ["positive", "negative"])
    path = tmp_path / f"reviews{suffix}"
    if suffix == ".csv":
        csv(path, frame)
        first, other = "'0' in row 2", "'positive' in row 25002"
    else:
        frame.to_json(path, orient="records", lines=True)
        first, other = "0 in line 1", "'positive' in line 25001"
    assert (
        refusal(load, path)
        == f"column 'label' mixes numbers and names, {first} and {other}: give every class a name"
    )


def test_fractions_are_refused_with_an_example(tmp_path):
    path = csv(tmp_path / "stars.csv", numbered(["4", "3", "4.5"]))
    assert "holds fractions (4.5 in row 4)" in refusal(load, path)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["4", "2", "2.0", "+4"], ("2", "4")),
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        (["True", "False", "true", "FALSE"], ("0", "1")),
        (
            ["12345678901234567890", "12345678901234567891"],
            ("12345678901234567890", "12345678901234567891"),
        ),
    ],
    ids=["floats", "order of numbers", "booleans", "names of digits"],
)
def test_numbers_in_a_csv_file_are_numbers(tmp_path, labels, names):
    assert load(csv(tmp_path / "reviews.csv", numbered(labels))).reviews.label_names == names


def test_json_numbers_texts_and_truth_keep_their_types(tmp_path):
    for labels, names in (([1, 10, 9], ("1", "9", "10")), (["1", "10", "9"], ("1", "10", "9"))):
        path = tmp_path / "reviews.jsonl"
        numbered(labels).to_json(path, orient="records", lines=True)
        assert load(path).reviews.label_names == names
    path.write_text('{"text": ["a", "b"], "label": [true, false]}')
    assert load(path).reviews.labels.tolist() == [1, 0]


# -- encodings ---------------------------------------------------------------------------------------

CAFE = numbered(["bon", "mauvais"] * 40).assign(text=[f"le café numéro {i}" for i in range(80)])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_another_encoding_is_named_and_can_be_given(tmp_path, suffix, encoding):
    path = tmp_path / f"cafe{suffix}"
    if suffix == ".csv":
        csv(path, CAFE, encoding=encoding)
    else:
        path.write_bytes(CAFE.to_json(orient="records", lines=True, force_ascii=False).encode(encoding))
    reason = refusal(load, path)
    assert reason == f"{path} is not in utf-8: give the encoding that it has, such as --encoding {encoding}"
    assert load(path, encoding=encoding).reviews.texts == list(CAFE["text"])
    plain = csv(tmp_path / "plain.csv", CAFE)
    assert split(path, encoding=encoding).digest() == split(plain).digest()


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(tmp_path):
    path = csv(tmp_path / "windows.csv", CAFE, encoding="utf-8-sig")
    assert load(path).reviews.texts == list(CAFE["text"])
    path = tmp_path / "windows.json"
    path.write_bytes(CAFE.to_json(orient="records").encode("utf-8-sig"))
    assert load(path).reviews.texts == list(CAFE["text"])


def test_an_encoding_is_refused_where_it_cannot_be_meant(tmp_path):
    path = tmp_path / "cafe.parquet"
    CAFE.to_parquet(path)
    assert "--encoding is for CSV and JSON files" in refusal(load, path, encoding="cp1252")
    assert "such as --encoding cp1252" in refusal(load, csv(tmp_path / "x.csv", CAFE), encoding="utf-16")


# -- repeated texts ----------------------------------------------------------------------------------


def test_texts_with_two_labels_are_left_out_and_said(tmp_path):
    frame = pd.concat(
        [numbered([0, 1] * 40), *[pd.DataFrame({"text": ["so so"], "label": [i % 2]}) for i in range(60)]]
    )
    path = csv(tmp_path / "reviews.csv", frame)
    assert "so so" not in load(path).reviews.texts
    assert split(path).digest() == split(csv(tmp_path / "without.csv", frame[:80])).digest()
    said = facts(path)
    assert said["Left out"] == "0 exact duplicates; 60 rows of 1 text with several labels"
    assert warnings(path) == []
    kept = load(path, duplicates="keep")
    assert kept.reviews.texts.count("so so") == 60
    assert any("has 1 text with several labels" in each for each in warnings(path, duplicates="keep"))


ALMOST = [f"A Fine film, number {i}" for i in range(200)] + [
    f"a fine\r\n  film, number {i} " for i in range(200)
]


def test_texts_that_differ_by_blanks_and_case_are_counted_across_splits_and_can_be_dropped(tmp_path):
    path = csv(tmp_path / "almost.csv", pd.DataFrame({"text": ALMOST, "label": [0, 1] * 200}))
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
    assert sorted(np.concatenate([getattr(apart, name).row_ids for name in SPLITS])) == list(range(200))
    assert warnings(path, duplicates="folded") == []
    assert facts(path, duplicates="folded")["Left out"] == "200 duplicates, blanks and case folded"


def test_folding_contradicts_where_exact_texts_do_not(tmp_path):
    frame = pd.concat([numbered([0, 1] * 40), pd.DataFrame({"text": ["Dull.", "dull. "], "label": [0, 1]})])
    path = csv(tmp_path / "reviews.csv", frame)
    assert load(path).facts.contradictory_texts == 0
    assert load(path, duplicates="folded").facts.contradictory_texts == 1
    assert folded("  Straße\r\n\tX ") == folded("STRASSE x")


# -- splits of its own, and groups -------------------------------------------------------------------


def folder_of(folder, **parts):
    for name, frame in parts.items():
        csv(folder / f"{name}.csv", frame)
    return folder


def part(name, labels):
    return numbered(labels).assign(text=[f"{name} {i}" for i in range(len(labels))])


def test_own_splits_are_pooled_and_said_or_kept(tmp_path):
    folder = folder_of(tmp_path, train=part("train", [0, 1] * 100), test=part("test", [0, 1] * 30))
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
    parts = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(40)], "label": [0, 1] * 20})
        for name in ("train", "validation", "test")
    }
    parts["unsupervised"] = datasets.Dataset.from_dict({"text": ["nobody", "judged"], "label": [-1, -1]})
    for name, rows in parts.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    own = split(tmp_path, splits="own")
    assert own.val.texts == [f"validation {i}" for i in range(40)]
    assert own.sizes() == {"train": 40, "val": 40, "test": 40}
    for splits in ("own", "pooled"):
        assert "split unsupervised, which has no labels" in facts(tmp_path, splits=splits)["Left out"]


def test_a_test_split_without_a_label_column_is_unlabelled(tmp_path):
    folder = folder_of(tmp_path, train=part("train", [0, 1] * 40), test=part("test", [0, 1] * 40)[["text"]])
    assert split(folder).facts.unlabelled_splits == ["test"]
    reason = refusal(split, folder, splits="own")
    assert "needs a train and a test split with labels" in reason
    assert "has no test but train" in reason


def test_a_text_of_two_own_splits_stays_in_the_test_split(tmp_path):
    train = part("train", [0, 1] * 100)
    train.loc[3, "text"] = "test 1"
    folder = folder_of(tmp_path, train=train, test=part("test", [0, 1] * 30))
    own = split(folder, splits="own")
    assert own.facts.duplicates_dropped == 1
    assert own.test.texts == [f"test {i}" for i in range(60)]
    assert "test 1" not in own.train.texts + own.val.texts


def test_classes_that_an_own_split_lacks_are_named(tmp_path):
    folder = folder_of(tmp_path, train=part("train", ["a", "b"] * 40), test=part("test", ["a"] * 20))
    assert "the test split has no example of class 'b'" in refusal(split, folder, splits="own")


def patients(count, rows):
    """Reviews of patients whose names are spelled in two ways; each has mostly one class."""
    frame = numbered([int(p < count // 2) for p in range(count) for _ in range(rows)])
    names = [f"Patient {p}" if i % 2 else f" patient  {p}" for p in range(count) for i in range(rows)]
    return frame.assign(patient=names)


def test_no_group_is_in_two_splits(tmp_path):
    frame = pd.concat(
        [patients(50, 6), numbered([0, 1] * 30).assign(patient="Huge", text=[f"h {i}" for i in range(60)])]
    )
    path = csv(tmp_path / "notes.csv", frame)
    splits = split(path, group_column="patient")
    groups = {text: folded(name) for text, name in zip(frame["text"], frame["patient"], strict=True)}
    own = [{groups[text] for text in getattr(splits, name).texts} for name in SPLITS]
    assert [len(a & b) for a, b in ((own[0], own[1]), (own[0], own[2]), (own[1], own[2]))] == [0, 0, 0]
    assert len(set().union(*own)) == 51
    assert "huge" in own[0]  # the largest group would make the test split a quarter too large
    for name in ("val", "test"):
        assert 27 <= len(getattr(splits, name).texts) <= 45
        assert 0.3 <= getattr(splits, name).labels.mean() <= 0.7
    assert sum(splits.sizes().values()) == 360
    assert facts(path, group_column="patient")["Groups"] == (
        "51 in column patient, none in two splits; the largest, huge, has 60 rows"
    )
    rows = split(path)
    assert len({groups[t] for t in rows.train.texts} & {groups[t] for t in rows.test.texts}) > 10


def test_groups_that_cannot_be_kept_apart_are_refused(tmp_path):
    few = csv(tmp_path / "few.csv", patients(6, 10))
    assert "has 6 groups, and splits that keep groups whole need 10" in refusal(
        split, few, group_column="patient"
    )
    without = patients(30, 4)
    without.loc[5, "patient"] = ""
    reason = refusal(split, csv(tmp_path / "gap.csv", without), group_column="patient")
    assert "1 row has no group in column 'patient' (the first is row 7)" in reason
    assert "--group-column" in reason
    assert "unknown column" in refusal(split, few, group_column="doctor")


def test_own_splits_keep_groups_apart_or_say_that_they_do_not(tmp_path):
    train, test = patients(40, 6), patients(40, 2).assign(text=[f"test {i}" for i in range(80)])
    reason = refusal(
        split, folder_of(tmp_path / "a", train=train, test=test), splits="own", group_column="patient"
    )
    assert "40 groups, 'patient 0' among them, are in the train and in the test split" in reason
    test["patient"] = "other " + test["patient"]
    own = split(folder_of(tmp_path / "b", train=train, test=test), splits="own", group_column="patient")
    names = {text: folded(name) for text, name in zip(train["text"], train["patient"], strict=True)}
    assert not {names[t] for t in own.train.texts} & {names[t] for t in own.val.texts}


def test_imdb_pooled_says_that_its_halves_shared_no_film(tmp_path):
    halves = {"train": part("train", [0, 1] * 40), "test": part("test", [0, 1] * 40)}
    folder = folder_of(tmp_path / "imdb", **halves)
    (warning,) = warnings(folder)
    assert "halves share no film (Maas et al. 2011)" in warning
    assert "--splits own" in warning
    assert warnings(folder, splits="own") == []
    assert warnings(folder_of(tmp_path / "others", **halves)) == []


def test_class_shares_are_said_for_each_split(tmp_path):
    path = csv(tmp_path / "reviews.csv", numbered(["good"] * 150 + ["bad"] * 50))
    assert (
        facts(path)["Class shares"]
        == "bad 25.0 / 25.0 / 25.0 %, good 75.0 / 75.0 / 75.0 % (train, val, test)"
    )
    many = csv(tmp_path / "many.csv", numbered([f"c{i % 9}" for i in range(900)]))
    assert facts(many)["Class shares"].endswith("and 3 rarer classes (train, val, test)")


def test_plan_and_report_say_what_was_found(tmp_path):
    frame = pd.DataFrame({"text": ALMOST, "label": [0, 1] * 200}).replace({ALMOST[0]: ALMOST[1]})
    path = csv(tmp_path / "almost.csv", frame)
    options = {"dataset": str(path), "models": ["bert-tiny"], "target_batch_sizes": [32]}
    uri = write_small_study(
        tmp_path, **options | {"train_size": 200, "eval_size": 30, "assignments": ["noise_every=0"]}
    )
    report = write_report(uri, STUDY, str(tmp_path / "results"))
    config = config_of(path, train_size=200, eval_size=30)
    splits = load_splits(config)
    expected = [*warnings_of(splits, config), facts_of(splits, config)["Left out"]]
    assert len(expected) == 2
    assert "2 rows of 1 text with several labels" in expected[1]
    for page in ("report.html", "report.md"):
        text = (report.page.parent / page).read_text()
        assert [each for each in expected if each not in text] == []


# -- what is easily misread ---------------------------------------------------------------------------


def test_a_split_of_secret_labels_is_unlabelled_unless_minus_one_is_a_class(tmp_path):
    parts = {"train": part("train", [0, 1] * 40), "dev": part("dev", [0, 1] * 20)}
    folder = folder_of(tmp_path / "glue", **parts, test=part("test", [-1] * 30))
    splits = split(folder)
    assert splits.label_names == ("0", "1")
    assert splits.facts.unlabelled_splits == ["test"]
    signed = folder_of(tmp_path / "signed", train=part("train", [-1, 1] * 40), test=part("test", [-1] * 30))
    assert split(signed).facts.unlabelled_splits == []
    assert sum(split(signed).sizes().values()) == 110


def test_a_file_without_the_text_column_is_named(tmp_path):
    other = part("test", [0, 1] * 30).rename(columns={"text": "review"})
    folder = folder_of(tmp_path, train=part("train", [0, 1] * 40), test=other)
    reason = refusal(split, folder)
    assert f"unknown column of {folder / 'test.csv'} 'text'" in reason


def test_splits_that_are_not_used_change_nothing(tmp_path):
    parts = {"train": part("train", [0, 1] * 100), "test": part("test", [0, 1] * 30)}
    alone = split(folder_of(tmp_path / "alone", **parts), splits="own")
    extra = pd.concat(
        [parts["train"][:50], parts["test"].assign(label=[1, 0] * 30), part("x", ["third"] * 3)]
    )
    folder = tmp_path / "three"
    folder.mkdir()
    for name, rows in (*parts.items(), ("extra", extra)):
        frame = rows.assign(label=rows["label"].astype(str))
        frame.to_json(folder / f"{name}.jsonl", orient="records", lines=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in ("extra", "train", "test"))
        + "---\n"
    )
    own = split(folder, splits="own")
    assert (own.train.texts, own.val.texts, own.test.texts) == (
        alone.train.texts,
        alone.val.texts,
        alone.test.texts,
    )
    assert "split extra (113 rows)" in facts(folder, splits="own")["Left out"]


def test_blank_cells_are_missing(tmp_path):
    path = csv(tmp_path / "labels.csv", numbered(["neg", "pos", " "] * 20))
    assert "20 rows have no label in column 'label' (the first is row 4)" in refusal(load, path)
    path = csv(tmp_path / "groups.csv", numbered([0, 1] * 20).assign(g=["a", "  "] * 20))
    assert "20 rows have no group in column 'g' (the first is row 3)" in refusal(
        load, path, group_column="g"
    )


def test_classes_that_differ_by_blanks_or_case_are_flagged(tmp_path):
    path = csv(tmp_path / "reviews.csv", numbered(["pos", "neg", " neg", "Pos"] * 30))
    assert warnings(path) == [
        "Classes ' neg', 'Pos', 'neg', 'pos' differ by blanks or case only: they may be one."
    ]


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("id,text,text,label\n1,summary,whole,0\n2,short,long,1\n")
    assert "has several columns called 'text': rename all but one" in refusal(load, path)
    assert "text, label and group need a column each" in refusal(load, path, label_column="text")


def test_numbers_of_groups_are_the_same_however_they_are_written(tmp_path):
    frame = patients(40, 6)
    frame["patient"] = [f"{p}" if i % 2 else f"{p}.0" for p in range(40) for i in range(6)]
    path = csv(tmp_path / "notes.csv", frame)
    assert split(path, group_column="patient").groups.count == 40


def test_small_splits_of_large_groups_are_flagged(tmp_path):
    frame = pd.concat([numbered([0, 1] * 140).assign(g="huge"), part("x", [0, 1] * 20)], ignore_index=True)
    frame.loc[280:, "g"] = [f"g{i // 2 % 10}" for i in range(40)]
    path = csv(tmp_path / "one.csv", frame)
    (warning,) = warnings(path, group_column="g")
    assert "because group huge is large and kept whole" in warning


def test_files_of_empty_rows_and_rows_that_only_look_blank(tmp_path):
    path = tmp_path / "empty.csv"
    path.write_text("text,label\n" + ",\n" * 50)
    assert "has empty rows only" in refusal(load, path)
    path.write_text('text,label\n""\n \n""\na,0\nb,\n')
    assert "(the first is row 6)" in refusal(load, path)


@pytest.mark.parametrize("what", ["text", "label", "g"])
def test_half_of_a_character_is_refused_wherever_it_is(tmp_path, what):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "g": str(i)} for i in range(60)]
    rows[7][what] = "\ud83d"
    path = tmp_path / "half.json"
    path.write_text(json.dumps(rows))
    assert "in record 8 holds half of a character" in refusal(load, path, group_column="g")


def test_a_folder_that_says_how_to_read_its_files_is_read_so(tmp_path):
    csv(tmp_path / "train.csv", part("train", ["None", "Favor"] * 40), sep=";")
    (tmp_path / "README.md").write_text(
        '---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  sep: ";"\n---\n'
    )
    assert load(tmp_path).reviews.label_names == ("Favor", "None")


def test_files_separated_by_tabs_are_read_and_other_separators_are_named(tmp_path):
    frame = part("train", ["None", "Favor"] * 40)
    for path in (tmp_path / "one.tsv", tmp_path / "folder" / "train.tsv"):
        csv(path, frame, sep="\t")
    for place in (tmp_path / "one.tsv", tmp_path / "folder"):
        assert load(place).reviews.texts == list(frame["text"])
        assert load(place).reviews.label_names == ("Favor", "None")
    path = csv(tmp_path / "semicolons.csv", frame.assign(text=frame["text"] + ", really"), sep=";")
    assert "are separated by ';': save it with commas" in refusal(load, path)
    path.write_text("text,label\na film, really,0\n")
    assert "has more cells than the header: put texts with commas in quotes" in refusal(load, path)


def test_json_that_is_cut_off_or_one_object_is_refused_in_words_that_help(tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text": "b\n')
    assert "line 2 is not JSON: Unterminated string starting at, column 10" in refusal(load, path)
    path.write_text(numbered([0, 1]).to_json())
    assert "is one JSON object: write a list of objects, or one object a line" in refusal(load, path)


def test_a_row_of_a_split_is_named_with_its_split(tmp_path):
    for name in ("train", "test"):
        frame = part(name, [0, 1] * 20)
        if name == "test":
            frame.loc[3, "text"] = ""
        frame.to_parquet(tmp_path / f"{name}.parquet")
    assert "(the first is row 4 of split test)" in refusal(load, tmp_path)


def test_encodings_have_one_name():
    assert {make_config(encoding=name).encoding for name in ("UTF-8", "utf8", "utf_8")} == {"utf-8"}
