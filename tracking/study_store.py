"""A study in MLflow: one experiment, a parent run per invocation, a child run per trial."""

import getpass
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Param, Run, RunTag, ViewType
from mlflow.utils import get_results_from_paginated_fn

from addresses import bare
from errors import UserError, printable, unknown
from search_spaces import TrialConfig
from search_spaces.plan import DatasetFacts
from search_spaces.space import AXES
from search_spaces.trial_config import epoch_text
from tracking.artifacts import follow_move
from tracking.connection import BackgroundWriter, Connection, retried
from tracking.markdown import markdown_text
from tracking.runs import DESCRIPTION, FORMAT_TAG, SUPERSEDED, InvocationRun, TrackedRun
from tracking.store_address import Say, check_store, nobody, quiet_mlflow
from tracking.trial_run import TrialRun
from tracking.views import CURVES, TRIALS, view_address, view_tags

_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # which pages the UI shows
_SOURCE = {"mlflow.source.name": "tune_main.py", "mlflow.source.type": "LOCAL"}
_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BEST = "best"  # the alias of the study's best model in the registry


@dataclass(frozen=True)
class StudyRuns:
    """The runs of a study that are not superseded, as read at one time."""

    invocations: Sequence[InvocationRun]  # the newest first
    trials: Mapping[str, TrialRun]  # trial hash -> run


class StudyStore:
    """The tracking store of one study; UserError if its address or the study's name cannot work.

    Every method waits while the store does not answer, and raises StoreAwayError after ``patience`` seconds
    of waiting, or StoreFailedError if the store answers and refuses. ``say`` is told of both changes.
    """

    def __init__(
        self,
        tracking_uri: str,
        study: str,
        say: Say = nobody,
        patience: float = 600.0,
    ) -> None:
        check_study_name(study)
        quiet_mlflow()
        check_store(tracking_uri, say)
        self.tracking_uri = tracking_uri
        self.study = study
        self.connection = Connection(tracking_uri, say, patience)
        self.client = self.connection.client
        mlflow.set_tracking_uri(self.client.tracking_uri)  # where mlflow.pyfunc.log_model logs to
        self._experiment = self.connection.repeat(self._find_experiment)

    def background(self) -> BackgroundWriter:
        """A new writer; its writes wait for the store until the writer is stopped."""
        return BackgroundWriter(self.connection)

    @retried
    def read_runs(self, any_format: bool = False) -> StudyRuns:
        """All runs of the study, read at one time; UserError if there is no such study.

        UserError also if a version of this program with another format wrote the study; with
        ``any_format`` its runs are returned all the same, to be superseded.
        """
        if self._experiment is None:
            names = [experiment.name for experiment in self.client.search_experiments()]
            raise unknown(f"study in {self.tracking_uri}", self.study, names)
        runs = self._search()
        invocations = [run for run in runs if run.data.tags.get("role") == "invocation"]
        if not invocations:
            raise UserError(f"study '{self.study}' has no runs yet")
        # of two runs of one trial, the one with more results counts
        trials = sorted((run for run in runs if "trial_hash" in run.data.tags), key=_results)
        if not any_format and not all(
            FORMAT_TAG.items() <= run.data.tags.items() for run in invocations + trials
        ):
            raise UserError(
                f"study '{self.study}' was written by another version of this program: run its command "
                "with --fresh, which trains it anew, or with another --name"
            )
        return StudyRuns(
            [InvocationRun(self.connection, run) for run in invocations],
            {run.data.tags["trial_hash"]: TrialRun(self.connection, run) for run in trials},
        )

    def start_invocation(
        self, title: str, plan: Mapping[str, Any], tags: Mapping[str, str]
    ) -> InvocationRun:
        """Create the parent run, and the experiment if the study has none, and store the plan."""
        identity = uuid4().hex

        def start() -> InvocationRun:
            run = self._only_run("invocation_id", identity, title, {"role": "invocation", **tags})
            invocation = InvocationRun(self.connection, run)
            invocation.log_plan(plan)
            return invocation

        return self.connection.repeat(start)

    @retried
    def save_views(self, parameters: Sequence[str]) -> None:
        """Save the views of the study; trials differ in ``parameters``.

        Views that people have saved stay as they are.
        """
        for key, value in view_tags(parameters).items():
            self.client.set_experiment_tag(self._experiment_id(), key, value)

    @retried
    def open_trial(
        self,
        cells: Sequence[TrialConfig],
        name: str,
        dataset: DatasetFacts,
        parent: InvocationRun,
        tags: Mapping[str, str] | None = None,
    ) -> TrialRun:
        """The run of the trial that serves ``cells``, marked as running; created if the trial has none.

        MLflow shows ``name``.
        """
        config, own = cells[0], tags or {}
        created = {"mlflow.parentRunId": parent.run_id, **own}
        run = self._only_run("trial_hash", config.trial_hash, name, created)
        run_id = run.info.run_id
        params = config.to_dict() | {
            "learning_rate": config.learning_rate,
            "accumulation_steps": config.accumulation_steps,
        }
        new = [Param(key, str(value)) for key, value in params.items() if key not in run.data.params]
        coordinates = [
            {axis: getattr(cell, axis) for axis in AXES} | {"model": cell.model_name} for cell in cells
        ]
        own = {"cells": json.dumps(coordinates), "failure": "", DESCRIPTION: _description(cells), **own}
        self.client.log_batch(run_id, params=new, tags=[RunTag(*tag) for tag in own.items()])
        if not (run.inputs and run.inputs.dataset_inputs):
            self.client.log_inputs(run_id, [_dataset_input(dataset)])
        self.client.update_run(run_id, status="RUNNING")
        return TrialRun(self.connection, self.client.get_run(run_id))

    def supersede(self, runs: Iterable[TrackedRun]) -> None:
        for run in runs:
            run.supersede()

    @retried
    def register_best(self, run: TrialRun) -> str:
        """Register the best-epoch model of ``run`` as the study's best; returns ``models:/<study>@best``.

        A model that is registered already gets no second version.
        """
        source = run.tags["best_model"]
        if not self.client.search_registered_models(f"name = '{self.study}'"):
            self.client.create_registered_model(self.study)
        versions = self.client.search_model_versions(f"name = '{self.study}' AND run_id = '{run.run_id}'")
        version = next((version for version in versions if version.source == source), None)
        if version is None:
            epoch, val_acc = run.metrics["best_epoch"], run.metrics["best_val_acc"]
            version = self.client.create_model_version(
                self.study,
                source,
                run.run_id,
                description=markdown_text(f"{run.name}, epoch {epoch_text(epoch)}: val_acc {val_acc:.4f}"),
                model_id=source.removeprefix("models:/"),
            )
        self.client.set_registered_model_alias(self.study, _BEST, version.version)
        return f"models:/{self.study}@{_BEST}"

    def run_url(self, run_id: str, tab: str = "") -> str:
        """The address of a run for a browser, on the tracking server or on a local ``mlflow ui``."""
        page = f"{self._server}/#/experiments/{self._experiment_id()}/runs/{run_id}{tab}"
        return f"{page}?workflowType=machine_learning"

    def pages(self) -> dict[str, str]:
        """How to see the study in a browser: the server to open or start, and both views' addresses."""
        uri = self.tracking_uri
        start = {"MLflow": bare(uri) if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"}
        views = {"  trials": TRIALS, "  curves": CURVES}
        return start | {
            label: view_address(self._server, self._experiment_id(), key) for label, key in views.items()
        }

    @property
    def _server(self) -> str:
        """The address of MLflow's page; a browser may reach the server under another one than we do."""
        local = "http://127.0.0.1:5000"
        server = self.tracking_uri if self.tracking_uri.startswith("http") else local
        return bare(os.environ.get("BATCHSCALE_MLFLOW_PAGE", server)).rstrip("/")

    def _find_experiment(self) -> Experiment | None:
        experiment = self.client.get_experiment_by_name(self.study)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"study '{self.study}' was deleted in MLflow: choose another --name, or restore it "
                f"with `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
            )
        if experiment is not None and (place := follow_move(self.tracking_uri, experiment)):
            where = printable(str(place))
            self.connection.say(f"the study's artifacts were moved: they are in {where} now")
            return self.client.get_experiment(experiment.experiment_id)
        return experiment

    def _only_run(self, tag: str, value: str, name: str, tags: Mapping[str, str]) -> Run:
        """The one run with this value of the tag; created if there is none."""
        found = sorted(self._search(f"tags.{tag} = '{value}'"), key=_results)
        for run in found[:-1]:
            if not _results(run):  # a call was repeated whose first attempt succeeded after all
                self.client.delete_run(run.info.run_id)
        if found:
            return found[-1]
        tags = {tag: value, "mlflow.user": _user(), **_SOURCE, **FORMAT_TAG, **tags}
        return self.client.create_run(self._experiment_id(), tags=tags, run_name=name)

    def _experiment_id(self) -> str:
        """The id of the study's experiment, which is created if there is none."""
        self._experiment = self._experiment or self._find_experiment()
        if self._experiment is None:
            self.client.create_experiment(self.study, tags=_MODEL_TRAINING)
            self._experiment = self._find_experiment()
        assert self._experiment is not None
        return printable(str(self._experiment.experiment_id))

    def _search(self, query: str = "") -> list[Run]:
        """The study's runs that match, the newest first, without superseded ones."""
        places, order = [self._experiment_id()], ["attributes.start_time DESC"]

        def page(size: int, token: str | None) -> Sequence[Run]:
            return self.client.search_runs(places, query, ViewType.ACTIVE_ONLY, size, order, token)

        runs = get_results_from_paginated_fn(page, max_results_per_page=1000)
        return [run for run in runs if SUPERSEDED not in run.data.tags]


def check_study_name(study: str) -> None:
    """Raise UserError for a name that some file system does not take for a folder."""
    if not _STUDY_NAME.fullmatch(study):
        raise UserError(
            f"study name '{study}' must start with a letter or digit and contain only letters, "
            "digits, '.', '_' and '-'"
        )


def _results(run: Run) -> int:
    return len(run.data.metrics)


def _description(cells: Sequence[TrialConfig]) -> str:
    config, rules = cells[0], dict.fromkeys(cell.scaling_rule for cell in cells)
    return markdown_text(
        f"{config.model_name}, {config.target_batch_size} examples per optimizer step, learning rate "
        f"{config.learning_rate:.3g} (scaling rule {', '.join(rules)}), seed {config.seed}"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container whose user has no name
        return "unknown"


def _dataset_input(facts: DatasetFacts) -> DatasetInput:
    dataset = Dataset(
        name=facts.name,
        digest=facts.digest,
        source_type="local" if Path(facts.source).exists() else "hugging_face",
        source=json.dumps({"uri": facts.source}),
        schema=json.dumps({"labels": facts.label_names}),
        profile=json.dumps({**facts.sizes, "duplicates_dropped": facts.duplicates_dropped}),
    )
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])
