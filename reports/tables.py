"""The tables of a report, each a DataFrame, and the facts of how a study was made."""

import math
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import pandas as pd
from pandas.core.groupby import DataFrameGroupBy

from reports.content import Table, rows
from reports.noise import LARGEST_ERROR, NOISE_CAPTION, WHOLE, NoiseScale, noise_scales
from reports.prose import (
    accuracy_text,
    axis_words,
    counted,
    learning_rate_text,
    number,
    p_text,
    signed,
    span,
)
from reports.sentences import about, comparison, interval_text, outcome_text, points_text, subject
from reports.statistics import Interval, wilson_interval
from reports.study_data import StudyData
from reports.verdicts import DIVERGED, Family
from search_spaces.plan import DatasetFacts
from search_spaces.space import GRID
from search_spaces.trial_config import OWN, TrialConfig, epoch_text
from tracking import InvocationRun, StudyStore

_GAP_NOTES = {
    "train_eval_acc": (
        "At the best epoch, of the same weights, with dropout off. train_eval_acc is that of a random part "
        "of the training split, as large as the val split (or all of it) and the same for all trials. "
        "val_acc was the highest of several, which makes it a little too high and the gap too small."
    ),
    "train_acc": (
        "At the best epoch. train_acc is taken while the weights move and with dropout on, so the gap "
        "is smaller than that of the epoch's final weights."
    ),
}
REPORT_TAB = "/artifacts/report.html"  # of a parent run's page in MLflow
_SHARED_SETTINGS = "optimizer scheduler epochs head_dropout max_length precision engine".split()


def results_frame(study: StudyData) -> pd.DataFrame:
    """``results.csv``: a row per cell in reading order, NaN where its trial has not come so far."""
    frame = study.cells[["scaling_rule", "model", "target_batch_size", "seed", "learning_rate"]].copy()
    for name in ("best_val_acc", "best_epoch", "best_step", "best_examples", "test_acc", "last_test_acc"):
        frame[name] = study.metric(name)
    frame["run_id"] = study.of_trials(lambda trial: trial.run_id)
    frame["trial_hash"] = study.cells["trial_hash"]
    for name in ("test_acc", "last_test_acc"):
        ends = [_interval(value, study.plan.dataset.sizes["test"]) for value in frame[name]]
        columns = [f"{name}_low", f"{name}_high"]
        frame[columns] = pd.DataFrame(ends, frame.index, columns, dtype=float)
    for metric in further_metrics(study):
        for name in (f"test_{metric}", f"last_test_{metric}"):
            frame[name] = study.metric(name)
    return frame


def further_metrics(study: StudyData) -> list[str]:
    """The study's metrics beside the loss and the accuracy."""
    return [name for name in study.plan.metrics if name not in ("loss", "acc")]


def _interval(accuracy: float, examples: int) -> Interval:
    if math.isnan(accuracy):
        return Interval(math.nan, math.nan)
    return wilson_interval(round(accuracy * examples), examples)


def result_tables(study: StudyData, compact: bool = False) -> list[Table]:
    """A table per scaling rule; in a ``compact`` one, for terminals, only test_acc keeps its interval."""
    frame, examples = results_frame(study), study.plan.dataset.sizes["test"]
    with_interval = partial(_accuracy_text, examples=examples)
    epochs = ["" if math.isnan(epoch) else f" (epoch {epoch_text(epoch)})" for epoch in frame["best_epoch"]]
    shown = {
        "model": frame["model"],
        "target batch size": frame["target_batch_size"],
        "seed": frame["seed"],
        "learning rate": frame["learning_rate"].map(learning_rate_text),
        "val_acc@best epoch": frame["best_val_acc"].map(accuracy_text) + epochs,
        "test_acc": frame["test_acc"].map(with_interval),
        "last-epoch test_acc": frame["last_test_acc"].map(accuracy_text if compact else with_interval),
    }
    for metric in further_metrics(study):
        shown[f"test_{metric}"] = frame[f"test_{metric}"].map(accuracy_text)
        shown[f"last-epoch test_{metric}"] = frame[f"last_test_{metric}"].map(accuracy_text)
    if not study.has_several_seeds:
        del shown["seed"]
    note = (
        "In brackets: Wilson 95 % intervals. val_acc has none: its highest value chose the epoch, and is "
        "too high."
    )
    return [
        Table(f"scaling rule: {rule}", own, note)
        for rule, own in pd.DataFrame(shown).groupby(frame["scaling_rule"], sort=False)
    ]


def _accuracy_text(value: float, examples: int) -> str:
    """The accuracy on so many examples, with its interval."""
    if math.isnan(value):
        return accuracy_text(value)
    low, high = _interval(value, examples)
    return f"{accuracy_text(value)} [{low:.3f}, {high:.3f}]"


def finding_tables(study: StudyData, families: Mapping[str, Family]) -> dict[str, Table]:
    """File name -> the tables beyond the results, without those that would be empty."""
    tables = {
        **{name: comparisons_table(family) for name, family in families.items()},
        "seed_spread": seed_spread_table(study),
        "generalisation_gap": generalisation_gap_table(study),
        "noise_scale": noise_table(study),
    }
    return {name: table for name, table in tables.items() if not table.frame.empty}


def comparisons_table(family: Family) -> Table:
    """The verdicts of a family as they are read."""
    shown = [
        {
            "comparison": f"{subject(v)}: {comparison(v)}",
            "difference (points)": signed(v.difference_points),
            "simultaneous 95 % interval": interval_text(v.difference_points_low, v.difference_points_high),
            "gained / lost": "–" if v.outcome == DIVERGED else f"{v.gained} / {v.lost}",
            "p (Holm)": p_text(v.p_holm).removeprefix("= "),
            "smallest detectable (points)": number(v.smallest_detectable_points),
            "verdict": outcome_text(v),
        }
        for v in rows(family.verdicts)
    ]
    test = "exact McNemar test, score interval (Tango)"
    if family.seeds[1] > 1:
        test = "one t test and interval over seeds and test examples"
    note = (
        f"Differences of test accuracy, paired example by example: {test}, "
        f"Holm's adjustment over the {counted(family.planned, 'planned comparison')}. Gained and lost: "
        "examples that only the one or only the other side classified correctly, or did under more seeds. "
        "Smallest detectable: at 80 % power, at the level of Holm's first step. Equivalent: the "
        f"simultaneous 90 % interval lies within {points_text(family.margin)} of 0. {about(family)}"
    )
    return Table(family.title, pd.DataFrame(shown), note)


def seed_spread_table(study: StudyData) -> Table:
    """How far trainings of one cell lie apart, beside how far test examples alone would scatter them."""
    accuracy = study.of_trials(lambda trial: trial.correct().mean() if trial.is_tested else math.nan)
    points = _points(study, accuracy=accuracy)["accuracy"]
    spread = points.agg(seeds="count", mean="mean", deviation="std")
    spread = spread[spread["seeds"] > 1]
    error = np.sqrt(spread["mean"] * (1 - spread["mean"]) / study.plan.dataset.sizes["test"])
    shown = {
        "seeds": spread["seeds"],
        "mean test_acc": spread["mean"].map(accuracy_text),
        "standard deviation over seeds (points)": (100 * spread["deviation"]).map("{:.1f}".format),
        "standard error over test examples (points)": (100 * error).map("{:.1f}".format),
    }
    note = (
        "Two kinds of chance, apart: another seed gives another training, another test split gives "
        "other examples. The standard error is that of one training's accuracy."
    )
    return Table("Seeds and test examples", pd.DataFrame(shown).reset_index(), note)


def generalisation_gap_table(study: StudyData) -> Table:
    """Accuracies at the best epoch, means over the seeds that have come to it.

    Trials of earlier versions have no ``train_eval_acc``: a study with one shows the running ``train_acc``.
    """

    def at_best(name: str) -> pd.Series:
        return study.of_trials(
            lambda trial: trial.evaluations.get(name, {}).get(trial.best_evaluation, math.nan)
        )

    val_acc, train_acc = at_best("val_acc"), at_best(name := "train_eval_acc")
    if train_acc[val_acc.notna()].isna().any():
        train_acc = at_best(name := "train_acc")
    means = _points(study, **{name: train_acc, "val_acc": val_acc}).mean()
    means["gap"] = means[name] - means["val_acc"]
    frame = means.dropna(subset="gap").map(accuracy_text).reset_index()
    return Table(f"Generalisation gap: {name} − val_acc", frame, _GAP_NOTES[name])


def _points(study: StudyData, **values: pd.Series) -> DataFrameGroupBy:
    """Values of each cell's trial, those of all seeds together."""
    points = [study.cells[axis].rename(axis_words(axis)) for axis in GRID]
    return pd.DataFrame(values, dtype=float).groupby(points, sort=False)


def noise_table(study: StudyData) -> Table:
    """A row per trial whose noise was measured, over its whole training and over each half of it."""
    shown = []
    for trial in study.trials.values():
        scales = noise_scales(trial)
        if scales[WHOLE].windows != 0:
            sizes = {"trial": trial.name, "target batch size": trial.config.target_batch_size}
            shown.append(sizes | {name: _noise_text(scale) for name, scale in scales.items()})
    note = (
        f"In examples, with the number of measured windows. – where the standard error is "
        f"{LARGEST_ERROR:.0%} of the value or more. {NOISE_CAPTION}"
    )
    return Table("Gradient noise scale", pd.DataFrame(shown), note)


def _noise_text(scale: NoiseScale) -> str:
    """``1,234 [900, 2,000], 39 windows``; an earlier version kept neither the interval nor the number."""
    value = "–" if math.isnan(scale.value) else f"{scale.value:,.0f}"
    if math.isnan(scale.windows):
        return f"{value} [unknown]"
    if not math.isnan(scale.value):
        value += f" [{scale.interval.low:,.0f}, {scale.interval.high:,.0f}]"
    return f"{value}, {scale.windows:.0f} window{'' if scale.windows == 1 else 's'}"


def runs_table(study: StudyData, store: StudyStore) -> Table:
    """A row per trial: its name, hash, learning rate, physical batch size and the address of its run."""
    trials = study.trials.values()
    shown = {
        "trial": [trial.name for trial in trials],
        "trial hash": list(study.trials),
        "learning rate": [f"{trial.config.learning_rate:.3g}" for trial in trials],
        "physical batch size": [trial.physical_batch_size for trial in trials],
        "run": [store.run_url(trial.run_id) for trial in trials],
    }
    note = "" if store.tracking_uri.startswith("http") else "The links work while mlflow ui runs."
    return Table("Runs", pd.DataFrame(shown), note)


def outside_line(study: StudyData, store: StudyStore) -> str:
    """How many finished trials of the study its newest plan leaves out, and where their report is."""
    count, reports = study.outside
    if not count:
        return ""
    addresses = [store.run_url(run_id, REPORT_TAB) for run_id in reports]
    where = f"their report: {', '.join(addresses)}" if addresses else "no report of them was written"
    return f"{counted(count, 'finished trial')} of this study; {where}"


def facts(study: StudyData, invocations: Iterable[InvocationRun], family: Family) -> dict[str, str]:
    """How the study was made, in the order in which it is told, with what was expected before."""
    dataset, config = study.plan.dataset, study.plan.shared
    sizes, trials = dataset.sizes, study.trials.values()
    tags = pd.DataFrame(
        [trial.tags for trial in trials], columns=["hardware", "versions", "gpus_per_trial"]
    )
    seconds = pd.Series([sum(trial.evaluations.get("epoch_seconds", [])) for trial in trials], dtype=float)
    gpus = pd.to_numeric(tags["gpus_per_trial"], errors="coerce").replace(math.inf, 0)
    gpu_hours = (seconds * gpus).sum() / 3600
    minutes = study.plan.forecast.minutes
    found = {
        "Data": f"{dataset.name} ({dataset.source}), digest {dataset.digest[:12]}",
        "Splits": f"{sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test; "
        f"split seed {config.split_seed}{', stratified by label' if _is_stratified(config) else ''}",
        **(dataset.facts or _earlier_facts(dataset)),
        "Training": ", ".join(f"{name} {getattr(config, name)}" for name in _SHARED_SETTINGS),
        "Budget": f"equal {study.plan.budget}; evaluations {config.evaluation_count}",
        "Seeds": _seeds(study),
        "Trials": f"{len(study.trials)}, serving {len(study.cells)} cells",
        "Hardware": "; ".join(tags["hardware"].dropna().unique()),
        "Versions": "; ".join(tags["versions"].dropna().unique()),
        "Wall time": _duration(sum(invocation.seconds for invocation in invocations)),
        "Training and validation, all trials": _beside(
            _duration(seconds.sum()), None if minutes is None else _duration(60 * minutes)
        ),
        "Smallest difference found with a probability of 80 %": _smallest(study, family),
        "GPU hours": f"{gpu_hours:.2f}" if gpu_hours else "none: trained on the CPU",
    }
    return {what: value for what, value in found.items() if value}


def _is_stratified(config: TrialConfig) -> bool:
    return config.splits != OWN and config.group_column is None


def _earlier_facts(dataset: DatasetFacts) -> dict[str, str]:
    """What an earlier version stored of the data."""
    return {
        "Exact duplicates dropped before the split": f"{dataset.duplicates_dropped:,}",
        "Classes": ", ".join(dataset.label_names),
    }


def _seeds(study: StudyData) -> str:
    """``1, 2, 3; of control cells also 4, 5, 6``."""
    points, cells = len(study.cells[list(GRID)].drop_duplicates()), study.cells["seed"].value_counts()
    everywhere = ", ".join(str(seed) for seed in study.axis_values("seed") if cells[seed] == points)
    further = ", ".join(str(seed) for seed in study.axis_values("seed") if cells[seed] < points)
    return f"{everywhere}; of control cells also {further}" if further else everywhere


def _smallest(study: StudyData, family: Family) -> str:
    judged = family.verdicts[family.verdicts["outcome"] != DIVERGED]
    if judged.empty:
        return ""
    found, expected = judged["smallest_detectable_points"], study.plan.forecast.smallest_points
    return _beside(
        "none, however large" if found.isna().any() else f"{span(found.min(), found.max())} points",
        None if expected is None else f"{span(*expected)} points",
    )


def _beside(found: str, expected: str | None) -> str:
    return f"{found} ({expected} expected)" if found and expected else found


def _duration(seconds: float) -> str:
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
