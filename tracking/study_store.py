"""A study in MLflow: one experiment, a parent run per invocation, a child run per trial."""

import getpass
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from errors import UserError, first_line, unknown
from search_spaces import TrialConfig, trial_name
from tracking.artifacts import download, upload
from tracking.dataset_facts import DatasetFacts
from tracking.heartbeat import EVERY, HEARTBEAT, PATIENCE, beating, heartbeat
from tracking.store_place import answers, check_place, quiet_mlflow
from tracking.stored_files import store_file
from tracking.stored_tables import read_table, texts, whole_numbers
from tracking.trial_run import SUPERSEDED, TrialRun, leave_behind

STORAGE_ID, PROCESS = "storage_id", "process"  # tags of an invocation: where its lock is, and who it is
_PLAN = "plan.json"
_TEST_SPLIT = "test_split.parquet"
_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # which pages the UI shows
_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class InvocationRun:
    """The parent run of one invocation of a study."""

    client: MlflowClient
    run: Run

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self.run.info.run_id

    @property
    def seconds(self) -> float:
        """How long it took; 0 where nobody noted its end."""
        info = self.run.info
        return (info.end_time - info.start_time) / 1000 if info.end_time else 0.0

    def log_folder(self, folder: Path, under: str | None = None) -> None:
        """Upload the files of ``folder``, to the run's top or into its folder ``under``."""
        upload(self.client, self.run_id, folder, under)

    def download_folder(self, name: str, destination: Path) -> Path | None:
        """Download the run's folder ``name`` into ``destination``; None where there is none."""
        if not self._has(name):
            return None
        return download(self.client, self.run_id, name, destination)

    def log_test_split(self, row_ids: np.ndarray, labels: np.ndarray, texts: Sequence[str]) -> None:
        """Store the test split: what trials were tested on, (n,) each, in the split's own order."""
        frame = pd.DataFrame({"row_id": row_ids, "label": labels, "text": list(texts)})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / _TEST_SPLIT
            frame.to_parquet(path, index=False)
            store_file(self.client, self.run_id, path)

    def test_split(self) -> pd.DataFrame:
        """The test split: columns ``row_id``, ``label``, ``text``; a UserError where it is not stored."""
        if not self._has(_TEST_SPLIT):
            raise UserError(
                f"run {self.run_id} holds no test split: run the study's command again, which stores it"
            )
        fetch = partial(download, self.client, self.run_id, _TEST_SPLIT)
        checks = {"row_id": whole_numbers, "label": whole_numbers, "text": texts}
        return read_table(fetch, f"the test split of run {self.run_id}", checks)

    def _has(self, name: str) -> bool:
        return any(file.path == name for file in self.client.list_artifacts(self.run_id))

    def plan(self) -> dict[str, Any]:
        """The plan that the invocation carried out."""
        uri = f"runs:/{self.run_id}/{_PLAN}"
        try:
            return mlflow.artifacts.load_dict(uri)
        except (MlflowException, OSError, ValueError, RecursionError) as error:
            raise UserError(f"the plan of run {self.run_id} cannot be read: {first_line(error)}") from error

    def heartbeat(self, lost: Callable[[], None], every: float = EVERY) -> AbstractContextManager[None]:
        """Let other machines see that the invocation is at work, until the block ends.

        Calls ``lost``, in another thread, where one of them took it for dead and has taken over.
        """
        return heartbeat(self.client, self.run_id, lost, every)

    def leave_behind(self) -> None:
        """Take back an invocation that is to do nothing."""
        leave_behind(self.client, self.run_id)

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


@dataclass(frozen=True)
class StudyRuns:
    """The runs of a study that count, as of one reading."""

    invocations: Sequence[InvocationRun]  # the newest first
    trials: Mapping[str, TrialRun]  # trial hash -> run


class StudyStore:
    """Where a study's runs are kept."""

    def __init__(self, tracking_uri: str, study: str) -> None:
        check_study_name(study)
        quiet_mlflow()
        self.tracking_uri = tracking_uri
        self.study = study
        check_place(tracking_uri)
        mlflow.set_tracking_uri(tracking_uri)
        self.client = MlflowClient(tracking_uri)
        self._experiment = self._find_experiment()

    def answers(self) -> bool:
        """Whether the store is there now."""
        return answers(self.tracking_uri)

    def read_runs(self) -> StudyRuns:
        """All runs of a study; a UserError where there is no such study."""
        if self._experiment is None:
            names = [e.name for e in self.client.search_experiments()]
            raise unknown(f"study in {self.tracking_uri}", self.study, names)
        runs = self._search()
        invocations = [
            InvocationRun(self.client, run) for run in runs if run.data.tags.get("role") == "invocation"
        ]
        if not invocations:
            raise UserError(f"study '{self.study}' has no runs yet")
        trials = sorted((run for run in runs if "trial_hash" in run.data.tags), key=_results)
        return StudyRuns(
            invocations, {run.data.tags["trial_hash"]: TrialRun(self.client, run) for run in trials}
        )

    def trial_runs(self) -> dict[str, TrialRun]:
        """Every trial of the study that has a run: trial hash -> run."""
        runs = sorted(self._search("tags.trial_hash LIKE '%'"), key=_results)  # the fullest wins
        return {run.data.tags["trial_hash"]: TrialRun(self.client, run) for run in runs}

    def start_anew(self, invocation: InvocationRun) -> None:
        """Leave behind what was before the invocation: it stays in MLflow, no longer as the study's."""
        for run in self._search():
            if run.info.run_id != invocation.run_id:
                leave_behind(self.client, run.info.run_id)

    def check_alone(
        self, invocation: InvocationRun, say: Callable[[str], None], patience: float = PATIENCE
    ) -> None:
        """Raise UserError where the study is being run with another storage, which has a lock of its own.

        Two that start at once both see the other, because each is in the store before it looks. An
        invocation with the storage of this one cannot be at work, whatever its status says.
        """
        storage = self.client.get_run(invocation.run_id).data.tags.get(STORAGE_ID)
        others = {
            run.info.run_id: run.data.tags.get(PROCESS, "another process")
            for run in self._search("attributes.status = 'RUNNING' AND tags.role = 'invocation'")
            if run.info.run_id != invocation.run_id
            and HEARTBEAT in run.data.tags  # older studies have none
            and run.data.tags.get(STORAGE_ID) != storage
        }
        if not others:
            return
        say(
            f"this study was run with another --storage-path by {', '.join(others.values())}: waiting "
            f"up to {patience:g} s to see whether it still is"
        )
        busy = beating(self.client, list(others), patience)
        if busy is not None:
            raise UserError(
                f"study '{self.study}' is being run by {others[busy]} with another --storage-path: "
                "wait until it ends, or give this one another --name"
            )

    def end_killed_invocations(self, invocation: InvocationRun) -> None:
        """End what invocations that were killed with -9 left running; only this one is at work."""
        for run in self._search("attributes.status = 'RUNNING'"):
            if run.info.run_id != invocation.run_id:
                # nobody knows when it ended; it must not seem to have trained until now
                self.client.set_terminated(run.info.run_id, "KILLED", run.info.start_time)

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
        return [InvocationRun(self.client, run) for run in runs]

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
        run = self._create_run(title, {"role": "invocation", HEARTBEAT: "0", **tags})
        self.client.log_dict(run.info.run_id, plan, _PLAN)
        return InvocationRun(self.client, run)

    def open_trial(
        self,
        cells: Sequence[TrialConfig],
        seeds: int,
        dataset: DatasetFacts,
        parent: InvocationRun,
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> TrialRun:
        """The run of the trial that serves ``cells``: the one it already has, or a new one."""
        identity = {"trial_hash": cells[0].trial_hash, MLFLOW_PARENT_RUN_ID: parent.run_id}
        run = self._only_run(cells[0].trial_hash) or self._create_run(trial_name(cells, seeds), identity)
        trial_run = TrialRun(self.client, run)
        trial_run.describe(cells, dataset, parent.run_id, tags)
        return trial_run

    def _only_run(self, trial_hash: str) -> Run | None:
        """The run of a trial, if it has one.

        A server that answers too late may have made a second one; whichever has no results goes.
        """
        found = sorted(self._search(f"tags.trial_hash = '{trial_hash}'"), key=_results)
        for run in found[:-1]:
            if not _results(run):
                self.client.delete_run(run.info.run_id)
        return found[-1] if found else None

    def _find_experiment(self) -> Experiment | None:
        experiment = self.client.get_experiment_by_name(self.study)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"study '{self.study}' was deleted in MLflow: choose another --name, or restore it "
                f"with `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
            )
        return experiment

    def _create_experiment(self) -> Experiment:
        """The study's experiment; another invocation, or a try whose answer was lost, may have made it."""
        try:
            self.client.create_experiment(self.study, tags=_MODEL_TRAINING)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        experiment = self._find_experiment()
        assert experiment is not None
        return experiment

    def _create_run(self, name: str, tags: dict[str, str]) -> Run:
        experiment = self._experiment = self._experiment or self._create_experiment()
        standard = {
            MLFLOW_RUN_NAME: name,
            MLFLOW_USER: getpass.getuser(),
            MLFLOW_SOURCE_NAME: "tune_main.py",
            MLFLOW_SOURCE_TYPE: "LOCAL",
        }
        return self.client.create_run(experiment.experiment_id, tags=standard | tags)

    def _search(self, query: str = "") -> list[Run]:
        """Runs of the study that match, the newest first, without those that were left behind."""
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
            runs += [run for run in page if SUPERSEDED not in run.data.tags]
            if not (token := page.token):
                return runs


def _results(run: Run) -> int:
    return len(run.data.metrics)


def check_study_name(study: str) -> None:
    """Raise UserError for a name that could not be a folder everywhere."""
    if not _STUDY_NAME.fullmatch(study):
        raise UserError(
            f"study name '{study}' must start with a letter or digit and contain only letters, "
            "digits, '.', '_' and '-'"
        )
