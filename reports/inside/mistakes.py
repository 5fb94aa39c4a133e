"""Which test texts are misclassified: near the boundary, confidently, by all batch sizes or by one.

The source is ``answers``, a row per tested cell and test text: the cell's coordinates except the seed,
``cell`` (its number in reading order), ``trial_hash``, ``row_id``, ``label``, ``prediction``,
``probability`` (of the prediction), ``margin`` (its lead over the second class), ``wrong``, ``text``.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from errors import UserError
from reports.content import rows
from reports.prose import shorten
from reports.statistics import wilson_interval
from reports.study_data import StudyData
from search_spaces.space import GRID

EVERY = "every target batch size"
_READABLE_WORDS = range(4, 17)
_MISTAKES_PER_LIST = 5
_EXAMPLES = 3
_QUARTILES = (0.25, 0.5, 0.75)
_WORDS = (
    "not no never nothing nor neither none nobody nowhere without hardly barely scarcely cannot "
    "dont didnt doesnt isnt wasnt"
).split()
NEGATION = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b|\wn['’]t\b", re.IGNORECASE)


class Sentence(NamedTuple):
    """A text to look at, and why it was chosen."""

    text: str
    why: str


def read_answers(study: StudyData, test_split: pd.DataFrame) -> pd.DataFrame:
    """The answers of the best epochs at the study's first seed; UserError if no trial is tested.

    More seeds would repeat the same texts and add no evidence about them.
    """
    tested = {trial_hash: trial for trial_hash, trial in study.trials.items() if trial.is_tested}
    cells = study.cells[study.cells["seed"].isin(study.axis_values("seed")[:1])]
    cells = cells[cells["trial_hash"].isin(tested)][[*GRID, "trial_hash"]].reset_index(drop=True)
    if cells.empty:
        raise UserError(
            f"no trial of study '{study.plan.study}' has been tested yet: run its command again"
        )
    classes = len(study.plan.dataset.label_names)
    frames = {name: tested[name].predictions["best"] for name in cells["trial_hash"].unique()}
    answers = pd.concat(frames, names=["trial_hash"]).reset_index(level=0)
    texts = test_split.set_index("row_id")
    same_rows = set(texts.index) == set(answers["row_id"])
    if not same_rows or not texts["label"].isin(range(classes)).all():
        raise UserError(
            f"the test split of study '{study.plan.study}' in MLflow is not what its trials were tested on"
        )
    answers["wrong"] = answers["label"] != answers["prediction"]
    answers["text"] = answers["row_id"].map(texts["text"])
    return cells.rename_axis("cell").reset_index().merge(answers, on="trial_hash")


def mistakes(answers: pd.DataFrame) -> pd.DataFrame:
    """For each cell the wrong predictions of smallest margin, then those of highest probability."""
    wrong = answers[answers["wrong"]]
    nearest = wrong.sort_values(["cell", "margin", "row_id"])
    surest = wrong.sort_values(["cell", "probability", "row_id"], ascending=[True, False, True])
    lists = {"nearest the boundary": nearest, "most confident": surest}
    heads = [own.groupby("cell").head(_MISTAKES_PER_LIST).assign(kind=kind) for kind, own in lists.items()]
    columns = [*GRID, "kind", "row_id", "label", "prediction", "probability", "margin", "text"]
    return pd.concat(heads).sort_values("cell", kind="stable")[columns]


def overlaps(answers: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Per model and rule with two batch sizes or more: errors shared by all, and made by one alone.

    Returns the counts, and the first texts of each kind as examples.
    """
    counts, examples = [], []
    for (model, rule), own in answers.groupby(["model", "scaling_rule"], sort=False):
        wrong = own.pivot(index="row_id", columns="target_batch_size", values="wrong")
        if len(wrong.columns) < 2:
            continue
        texts = own.drop_duplicates("row_id").set_index("row_id")
        any_wrong = max(1, int(wrong.any(axis=1).sum()))
        for name, row_ids in wrong_sets(wrong.loc[texts.index]).items():
            group = {"model": model, "scaling_rule": rule, "wrong_at": name}
            counts.append(group | {"texts": len(row_ids), "share_of_wrong": len(row_ids) / any_wrong})
            first = texts.loc[row_ids[:_EXAMPLES], ["label", "text"]].reset_index()
            examples += [group | row for row in first.to_dict("records")]
    columns = ["model", "scaling_rule", "wrong_at"]
    return (
        pd.DataFrame(counts, columns=[*columns, "texts", "share_of_wrong"]),
        pd.DataFrame(examples, columns=[*columns, "row_id", "label", "text"]),
    )


def wrong_sets(wrong: pd.DataFrame) -> dict[str, list[int]]:
    """The row_ids that all columns get wrong, those that only one gets wrong, and those that some do.

    ``wrong`` is bool, a row per text and a column per target batch size.
    """
    times = wrong.sum(axis=1)
    sets = {EVERY: times == len(wrong.columns)}
    sets |= {f"{size} alone": (times == 1) & wrong[size] for size in wrong.columns}
    if len(wrong.columns) > 2:
        sets["some, not all"] = (times > 1) & (times < len(wrong.columns))
    return {name: wrong.index[chosen].to_list() for name, chosen in sets.items()}


def shared_errors_sentences(counts: pd.DataFrame) -> Iterator[str]:
    """One sentence per model and rule about what ``overlaps`` counted."""
    for (model, rule), own in counts.groupby(["model", "scaling_rule"], sort=False):
        texts = dict(zip(own["wrong_at"], own["texts"], strict=True))
        alone = [f"{count} at {name}" for name, count in texts.items() if name.endswith(" alone")]
        yield (
            f"{model}, rule {rule}: of {sum(texts.values())} test texts that some target batch size gets "
            f"wrong, {texts[EVERY]} are wrong at every one, {', '.join(alone)}."
        )


def error_rates(answers: pd.DataFrame) -> pd.DataFrame:
    """The error rate of every cell by the length of the texts and by negation in them."""
    texts = answers.drop_duplicates("row_id").set_index("row_id")["text"]
    negation = texts.str.contains(NEGATION).map({True: "with", False: "without"})
    properties = {
        "words": length_bins(texts.str.count(r"\S+")),
        "negation": negation.astype(pd.CategoricalDtype(["without", "with"], ordered=True)),
    }
    rates = []
    for name, groups in properties.items():
        by = ["cell", answers["row_id"].map(groups).astype(groups.dtype).rename("group")]
        counts = answers.groupby(by, observed=True)["wrong"].agg(texts="count", errors="sum")
        rates.append(counts.reset_index().astype({"group": str}).assign(property=name))
    frame = pd.concat(rates).sort_values("cell", kind="stable")
    frame["error_rate"] = frame["errors"] / frame["texts"]
    frame[["low", "high"]] = [wilson_interval(rate.errors, rate.texts) for rate in rows(frame)]
    cells = answers[["cell", *GRID]].drop_duplicates()
    columns = [*GRID, "property", "group", "texts", "errors", "error_rate", "low", "high"]
    return cells.merge(frame, on="cell")[columns]


def length_bins(words: pd.Series) -> pd.Series:
    """Quartile bins of word counts, named by the least and most words in them (``12–18``).

    The categories are in ascending order. Equal counts fall into one bin, so there may be fewer than
    four.
    """
    edges = np.unique(np.quantile(words, _QUARTILES))
    bins = pd.Series(np.searchsorted(edges, words, side="left"), words.index)
    ends = words.groupby(bins).agg(["min", "max"])
    names = {end.Index: "–".join(map(str, dict.fromkeys(end[1:]))) for end in ends.itertuples()}
    return bins.map(names).astype(pd.CategoricalDtype(list(names.values()), ordered=True))


def readable(frame: pd.DataFrame, label_names: Sequence[str]) -> pd.DataFrame:
    """Texts shortened, and classes by their names."""
    names = dict(enumerate(label_names))
    classes = {name: frame[name].map(names) for name in ("label", "prediction") if name in frame}
    return frame.assign(**classes, text=frame["text"].map(shorten))


def given_sentences(texts: Sequence[str]) -> list[Sentence]:
    """The user's own texts; UserError for an empty one."""
    for text in texts:
        if not text.strip():
            raise UserError("--text is empty: give a sentence")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"--text '{text}' holds bytes that are not text: give it in UTF-8")
    return [Sentence(text, "given sentence") for text in texts]


def choose_sentences(answers: pd.DataFrame, label_names: Sequence[str]) -> list[Sentence]:
    """Up to three short test sentences: one that trials disagree on, one all get right, one all wrong.

    Ties go to the shorter text, then to the lower row_id.
    """
    each = answers.drop_duplicates(["trial_hash", "row_id"]).groupby("row_id")
    texts = each.first().assign(wrong=each["wrong"].mean())
    words = texts["text"].str.count(r"\S+")
    scores = {
        "trials disagree": texts["wrong"].where(texts["wrong"] < 0.5, 1 - texts["wrong"]),
        "all trials are right": texts["wrong"] == 0,
        "all trials are wrong": texts["wrong"] == 1,
    }
    found = []
    for why, score in scores.items():
        ranked = texts.assign(long=~words.isin(_READABLE_WORDS), score=-score.astype(float), words=words)
        ranked = ranked[score > 0].sort_values(["long", "score", "words", "row_id"])
        for best in rows(ranked.head(1)):
            found.append(Sentence(best.text, f"{why}, label {label_names[best.label]}"))
    return found
