"""Files of reviews, and what the product makes of them."""

import pandas as pd

from tests.helpers import make_config, refusal
from trainables.review_facts import facts_of, warnings_of
from trainables.review_splits import load_splits
from trainables.reviews import SPLITS, load_reviews


def numbered(labels, name="text", **columns):
    """A row for each label, whose text is this name and its number."""
    texts = [f"{name} {i}" for i in range(len(labels))]
    return pd.DataFrame({"text": texts, "label": labels} | columns)


def write(path, content, encoding="utf-8", sep=","):
    """Bytes or text as they are, a table in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding)
    elif path.suffix == ".parquet":
        content.to_parquet(path)
    elif path.suffix in {".csv", ".tsv"}:
        content.to_csv(path, index=False, encoding=encoding, sep=sep, lineterminator="\r\n")
    else:
        text = content.to_json(orient="records", lines=path.suffix == ".jsonl", force_ascii=False)
        path.write_bytes(text.encode(encoding))
    return path


def folder_of(folder, suffix=".csv", **parts):
    for name, content in parts.items():
        write(folder / f"{name}{suffix}", content)
    return folder


def config_of(path, **overrides):
    return make_config(dataset=str(path), **overrides)


def load(path, **overrides):
    return load_reviews(config_of(path, **overrides)).reviews


def split(path, **overrides):
    return load_splits(config_of(path, **overrides))


def refused(path, **overrides):
    return refusal(split, path, **overrides)


def facts(path, **overrides):
    config = config_of(path, **overrides)
    return facts_of(load_splits(config), config)


def warnings(path, **overrides):
    config = config_of(path, **overrides)
    return warnings_of(load_splits(config), config)


def by_split(splits, field):
    return [list(getattr(getattr(splits, name), field)) for name in SPLITS]
