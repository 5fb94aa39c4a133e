"""Reviews that hold anything: read unchanged or refused in one line, tokenised, tabled harmlessly."""

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from errors import UserError, printable
from reports.content import csv_text
from tests.helpers import TINY_MODELS, make_config
from tests.hostile.junk import NASTY
from trainables.batches import tokenize
from trainables.encoders import load_encoder
from trainables.reviews import load_reviews

FORMATS = (".csv", ".json", ".jsonl", ".parquet")
unicode_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
nasty = [text for text in NASTY if (text.strip() and text.isprintable()) or "\0" in text]
LONG = "very " * 200_000  # a megabyte


def write(path, rows):
    frame = pd.DataFrame(rows, columns=["text", "label"])
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=path.suffix == ".jsonl")
    return path


def read(path, **overrides):
    """The reviews, or None after a refusal in one line."""
    try:
        return load_reviews(make_config(dataset=str(path), duplicates="keep", **overrides)).reviews
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
    reviews = read(write(folder / f"reviews{suffix}", rows))
    if reviews is not None:
        assert reviews.texts == [text for text, _ in rows]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_kind_of_text_passes_through(folder, suffix):
    texts = ["a\0b", "<script>alert(1)</script>", "=1+1", "\u202eevil", "x\r\ny", "x\ry", "007", LONG]
    texts += ["\U0001f600", "\\ud800", "\ufeffx"]
    reviews = read(write(folder / f"kinds{suffix}", [(text, i % 2) for i, text in enumerate(texts)]))
    assert reviews.texts == texts


@given(st.sampled_from(FORMATS), st.binary(max_size=60) | unicode_texts.map(str.encode))
def test_a_file_of_any_bytes_is_read_or_refused(folder, suffix, content):
    path = folder / f"bytes{suffix}"
    path.write_bytes(content)
    reviews = read(path)
    assert reviews is None or len(reviews.texts) == len(reviews.labels) == len(reviews.row_ids) > 0


CARELESS = {
    "longer than the header.csv": b"text,label\n1,a fine film,0\n2,dull,1\n",
    "one longer row.csv": b"text,label\na fine film,0,x\ndull,1\n",
    "utf-16.csv": "text,label\na fine film,0\ndull,1\n".encode("utf-16"),
    "latin-1.csv": "text,label\ncaf\u00e9,0\ndull,1\n".encode("latin-1"),
    "halves of characters.json": b'[{"text": "a\\ud800b", "label": 0}, {"text": "b", "label": 1}]',
}


@pytest.mark.parametrize("name", CARELESS)
def test_careless_files_are_refused(folder, name):
    (folder / name).write_bytes(CARELESS[name])
    assert read(folder / name) is None


LABELS = st.none() | st.booleans() | st.integers() | st.floats() | unicode_texts | st.just([1])


@given(st.lists(LABELS, min_size=2, max_size=5))
def test_labels_of_any_type_become_classes_or_are_refused(folder, labels):
    path = folder / "labels.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"t{i}", "label": v}) for i, v in enumerate(labels)))
    reviews = read(path)
    if reviews is not None:
        assert len(reviews.label_names) >= 2
        assert set(reviews.labels) == set(range(len(reviews.label_names)))


def test_no_copy_of_the_reviews_is_left_behind(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert read(write(folder / "private.csv", [("a fine film", 0), ("dull", 1)])) is not None
    assert not list(tmp_path.rglob("*"))


@pytest.fixture(scope="module")
def tokenizers():
    """Tokenizers that have seen next to nothing, or nothing good."""
    corpora = ["a fine film", "two dull hours"], ["\0", *nasty, "\U0001f600" * 99, LONG[:9999]]
    return [load_encoder(model, corpus).tokenizer() for model in TINY_MODELS for corpus in corpora]


@given(st.lists(unicode_texts | st.sampled_from(nasty), min_size=1, max_size=8))
@example([LONG])
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
