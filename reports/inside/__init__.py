"""``analyze``: from a study in MLflow to the section that looks inside its best-epoch models."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from errors import unknown
from reports.content import INSIDE, InsideSection, Table, make_folder, rows, write_section
from reports.inside import attention, mistakes, pictures
from reports.inside.attention import Reading, View
from reports.inside.mistakes import Sentence
from reports.prose import axis_words
from reports.study_data import StudyData, read_study
from search_spaces.space import GRID
from tracking import Say, StudyStore, TrialRun, check_store_exists, nobody

_ATTENTION_TEXTS = 256
_LANDSCAPE_TEXTS = 600  # at most 1,000: more points hide each other
_DEFAULT_RULE = "fixed"
_SEED = 0  # of every sample, so that a second analysis shows the same texts
_TABLES = {  # file name -> title, note
    "attention": (
        "Where attention goes",
        "Attention weights in {where} of the best-epoch models, averaged over tokens, heads and texts. "
        "Special tokens are [CLS], [SEP] and their like; the top token is the one that gets the most "
        "weight in its text. Entropy is in nats; relative entropy divides it by the logarithm of the "
        "number of tokens, so that 1 is uniform attention.",
    ),
    "mistakes": (
        "Mistakes nearest the boundary, and the most confident ones",
        "Margin is the probability of the predicted class less that of the second. The label noise "
        "of a data set shows among the confident mistakes.",
    ),
    "error_overlap": (
        "Errors that the target batch sizes share, and errors that one makes alone",
        "Shares are of the texts that at least one target batch size gets wrong.",
    ),
    "error_overlap_examples": ("Examples of shared and lone errors", "The first ones by position."),
    "error_rates": (
        "Error rate by review length and negation",
        "Words are counted between blanks; the groups are quartiles of the test split. Negation is an "
        "English word such as not, never, without or n't. Low and high are 95 % Wilson intervals, each "
        "for its own row: the same texts stand in many rows, so rows are not independent.",
    ),
}


@dataclass(frozen=True)
class _Look:
    """What is kept of one reloaded model; readings and landscape only if pictures show the model."""

    statistics: Mapping[str, float]
    readings: Sequence[Reading] = ()
    landscape: pd.DataFrame | None = None  # a row per text


def write_inside(
    tracking_uri: str,
    study: str,
    results_path: str,
    view: View | None = None,
    say: Say = nobody,
) -> tuple[InsideSection, Path]:
    """Write ``results/<study>/inside/`` and log it to the newest parent run under ``inside/``.

    Returns the section and the folder; ``say`` gets a line for each model and for each wait.
    Raises UserError for an unknown study, rule, layer or head, and for a study without tested trials or
    without its test split; StoreAwayError if MLflow does not answer.
    """
    view = view or View()
    check_store_exists(tracking_uri)
    runs = StudyStore(tracking_uri, study, say).read_runs()
    invocation, data = runs.invocations[0], read_study(runs)
    answers = mistakes.read_answers(data, invocation.test_split())
    rules = list(answers["scaling_rule"].unique())
    view = replace(view, rule=view.rule or (_DEFAULT_RULE if _DEFAULT_RULE in rules else rules[0]))
    if view.rule not in rules:
        raise unknown(f"scaling rule in study {study}", view.rule, rules)
    names = data.plan.dataset.label_names
    sentences = mistakes.given_sentences(view.texts) or mistakes.choose_sentences(answers, names)
    folder = Path(results_path) / study / INSIDE
    make_folder(folder)
    looks: dict[str, _Look] = {}
    trials = answers.groupby("trial_hash", sort=False)
    for number, (trial_hash, own) in enumerate(trials, 1):
        run = runs.trials[str(trial_hash)]
        say(f"looking inside {number} of {len(trials)}: {run.name}")
        shown = sentences if view.rule in set(own["scaling_rule"]) else []
        looks[str(trial_hash)] = _look(run, own.drop_duplicates("row_id"), shown, view)
    section = _section(data, answers, looks, sentences, view)
    write_section(section, folder)
    with tempfile.TemporaryDirectory() as uploaded:  # other files of the folder stay here
        write_section(section, Path(uploaded))
        invocation.log_folder(Path(uploaded), INSIDE)
    return section, folder


def _look(run: TrialRun, answers: pd.DataFrame, sentences: Sequence[Sentence], view: View) -> _Look:
    """Reload one model and look; with sentences, also collect what pictures show."""
    model = attention.reload_model(run)
    attention.check_view(model, view)
    texts = _sample(answers, _ATTENTION_TEXTS)["text"].to_list()
    statistics = attention.mean_statistics(attention.readings(model, texts, view))
    if not sentences:
        return _Look(statistics)
    drawn = list(attention.readings(model, [sentence.text for sentence in sentences], view))
    sample = _sample(answers, _LANDSCAPE_TEXTS)
    inputs, predictions = attention.features(model, sample["text"].to_list())
    x, y = pictures.project(inputs).T
    return _Look(statistics, drawn, sample.assign(x=x, y=y, repeated=predictions == sample["prediction"]))


def _sample(answers: pd.DataFrame, size: int) -> pd.DataFrame:
    """At most ``size`` test texts, drawn without replacement and always the same, in their order."""
    if len(answers) <= size:
        return answers
    chosen = np.random.default_rng(_SEED).choice(len(answers), size, replace=False)
    return answers.iloc[np.sort(chosen)]


def _section(
    study: StudyData,
    answers: pd.DataFrame,
    looks: Mapping[str, _Look],
    sentences: Sequence[Sentence],
    view: View,
) -> InsideSection:
    names = study.plan.dataset.label_names
    cells = answers.drop_duplicates("cell")[[*GRID, "trial_hash"]]
    by_trial = pd.DataFrame({name: look.statistics for name, look in looks.items()}).T
    statistics = cells.join(by_trial.astype({"texts": int}), on="trial_hash").drop(columns="trial_hash")
    shared, examples = mistakes.overlaps(answers)
    frames = {
        "attention": statistics,
        "mistakes": mistakes.readable(mistakes.mistakes(answers), names),
        "error_overlap": shared,
        "error_overlap_examples": mistakes.readable(examples, names),
        "error_rates": mistakes.error_rates(answers),
    }
    tables = {
        name: Table.of_frame(title, frames[name].rename(columns=axis_words), note.format(where=view.where))
        for name, (title, note) in _TABLES.items()
        if not frames[name].empty
    }
    shown = {
        (cell.model, cell.target_batch_size): looks[cell.trial_hash]
        for cell in rows(cells[cells["scaling_rule"] == view.rule])
    }
    drawn = []
    for number, sentence in enumerate(sentences):
        read = {place: look.readings[number] for place, look in shown.items()}
        drawn.append(pictures.attention_picture(f"attention_{number + 1}", sentence, read, names, view))
    landscapes = {place: look.landscape for place, look in shown.items() if look.landscape is not None}
    drawn.append(pictures.landscape_picture(landscapes, names, view))
    drawn.append(pictures.rates_picture(frames["error_rates"], view))
    repeated = pd.concat(landscapes)["repeated"]
    prose = [
        f"Best-epoch models of seed {study.axis_values('seed')[0]}, reloaded from MLflow on the CPU; the "
        f"pictures show rule {view.rule}. On {repeated.sum():,} of {len(repeated):,} predictions the "
        "reloaded models repeat what they said when they were tested.",
        *_attention_sentences(statistics[statistics["scaling_rule"] == view.rule]),
        *mistakes.shared_errors_sentences(shared),
    ]
    return InsideSection(prose=prose, pictures=drawn, tables=tables)


def _attention_sentences(attention: pd.DataFrame) -> Iterator[str]:
    for (model, rule), own in attention.groupby(["model", "scaling_rule"], sort=False):
        shares = [
            f"{100 * cell.special_token_share:.0f} % at target batch size {cell.target_batch_size}"
            for cell in rows(own)
        ]
        yield f"{model}, rule {rule}: attention on special tokens is {', '.join(shares)}."
