"""Reviews that hold anything: read unchanged or refused in one line, tokenised, tabled harmlessly."""

import csv
import gzip
import io
import json
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from errors import UserError, printable
from reports.content import csv_text
from tests.helpers import TINY_MODELS
from tests.hostile.junk import NASTY
from tests.review_files import load, refused, write
from trainables.batches import tokenize
from trainables.encoders import load_encoder

FORMATS = (".csv", ".json", ".jsonl", ".parquet")
unicode_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
nasty = [text for text in NASTY if (text.strip() and text.isprintable()) or "\0" in text]
LONG = "very " * 200_000  # a megabyte


def table(rows):
    return pd.DataFrame(rows, columns=["text", "label"])


GOOD = table([("a fine film", 0), ("dull", 1)])


def read(path):
    """The reviews, or None after a refusal in one line."""
    try:
        return load(path, duplicates="keep")
    except UserError as error:
        refusal = str(error)
    assert refusal == printable(refusal)
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reviews")


@given(
    st.sampled_from(FORMATS),
    st.lists(unicode_texts | st.sampled_from(nasty), max_size=6),
    st.lists(unicode_texts, min_size=2, max_size=2, unique=True),
)
def test_texts_are_read_exactly_as_they_were_written(folder, suffix, texts, labels):
    rows = [(text, labels[i % 2]) for i, text in enumerate([*texts, "a fine film", "dull"])]
    reviews = read(write(folder / f"reviews{suffix}", table(rows)))
    if reviews is not None:
        assert reviews.texts == [text for text, _ in rows]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_kind_of_text_passes_through(folder, suffix):
    texts = ["a\0b", "<script>alert(1)</script>", "=1+1", "\u202eevil", "x\r\ny", "x\ry", LONG]
    texts += ["None", "NA", "null", "n/a", "nan", "NaN", "inf", "007", "1e5", "True"]
    texts += ["\U0001f600", "\\ud800", "\ufeffx"]
    rows = [(text, i % 2) for i, text in enumerate(texts)]
    reviews = read(write(folder / f"kinds{suffix}", table(rows)))
    assert reviews.texts == texts


@given(st.sampled_from(FORMATS), st.binary(max_size=60) | unicode_texts.map(str.encode))
def test_a_file_of_any_bytes_is_read_or_refused(folder, suffix, content):
    reviews = read(write(folder / f"bytes{suffix}", content))
    assert reviews is None or len(reviews.texts) == len(reviews.labels) == len(reviews.row_ids) > 0


LABELS = st.none() | st.booleans() | st.integers() | st.floats() | unicode_texts | st.just([1])


@given(st.lists(LABELS, min_size=2, max_size=5))
def test_labels_of_any_type_become_classes_or_are_refused(folder, labels):
    lines = "\n".join(json.dumps({"text": f"t{i}", "label": v}) for i, v in enumerate(labels))
    reviews = read(write(folder / "labels.jsonl", lines))
    if reviews is not None:
        assert len(reviews.label_names) >= 2
        assert set(reviews.labels) == set(range(len(reviews.label_names)))


def test_no_copy_of_the_reviews_is_left_behind(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert read(write(folder / "private.csv", GOOD)) is not None
    assert not list(tmp_path.rglob("*"))


@pytest.fixture(scope="module")
def tokenizers():
    """Tokenizers that have seen next to nothing, or nothing good."""
    corpora = ["a fine film", "two dull hours"], ["\0", *nasty, "\U0001f600" * 99, LONG[:9999]]
    return [load_encoder(model, corpus).tokenizer() for model in TINY_MODELS for corpus in corpora]


@given(st.lists(unicode_texts | st.sampled_from(nasty), min_size=1, max_size=8))
@example([LONG[:100_000]])
def test_any_text_has_tokens_of_the_vocabulary(tokenizers, texts):
    numbers = np.arange(len(texts))
    for tokenizer in tokenizers:
        tokens = tokenize(texts, numbers, numbers, tokenizer, max_length=16)
        assert len(tokens.offsets) == len(texts) + 1
        assert 2 <= np.diff(tokens.offsets).min() <= np.diff(tokens.offsets).max() <= 16
        assert tokens.tokens.max() < len(tokenizer)


@given(st.lists(st.lists(unicode_texts | st.sampled_from(nasty), min_size=2, max_size=2), max_size=5))
def test_no_csv_cell_calculates_or_moves(rows):
    found = list(csv.reader(io.StringIO(csv_text(pd.DataFrame(rows, columns=["=a", "b"])), newline="")))
    assert [len(row) for row in found] == [2] * (len(rows) + 1)
    for row, cells in zip(rows, found[1:], strict=True):
        for value, cell in zip(row, cells, strict=True):
            assert cell[:1] not in set("=+-@\t\r\n")
            same = value.replace("\r\n", "\n").replace("\r", "\n")
            assert cell.removeprefix("'") == same.removeprefix("'")


# -- nested deeply ---------------------------------------------------------------------------------

_READ_EACH = """
import sys
from errors import UserError
from tests.helpers import make_config
from trainables.reviews import load_reviews
for place in sys.argv[1:]:
    try:
        load_reviews(make_config(dataset=place))
        print("read")
    except UserError as error:
        print("refused:", error)
"""


def read_elsewhere(*places):
    """What another process says of each; one that dies of a file takes no test with it."""
    command = [sys.executable, "-c", _READ_EACH, *map(str, places)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def declaring(folder):
    """A folder whose README.md says of which types its columns are, as one from the hub does."""
    folder.mkdir(parents=True)
    label = datasets.ClassLabel(names=["no", "yes"])
    info = datasets.DatasetInfo(features=datasets.Features(text=datasets.Value("string"), label=label))
    datasets.info.DatasetInfosDict(default=info).write_to_directory(str(folder))
    return folder


@pytest.mark.parametrize("depth", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_deeply_nested_json_is_a_line_wherever_it_lies(tmp_path, depth):
    nested = {"lists": "[" * depth + "]" * depth, "objects": '{"a":' * depth + "1" + "}" * depth}
    places = []
    for kind, text in nested.items():
        row = f'{{"text": "a", "label": 0, "more": {text}}}\n'
        for name, content in {"whole.json": text, "row.jsonl": row, "in a list.json": f"[{row}]"}.items():
            places.append(write(tmp_path / f"{kind} {name}", content))
        for name in ("train.json", "train.jsonl", "train.ndjson"):
            places.append(write(tmp_path / f"{kind} alone" / name / name, row).parent)
            places.append(write(declaring(tmp_path / f"{kind} declared" / name) / name, row).parent)
        packed = gzip.compress(row.encode())
        places.append(write(tmp_path / f"{kind} packed" / "train.jsonl.gz", packed).parent)
        readme = f"---\nconfigs: {text}\n---\n"
        for name, content in {"README.md": readme, "dataset_infos.json": text, "state.json": text}.items():
            folder = write(tmp_path / f"{kind} described" / name / name, content).parent
            write(folder / "train.jsonl", GOOD)
            places.append(folder)
    said = read_elsewhere(*places)
    assert [line[:9] for line in said] == ["refused: "] * len(places)
    files = [line for line, place in zip(said, places, strict=True) if place.is_file()]
    assert all("nested too deeply: write objects with a text and a label each" in line for line in files)


@pytest.mark.parametrize(
    ("suffix", "labels"), [(".jsonl", (0, 1)), (".jsonl", ("no", "yes")), (".parquet", ("no", "yes"))]
)
def test_the_classes_that_a_readme_declares_are_those_of_the_files(tmp_path, suffix, labels):
    folder = declaring(tmp_path / "declared")
    write(folder / f"train{suffix}", table([("dull", labels[0]), ("a fine film", labels[1])]))
    reviews = read(folder)
    assert (reviews.label_names, reviews.labels.tolist()) == (("no", "yes"), [0, 1])


# -- larger than memory ----------------------------------------------------------------------------

_READ_IN_ROOM = """
import re, sys
from pathlib import Path
import trainables.review_files as files
from errors import UserError

def most():  # kilobytes of memory so far; getrusage counts those of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

files.free_memory = lambda: int(sys.argv[1])
before = most()
for place in sys.argv[2:]:
    try:
        files.read_parts(place, ["text", "label"], "utf-8")
        print("read")
    except UserError as error:
        print(error)
print(most() - before)
"""
MEGABYTE = 1 << 20


def read_in(room, *places):
    """What a process with so many bytes of memory left says of each, and by how many it grew."""
    command = [sys.executable, "-c", _READ_IN_ROOM, str(room), *map(str, places)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *said, growth = done.stdout.splitlines()
    assert len(said) == len(places)
    return said, int(growth) * 1024


def equal_texts(path, rows, size):
    """A Parquet file that holds a text once, and decodes to as many of it as there are rows."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * size]))
    table = pa.table({"text": text, "label": [i % 2 for i in range(rows)]})
    pq.write_table(table, path, compression="zstd", store_schema=False, write_statistics=False)
    return path


def long_texts(path, rows, size):
    """A Parquet file of texts that differ, and of which little is left when they are packed."""
    table = pa.table({"text": [f"{i}" + "a" * size for i in range(rows)], "label": [0, 1] * (rows // 2)})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, row_group_size=20)
    return path


def test_a_parquet_file_is_read_no_further_than_memory_reaches(tmp_path):
    places = []
    for name, make, rows, size in (
        ("30 GB of one text", equal_texts, 30_000, MEGABYTE),
        ("300 texts", long_texts, 300, MEGABYTE),
        ("a few rows that are large", equal_texts, 64, 1000 * MEGABYTE),
    ):
        (tmp_path / name).mkdir()
        path = make(tmp_path / name / "train.parquet", rows, size)
        assert path.stat().st_size < MEGABYTE
        places += [path, path.parent]
    said, growth = read_in(100 * MEGABYTE, *places)
    assert all("does not fit into memory" in each for each in said)
    assert all("0.10 GB are free: give a part of it" in each for each in said)
    assert growth < 250 * MEGABYTE  # the groups of rows that are open, beside what was kept


def test_packed_text_and_a_file_that_is_large_are_refused_before_memory_ends(tmp_path):
    rows = "".join(f"{i}{'a' * MEGABYTE},{i % 2}\n" for i in range(150))
    large = f"text,label\n{rows}"
    packed = write(tmp_path / "packed" / "train.csv.gz", gzip.compress(large.encode(), compresslevel=1))
    said, growth = read_in(50 * MEGABYTE, packed.parent, write(tmp_path / "large.csv", large))
    assert all("does not fit into memory" in each for each in said)
    assert growth < 150 * MEGABYTE


def test_categories_of_pandas_are_classes_and_what_is_nested_is_no_text(tmp_path):
    categories = pd.DataFrame({"text": ["a fine film", "dull"], "label": ["yes", "no"]}, dtype="category")
    assert read(write(tmp_path / "categories.parquet", categories)).label_names == ("no", "yes")
    nested = pd.DataFrame({"text": [{"en": "a"}, {"en": "b"}], "label": [0, 1]})
    assert "2 rows have no text" in refused(write(tmp_path / "nested.parquet", nested))


def test_a_folder_of_which_a_part_is_lacking_is_refused(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n"
        "    dtype: int64\n  splits:\n  - name: train\n    num_bytes: 9\n    num_examples: 25000\n---\n"
    )
    write(tmp_path / "train.parquet", GOOD)
    assert "2 rows and its description says 25,000" in refused(tmp_path)


# -- files that a folder names ---------------------------------------------------------------------


NAMES_OUTSIDE = {
    "a file beside the folder": "data_files: ../secret.csv",
    "a file anywhere": "data_files: {outside}/secret.csv",
    "an address": "data_files: http://127.0.0.1:1/secret.csv",
    "the hub": "data_files: hf://datasets/org/name/secret.csv",
    "a scheme without slashes": "data_files: file:{outside}/secret.csv",
    "a file in an archive": "data_files: zip://secret.csv::archive.zip",
    "a list": "data_files: [train.csv, ../secret.csv]",
    "a split": "data_files: [{{split: train, path: [train.csv, ../*.csv]}}]",
    "a folder": "data_dir: ..",
    "up and down": "data_files: data/../../secret.csv",
}


def configuration(line, source="README.md"):
    """What a folder says of its files, in one of the places where it may say so."""
    config = f"configs:\n- config_name: default\n  {line}\n"
    return f"---\n{config}---\n" if source == "README.md" else config


@pytest.mark.parametrize("source", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("case", NAMES_OUTSIDE)
def test_a_folder_reads_no_file_and_no_address_outside_it(tmp_path, case, source):
    write(tmp_path / "secret.csv", table([("mine", 0), ("and mine alone", 1)]))
    folder = write(tmp_path / "folder" / "train.csv", GOOD).parent
    write(folder / source, configuration(NAMES_OUTSIDE[case].format(outside=tmp_path), source))
    assert f"{source} in {folder} names '" in refused(folder)


def test_a_folder_may_name_its_own_files(tmp_path):
    write(tmp_path / "mine.csv", GOOD)
    for name in ("mine.csv", "./mine.csv", f"{tmp_path}/mine.csv", "*.csv"):
        write(tmp_path / "README.md", configuration(f"data_files: '{name}'"))
        assert read(tmp_path).texts == ["a fine film", "dull"]


def test_a_saved_data_set_reads_no_file_outside_it(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a fine film", "dull"], "label": [0, 1]})
    rows.save_to_disk(tmp_path / "mine")
    rows.save_to_disk(tmp_path / "theirs")
    state = json.loads((tmp_path / "theirs" / "state.json").read_text())
    own = state["_data_files"][0]["filename"]
    state["_data_files"] = [{"filename": f"../mine/{own}"}]
    (tmp_path / "theirs" / "state.json").write_text(json.dumps(state))
    assert "state.json in" in refused(tmp_path / "theirs")
    assert read(tmp_path / "mine").texts == ["a fine film", "dull"]


def test_no_picture_that_a_column_names_is_opened(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"no picture, and opening it would say so")
    rows = {"text": [{"bytes": None, "path": str(tmp_path / "secret.png")}] * 2, "label": [0, 1]}
    features = datasets.Features(text=datasets.Image(), label=datasets.Value("int64"))
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "pictures")
    assert "2 rows have no text" in refused(tmp_path / "pictures")


def test_a_loading_script_is_not_run(tmp_path):
    write(tmp_path / "train.csv", GOOD)
    (tmp_path / f"{tmp_path.name}.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')\n")
    assert "scripts are no longer supported" in refused(tmp_path)
    assert not (tmp_path / "proof").exists()
