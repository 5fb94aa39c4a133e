"""How a study was made: data, splits, versions, hardware, time, and where each trial's run is."""

import math
from collections.abc import Iterable
from typing import Any

from reports.content import TableContent
from reports.stored_plan import SHARED_SETTINGS
from reports.study_data import StudyData
from tracking import StudyStore


def facts(study: StudyData, store: StudyStore) -> list[tuple[str, str]]:
    """(what, value) pairs, in the order in which they are told."""
    dataset = study.plan["dataset"]
    sizes, config = dataset["sizes"], study.plan["cells"][0]["config"]
    found = [
        ("Data", f"{dataset['name']} ({dataset['source']}), digest {dataset['digest'][:12]}"),
        (
            "Splits",
            f"{sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test; "
            f"split seed {config['split_seed']}, stratified by label",
        ),
        ("Exact duplicates dropped before the split", f"{dataset['duplicates_dropped']:,}"),
        ("Classes", ", ".join(map(str, dataset["label_names"]))),
        ("Training", ", ".join(f"{name} {config[name]}" for name in SHARED_SETTINGS)),
        ("Seeds", ", ".join(map(str, study.axis_values("seed")))),
        ("Trials", f"{len(study.trials)}, serving {len(study.cells)} cells"),
        ("Hardware", _distinct(study, "hardware")),
        ("Versions", _distinct(study, "versions")),
        ("Wall time", _duration(store.wall_seconds())),
        ("Training and validation, all trials", _duration(sum(_seconds(study).values()))),
        ("GPU hours", _gpu_hours(study)),
    ]
    return [(what, value) for what, value in found if value]


def run_table(study: StudyData, store: StudyStore) -> TableContent:
    """A row per trial: its name, hash, learning rate, physical batch size and the address of its run."""
    columns = ["trial", "trial hash", "learning rate", "physical batch size", "run"]
    rows = [
        (
            trial.name,
            trial.trial_hash,
            f"{trial.learning_rate:.3g}",
            trial.physical_batch_size,
            store.run_url(trial.run_id),
        )
        for trial in study.trials.values()
    ]
    note = "" if store.tracking_uri.startswith("http") else "The links work while `mlflow ui` runs."
    return TableContent("Runs", columns, rows, note)


def _distinct(study: StudyData, tag: str) -> str:
    return "; ".join(_unique(trial.tags.get(tag, "") for trial in study.trials.values()))


def _unique(values: Iterable[Any]) -> list[str]:
    return [str(value) for value in dict.fromkeys(values) if value]


def _seconds(study: StudyData) -> dict[str, float]:
    return {
        trial_hash: float(trial.epochs["epoch_seconds"].sum())
        for trial_hash, trial in study.trials.items()
        if "epoch_seconds" in trial.epochs
    }


def _gpu_hours(study: StudyData) -> str:
    used = {
        trial_hash: seconds * _number(study.trials[trial_hash].tags.get("gpus_per_trial", "0"))
        for trial_hash, seconds in _seconds(study).items()
    }
    hours = sum(used.values()) / 3600
    return f"{hours:.2f}" if hours else "none: trained on the CPU"


def _number(text: str) -> float:
    """A tag's number; 0 where somebody wrote something else there."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _duration(seconds: float) -> str:
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
