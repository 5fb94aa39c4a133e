"""Which test texts are misclassified: near the boundary, confidently, by all batch sizes or by one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from errors import UserError
from reports.content import TableContent, table_of
from reports.inside.tested import TestedCell, TestedStudy
from reports.study_data import TrialData

TEXT_LENGTH = 200  # characters of a text in a table
_MISTAKES_PER_LIST = 5
_EXAMPLES = 3
EVERY = "every target batch size"


@dataclass(frozen=True)
class Mistake:
    """A row of ``mistakes.csv``."""

    model: str
    target_batch_size: int
    scaling_rule: str
    kind: str  # "nearest the boundary" or "most confident"
    row_id: int
    label: str
    prediction: str
    probability: float  # of the prediction
    margin: float  # its lead over the second class
    text: str


@dataclass(frozen=True)
class Overlap:
    """A row of ``error_overlap.csv``: texts that exactly the batch sizes in ``wrong_at`` get wrong."""

    model: str
    scaling_rule: str
    wrong_at: str
    texts: int
    share_of_wrong: float  # among the texts that any of the batch sizes gets wrong


@dataclass(frozen=True)
class OverlapExample:
    """A row of ``error_overlap_examples.csv``."""

    model: str
    scaling_rule: str
    wrong_at: str
    row_id: int
    label: str
    text: str


def mistakes(study: TestedStudy) -> list[Mistake]:
    """For each cell the wrong predictions of smallest margin, then those of highest probability."""
    return [mistake for cell in study.cells for mistake in _cell_mistakes(study, cell)]


def _cell_mistakes(study: TestedStudy, cell: TestedCell) -> Iterator[Mistake]:
    frame = with_margin(cell.trial, len(study.label_names))
    wrong = frame[frame["label"] != frame["prediction"]]
    orders = {
        "nearest the boundary": wrong.sort_values(["margin", "row_id"]),
        "most confident": wrong.sort_values(["probability", "row_id"], ascending=[False, True]),
    }
    for kind, ordered in orders.items():
        for row in ordered.head(_MISTAKES_PER_LIST).to_dict("records"):
            yield Mistake(
                cell.model,
                cell.target_batch_size,
                cell.scaling_rule,
                kind,
                row["row_id"],
                study.label_names[row["label"]],
                study.label_names[row["prediction"]],
                row["probability"],
                row["margin"],
                shorten(study.test["text"][row["row_id"]]),
            )


def with_margin(trial: TrialData, classes: int) -> pd.DataFrame:
    """The best epoch's predictions with their margin: the lead of the top class over the second.

    Studies tested before margins were stored lack them; with two classes it is 2p - 1.
    """
    frame = trial.predictions["best"]
    if "margin" in frame:
        return frame
    if classes > 2:
        raise UserError(
            f"{trial.name} was tested before margins were stored, and {classes} classes need them: "
            "run the study under a new --name"
        )
    return frame.assign(margin=2 * frame["probability"] - 1)


def overlaps(study: TestedStudy) -> tuple[list[Overlap], list[OverlapExample]]:
    """Per model and rule with two batch sizes or more: errors shared by all, and made by one alone."""
    counts: list[Overlap] = []
    examples: list[OverlapExample] = []
    for (model, rule), correct in _by_batch_size(study).items():
        groups = wrong_sets(correct)
        wrong = int((~correct).any(axis=1).sum())
        for name, rows in groups.items():
            counts.append(Overlap(model, rule, name, len(rows), len(rows) / max(1, wrong)))
            examples += [_example(study, model, rule, name, row) for row in rows[:_EXAMPLES]]
    return counts, examples


def wrong_sets(correct: pd.DataFrame) -> dict[str, list[int]]:
    """The row_ids that all columns get wrong, those that only one does, and the others.

    ``correct`` is bool, a row per text and a column per target batch size.
    """
    wrong = ~correct
    times = wrong.sum(axis=1)
    sets = {EVERY: wrong.index[times == len(wrong.columns)].to_list()}
    for size in wrong.columns:
        sets[f"{size} alone"] = wrong.index[(times == 1) & wrong[size]].to_list()
    if len(wrong.columns) > 2:
        sets["some, not all"] = wrong.index[(times > 1) & (times < len(wrong.columns))].to_list()
    return sets


def _by_batch_size(study: TestedStudy) -> dict[tuple[str, str], pd.DataFrame]:
    groups: dict[tuple[str, str], dict[int, pd.Series]] = {}
    for cell in study.cells:
        group = groups.setdefault((cell.model, cell.scaling_rule), {})
        group[cell.target_batch_size] = cell.trial.correct()
    return {
        key: pd.DataFrame(dict(sorted(columns.items()))).loc[study.test.index]
        for key, columns in groups.items()
        if len(columns) > 1
    }


def _example(study: TestedStudy, model: str, rule: str, group: str, row: int) -> OverlapExample:
    label = study.label_names[study.test["label"][row]]
    return OverlapExample(model, rule, group, int(row), label, shorten(study.test["text"][row]))


def shorten(text: str, length: int = TEXT_LENGTH) -> str:
    """The text on one line, cut to ``length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def error_tables(study: TestedStudy) -> Mapping[str, TableContent]:
    """The tables behind ``mistakes.csv`` and the two of ``error_overlap``."""
    counts, examples = overlaps(study)
    return {
        "mistakes": table_of(
            Mistake,
            mistakes(study),
            "Mistakes nearest the boundary, and the most confident ones",
            "Margin is the probability of the predicted class less that of the second. The label noise "
            "of a data set shows among the confident mistakes.",
        ),
        "error_overlap": table_of(
            Overlap,
            counts,
            "Errors that the target batch sizes share, and errors that one makes alone",
            "Shares are of the texts that at least one target batch size gets wrong.",
        ),
        "error_overlap_examples": table_of(
            OverlapExample, examples, "Examples of shared and lone errors", "The first ones by position."
        ),
    }


def shared_errors_sentences(counts: Sequence[Overlap]) -> list[str]:
    """One sentence per model and rule."""
    groups: dict[tuple[str, str], dict[str, Overlap]] = {}
    for row in counts:
        groups.setdefault((row.model, row.scaling_rule), {})[row.wrong_at] = row
    return [_shared_sentence(model, rule, rows) for (model, rule), rows in groups.items()]


def _shared_sentence(model: str, rule: str, rows: Mapping[str, Overlap]) -> str:
    total = sum(row.texts for row in rows.values())
    alone = [f"{row.texts} at {name}" for name, row in rows.items() if name.endswith(" alone")]
    return (
        f"{model}, rule {rule}: of {total} test texts that some target batch size gets wrong, "
        f"{rows[EVERY].texts} are wrong at every one, {', '.join(alone)}."
    )
