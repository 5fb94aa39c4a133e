"""A study in MLflow: one experiment, a parent run per invocation, a child run per trial."""

import getpass
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlparse

import mlflow
import numpy as np
import pandas as pd
import requests
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from search_spaces import TrialConfig, UserError, unknown
from tracking.stored_tables import read_table, texts, whole_numbers
from tracking.trial_run import DatasetFacts, TrialRun, run_name

_PLAN = "plan.json"
_TEST_SPLIT = "test_split.parquet"
_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # which pages the UI shows
_SERVER_TIMEOUT = 10  # seconds
_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class InvocationRun:
    """The parent run of one invocation of a study."""

    client: MlflowClient
    run_id: str

    def log_folder(self, folder: Path, under: str | None = None) -> None:
        """Upload the files of ``folder``, to the run's top or into its folder ``under``."""
        self.client.log_artifacts(self.run_id, str(folder), under)

    def download_folder(self, name: str, destination: Path) -> Path | None:
        """Download the run's folder ``name`` into ``destination``; None where there is none."""
        if not self._has(name):
            return None
        return Path(self.client.download_artifacts(self.run_id, name, str(destination)))

    def log_test_split(self, row_ids: np.ndarray, labels: np.ndarray, texts: Sequence[str]) -> None:
        """Store the test split: what trials were tested on, (n,) each, in the split's own order."""
        frame = pd.DataFrame({"row_id": row_ids, "label": labels, "text": list(texts)})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / _TEST_SPLIT
            frame.to_parquet(path, index=False)
            self.client.log_artifact(self.run_id, str(path))

    def test_split(self) -> pd.DataFrame:
        """The test split: columns ``row_id``, ``label``, ``text``; a UserError where it is not stored."""
        if not self._has(_TEST_SPLIT):
            raise UserError(
                f"run {self.run_id} holds no test split: run the study's command again, which stores it"
            )
        download = partial(self.client.download_artifacts, self.run_id, _TEST_SPLIT)
        checks = {"row_id": whole_numbers, "label": whole_numbers, "text": texts}
        with tempfile.TemporaryDirectory() as folder:
            return read_table(download, folder, f"the test split of run {self.run_id}", checks)

    def _has(self, name: str) -> bool:
        return any(file.path == name for file in self.client.list_artifacts(self.run_id))

    def plan(self) -> dict[str, Any]:
        """The plan that the invocation carried out."""
        uri = f"runs:/{self.run_id}/{_PLAN}"
        try:
            return mlflow.artifacts.load_dict(uri)
        except (MlflowException, OSError, ValueError, RecursionError) as error:
            raise UserError(f"the plan of run {self.run_id} cannot be read: {_line(error)}") from error

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


class StudyStore:
    """Where a study's runs are kept."""

    def __init__(self, tracking_uri: str, study: str) -> None:
        check_study_name(study)
        quiet_mlflow()
        self.tracking_uri = tracking_uri
        self.study = study
        _check_answers(tracking_uri)
        mlflow.set_tracking_uri(tracking_uri)
        self.client = MlflowClient(tracking_uri)
        self._experiment = self._find_experiment()

    def trial_runs(self) -> dict[str, TrialRun]:
        """Every trial of the study that has a run: trial hash -> run."""
        runs = self._search("tags.trial_hash LIKE '%'")  # the newest first, and it must win
        return {run.data.tags["trial_hash"]: TrialRun(self.client, run) for run in reversed(runs)}

    def latest_invocation(self) -> InvocationRun:
        """The newest parent run; a UserError where the study does not exist."""
        return self.invocations()[0]

    def invocations(self) -> list[InvocationRun]:
        """All parent runs, at least one, the newest first; a UserError where there is none."""
        if self._experiment is None:
            names = [e.name for e in self.client.search_experiments()]
            raise unknown(f"study in {self.tracking_uri}", self.study, names)
        runs = self._search("tags.role = 'invocation'")
        if not runs:
            raise UserError(f"study '{self.study}' has no runs yet")
        return [InvocationRun(self.client, run.info.run_id) for run in runs]

    def wall_seconds(self) -> float:
        """How long the study's invocations took, one after the other; those killed with -9 do not count."""
        runs = self._search("tags.role = 'invocation'")
        return sum((run.info.end_time - run.info.start_time) / 1000 for run in runs if run.info.end_time)

    def run_url(self, run_id: str) -> str:
        """Where a browser finds the run: on the tracking server, or on a local ``mlflow ui``."""
        server = self.tracking_uri if self.tracking_uri.startswith("http") else "http://127.0.0.1:5000"
        experiment = self._experiment.experiment_id if self._experiment else ""
        return f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"

    def start_invocation(self, title: str, plan: dict[str, Any], tags: dict[str, str]) -> InvocationRun:
        """Create the parent run (and the experiment, the first time) and store the plan."""
        run = self._create_run(title, {"role": "invocation", **tags})
        self.client.log_dict(run.info.run_id, plan, _PLAN)
        return InvocationRun(self.client, run.info.run_id)

    def open_trial(
        self,
        cells: Sequence[TrialConfig],
        seeds: int,
        dataset: DatasetFacts,
        parent: InvocationRun,
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> TrialRun:
        """The run of the trial that serves ``cells``: the one it already has, or a new one."""
        trial_hash = cells[0].trial_hash
        found = self._search(f"tags.trial_hash = '{trial_hash}'")
        name = run_name(cells, seeds)
        identity = {"trial_hash": trial_hash, MLFLOW_PARENT_RUN_ID: parent.run_id}
        trial_run = TrialRun(self.client, found[0] if found else self._create_run(name, identity))
        trial_run.describe(cells, dataset, parent.run_id, tags)
        return trial_run

    def _find_experiment(self) -> Experiment | None:
        experiment = self.client.get_experiment_by_name(self.study)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"study '{self.study}' was deleted in MLflow: choose another --name, or restore it "
                f"with `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
            )
        return experiment

    def _create_run(self, name: str, tags: dict[str, str]) -> Run:
        if self._experiment is None:
            experiment_id = self.client.create_experiment(self.study, tags=_MODEL_TRAINING)
            self._experiment = self.client.get_experiment(experiment_id)
        # models are filed under the process's current experiment, not under that of their run
        mlflow.set_experiment(experiment_id=self._experiment.experiment_id)
        standard = {
            MLFLOW_RUN_NAME: name,
            MLFLOW_USER: getpass.getuser(),
            MLFLOW_SOURCE_NAME: "tune_main.py",
            MLFLOW_SOURCE_TYPE: "LOCAL",
        }
        return self.client.create_run(self._experiment.experiment_id, tags=standard | tags)

    def _search(self, query: str) -> list[Run]:
        """Runs of the study that match, the newest first."""
        if self._experiment is None:
            return []
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self._experiment.experiment_id],
                query,
                ViewType.ACTIVE_ONLY,
                1000,
                ["attributes.start_time DESC"],
                token,
            )
            runs += page
            if not (token := page.token):
                return runs


def check_study_name(study: str) -> None:
    """Raise UserError for a name that could not be a folder everywhere."""
    if not _STUDY_NAME.fullmatch(study):
        raise UserError(
            f"study name '{study}' must start with a letter or digit and contain only letters, "
            "digits, '.', '_' and '-'"
        )


def check_store_exists(tracking_uri: str) -> None:
    """Raise UserError for an SQLite file that is not there; opening it would create an empty one."""
    path = tracking_uri.removeprefix("sqlite:///")
    if path != tracking_uri and not os.path.isfile(path):  # noqa: PTH113 - Path raises for long names
        raise UserError(f"there is no {path} here: run this where the study ran, or give --tracking-uri")


def quiet_mlflow() -> None:
    """Keep MLflow's notices away from the user's table; errors still raise."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"mlflow\..*")


def _check_answers(tracking_uri: str) -> None:
    try:
        scheme = urlparse(tracking_uri).scheme.split("+")[0]
        if scheme in {"http", "https"}:
            requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=_SERVER_TIMEOUT).raise_for_status()
        elif scheme not in {"sqlite", "postgresql", "mysql", "mssql"}:
            raise UserError(
                f"'{tracking_uri}' is not a tracking URI that works here: "
                "use sqlite:///FILE.db or http://HOST:PORT"
            )
        else:
            MlflowClient(tracking_uri).search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:  # requests, SQLAlchemy and MLflow each have their own
        raise UserError(
            f"the tracking store {tracking_uri} does not answer ({_line(error)}): "
            "start it, or give another --tracking-uri"
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
