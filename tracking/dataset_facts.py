"""The data set of a trial, as MLflow shows it."""

import json
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag


@dataclass(frozen=True)
class DatasetFacts:
    """The data set, as MLflow shows it beside a run."""

    name: str
    source: str
    digest: str
    sizes: dict[str, int]
    label_names: tuple[str, ...]
    duplicates_dropped: int


def dataset_input(facts: DatasetFacts) -> DatasetInput:
    """What MLflow stores beside a run."""
    profile = {**facts.sizes, "duplicates_dropped": facts.duplicates_dropped}
    dataset = Dataset(
        name=facts.name,
        digest=facts.digest,
        source_type="local" if Path(facts.source).exists() else "hugging_face",
        source=json.dumps({"uri": facts.source}),
        schema=json.dumps({"labels": facts.label_names}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])
