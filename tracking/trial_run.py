"""The MLflow run of one trial: its params, metrics, models and predictions."""

import json
import math
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from errors import UserError
from search_spaces import TrialConfig
from tracking.artifacts import download
from tracking.dataset_facts import DatasetFacts, dataset_input
from tracking.model_files import ModelFiles, UploadedModel, delete_model, download_model, upload_model
from tracking.stored_files import store_file
from tracking.stored_tables import fractions, read_table, whole_numbers

EPOCH_METRICS = (
    "train_loss",
    "train_acc",
    "examples_per_second",
    "epoch_seconds",
    "val_loss",
    "val_acc",
)
STEP_METRICS = ("train_loss_per_step", "train_acc_per_step", "learning_rate_per_step")
NOISE_METRICS = ("noise_scale", "gradient_variance", "gradient_norm_squared")  # where measured
MEMORY_METRICS = ("physical_batch_size",)  # absent from epochs trained before it was stored
TEST_METRICS = ("test_loss", "test_acc", "last_test_loss", "last_test_acc")
_PREDICTIONS = {"best": "test_predictions.parquet", "last": "last_test_predictions.parquet"}
_PREDICTION = {
    "row_id": whole_numbers,
    "label": whole_numbers,
    "prediction": whole_numbers,
    "probability": fractions,
}
_MODEL_URI = re.compile(r"models:/m-[0-9a-zA-Z]+")  # not file:, not http:, not somebody else's name
SUPERSEDED = "superseded"  # the tag of runs that are no longer their study's
_BATCH = 1000  # what the tracking API takes in one call


class OtherTrainingError(RuntimeError):
    """A trial was trained again, without its checkpoint, to other numbers than its run holds."""


class TestResult(Protocol):
    """What a test of one model yields; arrays follow the rows of the test split."""

    loss: float
    accuracy: float
    predictions: np.ndarray
    probabilities: np.ndarray


@dataclass
class TrialRun:
    """A handle on the one MLflow run that a trial has, ever."""

    client: MlflowClient
    run: Run
    _epochs_logged: dict[int, float] = field(default_factory=dict)  # epoch -> val_loss

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self.run.info.run_id

    @property
    def name(self) -> str:
        """``modernbert-base · 256 · sqrt``."""
        return self.run.info.run_name

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of every metric, as of when the handle was made."""
        return self.run.data.metrics

    @property
    def tags(self) -> dict[str, str]:
        """The tags, as of when the handle was made."""
        return self.run.data.tags

    @property
    def is_trained(self) -> bool:
        """Whether its models are in MLflow, so that only the test may be missing."""
        return self.tags.get("trained") == "true"

    @property
    def is_tested(self) -> bool:
        """Whether nothing is left to do; its end is written last."""
        is_finished = self.run.info.status == "FINISHED"
        return is_finished and self.is_trained and all(name in self.metrics for name in TEST_METRICS)

    @property
    def assets_digest(self) -> str:
        """Of the pretrained weights and tokens it is trained from; empty in older studies."""
        return self.tags.get("assets_digest", "")

    def leave_behind(self) -> None:
        """Make room for a new run of the trial."""
        leave_behind(self.client, self.run_id)

    def describe(
        self,
        cells: Sequence[TrialConfig],
        dataset: DatasetFacts,
        parent: str,
        extra_tags: Mapping[str, str],
    ) -> None:
        """Write params, tags and the data set; safe to repeat."""
        config = cells[0]
        derived = {
            "learning_rate": config.learning_rate,
            "accumulation_steps": config.accumulation_steps,
        }
        known = self.run.data.params
        params = [
            Param(key, str(value))
            for key, value in (config.to_dict() | derived).items()
            if key not in known
        ]
        tags = {"cells": json.dumps([_cell(c) for c in cells]), "failure": "", **extra_tags}
        if MLFLOW_PARENT_RUN_ID not in self.tags:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        self.client.log_batch(self.run_id, params=params, tags=[RunTag(k, v) for k, v in tags.items()])
        if not (self.run.inputs and self.run.inputs.dataset_inputs):
            self.client.log_inputs(self.run_id, [dataset_input(dataset)])
        self.client.update_run(self.run_id, status="RUNNING")
        history = {
            name: self.client.get_metric_history(self.run_id, name) for name in ("val_acc", "val_loss")
        }
        complete = {metric.step for metric in history["val_acc"]}
        self._epochs_logged = {m.step: m.value for m in history["val_loss"] if m.step in complete}

    def log_epochs(self, reports: Iterable[dict[str, Any]]) -> None:
        """Write the epochs that are not there yet, each exactly once.

        A report that carries its ``timestamp`` (ms) can be written again when nobody knows whether the
        first attempt arrived: MLflow keeps one of two equal metrics. Raises OtherTrainingError where an
        epoch that is there was trained to another val_loss: a run must not hold parts of two trainings.
        """
        for report in reports:
            epoch, val_loss = report["epoch"], report["val_loss"]
            if is_other_training(self._epochs_logged.get(epoch, val_loss), val_loss):
                raise OtherTrainingError(f"epoch {epoch} of {self.name} is there with another val_loss")
            if epoch not in self._epochs_logged:
                self._log_epoch(report)
                self._epochs_logged[epoch] = val_loss

    def _log_epoch(self, report: dict[str, Any]) -> None:
        now = report.get("timestamp") or now_ms()
        epoch = report["epoch"]
        metrics = [
            Metric(name, value, now, step)
            for step, *values in report["step_curve"]
            for name, value in zip(STEP_METRICS, values, strict=True)
        ]
        # val_acc goes last: it is what says that the epoch is complete
        metrics += [
            Metric(name, report[name], now, epoch)
            for name in (*EPOCH_METRICS, *NOISE_METRICS, *MEMORY_METRICS)
            if name in report or name in EPOCH_METRICS
        ]
        metrics.sort(key=lambda metric: metric.key == "val_acc")
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH])

    def log_models(
        self, best: ModelFiles, last: ModelFiles | None, best_epoch: int, best_val_acc: float
    ) -> None:
        """Upload the best epoch's model, and the last epoch's where it is another one.

        Safe to repeat: what an attempt that was cut off has left is written over. Raises
        ChangedModelError where what MLflow gives back is not what was uploaded.
        """
        tags = self._upload("best_model", best)
        if last is None:
            tags |= {"last_model": tags["best_model"], "last_model_digest": tags["best_model_digest"]}
        else:
            tags |= self._upload("last_model", last)
        self.client.log_batch(
            self.run_id,
            metrics=self._new_metrics({"best_val_acc": best_val_acc, "best_epoch": best_epoch}),
            tags=[RunTag(key, value) for key, value in (tags | {"trained": "true"}).items()],
        )
        self.run = self.client.get_run(self.run_id)

    def _upload(self, name: str, files: ModelFiles) -> dict[str, str]:
        """Upload one model; returns the tags that lead to it."""
        model = upload_model(self.client, self.run, name, files)
        return {name: model.uri, f"{name}_digest": model.digest}

    def download_model(self, which: str, folder: Path) -> Path:
        """Download the ``best`` or ``last`` model; returns the folder that was given as ModelFiles.

        Raises ChangedModelError where it is not what was uploaded.
        """
        uri = self.tags.get(f"{which}_model", "")
        if not _MODEL_URI.fullmatch(uri):
            raise UserError(f"{which}_model of run {self.run_id} is '{uri}', no model of this MLflow store")
        digest = self.tags.get(f"{which}_model_digest", "")  # older studies have none
        return download_model(self.client, UploadedModel(uri, digest), folder)

    def discard_models(self) -> None:
        """Delete the models, so that the next invocation trains the trial anew and makes others."""
        self.client.set_tag(self.run_id, "trained", "false")
        uris = {self.tags.get(f"{which}_model", "") for which in _PREDICTIONS}
        for uri in filter(_MODEL_URI.fullmatch, uris):
            delete_model(self.client, uri)

    def log_test(self, best: TestResult, last: TestResult, labels: np.ndarray, rows: np.ndarray) -> None:
        """Write the test metrics and the per-example predictions, and finish the run; safe to repeat."""
        with tempfile.TemporaryDirectory() as folder:
            for which, result in (("best", best), ("last", last)):
                path = Path(folder) / _PREDICTIONS[which]
                _predictions(result, labels, rows).to_parquet(path, index=False)
                store_file(self.client, self.run_id, path)
        values = (best.loss, best.accuracy, last.loss, last.accuracy)
        metrics = self._new_metrics(dict(zip(TEST_METRICS, values, strict=True)))
        self.client.log_batch(self.run_id, metrics=metrics)
        self.client.set_terminated(self.run_id, "FINISHED")

    def _new_metrics(self, values: Mapping[str, float]) -> list[Metric]:
        """Results of the trial as a whole, without those that an earlier attempt has written."""
        known = self.client.get_run(self.run_id).data.metrics
        now = now_ms()
        return [Metric(name, value, now, 0) for name, value in values.items() if known.get(name) != value]

    def epochs(self) -> pd.DataFrame:
        """The per-epoch metrics: a row per finished epoch, indexed by it, a column per metric logged."""
        table = self._history((*EPOCH_METRICS, *NOISE_METRICS, *MEMORY_METRICS))
        return table.dropna(subset=["val_acc"]) if "val_acc" in table else table.iloc[:0]

    def steps(self) -> pd.DataFrame:
        """Loss, accuracy and learning rate in training, indexed by optimizer step, a column each."""
        return self._history(STEP_METRICS)

    def _history(self, names: Iterable[str]) -> pd.DataFrame:
        columns = {
            name: {m.step: m.value for m in self.client.get_metric_history(self.run_id, name)}
            for name in names
            if name in self.metrics
        }
        return pd.DataFrame(columns).sort_index()

    def predictions(self, which: str) -> pd.DataFrame:
        """What the ``best`` or ``last`` model said of each test example.

        Columns ``row_id``, ``label``, ``prediction``, ``probability`` (of the predicted class) and
        ``margin`` (its lead over the second; absent from studies tested before it was stored).
        """
        fetch = partial(download, self.client, self.run_id, _PREDICTIONS[which])
        return read_table(fetch, f"{_PREDICTIONS[which]} of {self.name}", _PREDICTION)

    def interrupt(self) -> None:
        """Mark the run as stopped before its end; it goes on when the trial does."""
        self.client.set_terminated(self.run_id, "KILLED")

    def fail(self, reason: str) -> None:
        """Mark the run as failed, with its reason."""
        self.client.set_tag(self.run_id, "failure", reason[:5000])
        self.client.set_terminated(self.run_id, "FAILED")


def leave_behind(client: MlflowClient, run_id: str) -> None:
    """Keep a run in MLflow, ended, but no longer as its study's; safe to repeat."""
    if client.get_run(run_id).info.status == "RUNNING":  # else it keeps the time of its end
        client.set_terminated(run_id, "KILLED")
    client.set_tag(run_id, SUPERSEDED, "true")  # last: nobody looks for such a run again


def is_other_training(before: float, now: float) -> bool:
    """Whether two val_losses of one epoch cannot be of one training; what is not finite tells nothing."""
    return math.isfinite(now) and before != now


def now_ms() -> int:
    """The time as MLflow counts it: milliseconds since 1970."""
    return int(time.time() * 1000)


def _cell(config: TrialConfig) -> dict[str, Any]:
    return {
        "model": config.model_name,
        "target_batch_size": config.target_batch_size,
        "scaling_rule": config.scaling_rule,
        "seed": config.seed,
    }


def _predictions(result: TestResult, labels: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    top_two = np.sort(result.probabilities, axis=1)[:, -2:]
    return pd.DataFrame(
        {
            "row_id": rows,
            "label": labels,
            "prediction": result.predictions,
            "probability": result.probabilities.max(axis=1),
            "margin": top_two[:, 1] - top_two[:, 0],
        }
    )
