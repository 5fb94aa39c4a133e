"""The runs of a study in MLflow: what all have in common, and the parent run of an invocation."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Metric, Run, RunTag
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH
from pandas.api.types import is_integer_dtype, is_string_dtype

from errors import UserError, all_printable, first_line, printable
from tracking.artifacts import download
from tracking.connection import Connection, retried

FORMAT = 1  # of a study in MLflow; add one if the program cannot read the studies of the format before
FORMAT_TAG = {"format": str(FORMAT)}  # of every run
SUPERSEDED = "superseded"  # the tag of runs that do not count
DESCRIPTION = "mlflow.note.content"  # the tag of the Markdown that MLflow's page shows above a run
PLAN = "plan.json"
_TEST_SPLIT = "test_split.parquet"
_TEST_SPLIT_COLUMNS = {"row_id": is_integer_dtype, "label": is_integer_dtype, "text": is_string_dtype}
_BATCH = 1000  # metrics that MLflow takes in one call
_GENERATION = "generation."  # how the tag of each generation of a search begins


class TrackedRun:
    """A handle on a run: status, metrics and tags as read, and as written through this handle since.

    Other programs write to a store as well, so every text that is read here to be shown is printable.
    """

    def __init__(self, connection: Connection, run: Run) -> None:
        self.connection = connection
        self.client = connection.client
        self.run_id: str = printable(run.info.run_id)
        self.name: str = printable(run.info.run_name)
        self.status: str = run.info.status
        self.metrics: dict[str, float] = dict(run.data.metrics)
        self.tags: dict[str, str] = all_printable(dict(run.data.tags))
        self._run = run

    @property
    def is_running(self) -> bool:
        return self.status == "RUNNING"

    @property
    def started(self) -> int:
        """In ms since 1970."""
        return self._run.info.start_time

    @retried
    def supersede(self) -> None:
        """Mark the run as one that does not count in its study; it stays in MLflow."""
        if self.is_running:  # a run that has ended keeps the time of its end
            self._end("KILLED")
        self._tag({SUPERSEDED: "true"})  # last, because no reading finds the run after this

    @retried
    def end_killed(self) -> None:
        """End a run that a killed process left running, at its start: the true end is unknown."""
        self._end("KILLED", self._run.info.start_time)

    def _end(self, status: str, end_time: int | None = None) -> None:
        self.client.set_terminated(self.run_id, status, end_time)
        self.status = status

    def _tag(self, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self.tags |= tags

    def _log(self, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(self.run_id, metrics[start : start + _BATCH])
        self.metrics |= {metric.key: metric.value for metric in metrics}

    def _log_table(self, name: str, columns: Mapping[str, Any]) -> None:
        """Store columns of equal length as a Parquet file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            pd.DataFrame(columns).to_parquet(path, index=False)
            self.client.log_artifact(self.run_id, str(path))

    def _read_table(self, name: str, columns: Mapping[str, Callable[[pd.Series], bool]]) -> pd.DataFrame:
        """The table in a Parquet file; reading runs nothing in it. UserError for other columns or types."""
        table = self._read(name, pd.read_parquet)
        for column, is_of_type in columns.items():
            if column not in table or not is_of_type(table[column]):
                raise UserError(
                    f"{name} of {self.name} is not what this program stores in MLflow: see '{column}'"
                )
        return table

    def _read(self, name: str, parse: Callable[[Path], Any]) -> Any:
        """The parsed content of a file of the run; UserError if the file is missing or damaged."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = download(self.client, self._run.info.artifact_uri, name, Path(folder))
                content = parse(path) if path else None
        except Exception as error:  # MLflow, pyarrow and the file system each have their own types
            raise UserError(f"{name} of {self.name} cannot be read: {first_line(error)}") from error
        if content is None:
            raise UserError(f"{self.name} holds no {name}: run the study's command again, which stores it")
        return content


class InvocationRun(TrackedRun):
    """The parent run of one invocation of a study."""

    @property
    def seconds(self) -> float:
        """How long the invocation took; 0 if the run had no end when it was read."""
        info = self._run.info
        return (info.end_time - info.start_time) / 1000 if info.end_time else 0.0

    @property
    def was_reported(self) -> bool:
        """Whether a report of the study was written while this was the newest invocation."""
        return DESCRIPTION in self.tags

    @property
    def process(self) -> str:
        return self.tags.get("process", "another process")

    @property
    def storage_id(self) -> str:
        """The id of the storage path whose lock the invocation holds."""
        return self.tags.get("storage_id", "")

    @retried
    def plan(self) -> dict[str, Any]:
        """The plan that the invocation carried out; UserError if it cannot be read."""
        plan = self._read(PLAN, lambda path: all_printable(json.loads(path.read_text())))
        if not isinstance(plan, dict):
            raise UserError(f"{PLAN} of {self.name} is not a plan: give the --name of a study")
        return plan

    @property
    def generations(self) -> dict[int, list[dict[str, Any]]]:
        """The generations of a search that this invocation has proposed; UserError for other content."""
        found = {key: value for key, value in self.tags.items() if key.startswith(_GENERATION)}
        try:
            return {int(key.removeprefix(_GENERATION)): _dictionaries(text) for key, text in found.items()}
        except ValueError as error:
            raise UserError(f"{self.name} in MLflow holds generations that no search has stored") from error

    @retried
    def log_generation(self, number: int, proposals: Sequence[Mapping[str, Any]]) -> None:
        """Store a generation of a search, the parameters of each trial, all in one call."""
        text = json.dumps(proposals)
        if len(text) > MAX_TAG_VAL_LENGTH:
            raise UserError(f"{len(proposals)} trials are too many for a generation: give fewer")
        self._tag({f"{_GENERATION}{number:04d}": text})

    @retried
    def log_plan(self, plan: Mapping[str, Any]) -> None:
        self.client.log_dict(self.run_id, dict(plan), PLAN)

    @retried
    def describe(self, markdown: str) -> None:
        """Set the text on MLflow's page of the run: what the study asks and has found."""
        self._tag({DESCRIPTION: markdown})

    @retried
    def log_test_split(self, row_ids: np.ndarray, labels: np.ndarray, texts: Sequence[str]) -> None:
        """Store the test split, on which trials are tested: (n,) each, in the split's own order."""
        self._log_table(_TEST_SPLIT, {"row_id": row_ids, "label": labels, "text": list(texts)})

    @retried
    def test_split(self) -> pd.DataFrame:
        """The test split, columns ``row_id``, ``label``, ``text``; UserError if it cannot be read.

        Texts are exactly those that models were tested on; whoever shows one makes it printable.
        """
        return self._read_table(_TEST_SPLIT, _TEST_SPLIT_COLUMNS)

    @retried
    def log_folder(self, folder: Path, under: str | None = None) -> None:
        self.client.log_artifacts(self.run_id, str(folder), under)

    @retried
    def download_folder(self, name: str, destination: Path) -> Path | None:
        """Download the run's folder ``name`` into ``destination``; None if there is none."""
        return download(self.client, self._run.info.artifact_uri, name, destination)

    @retried
    def finish(self, status: str) -> None:
        self._end(status)

    @retried
    def discard(self) -> None:
        self.client.delete_run(self.run_id)


def _dictionaries(text: str) -> list[dict[str, Any]]:
    found = all_printable(json.loads(text))
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ValueError("not a list of dictionaries")
    return found
