"""The MLflow run of one trial: its metrics, models and predictions."""

import math
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Metric
from mlflow.utils.time import get_current_time_millis
from pandas.api.types import is_float_dtype, is_integer_dtype

from errors import UserError, all_printable
from search_spaces.stages import COMPLETE, Outcome
from tracking.artifacts import ModelFiles, download_model, folder_digest, models_of, upload_model
from tracking.connection import retried
from tracking.runs import TrackedRun

_STEP_METRICS = ("train_loss_per_step", "train_acc_per_step", "learning_rate_per_step")
_PER_STEP = "_per_step"
_NO_METRICS = {"evaluation", "reported_at"}  # numbers of a report that are times
_PREFIXES = {"best": "test_", "last": "last_test_"}  # of the test results of that model
_LONGEST_REASON = 5000  # characters
_PREDICTIONS = "predictions.parquet"
_PREDICTION_COLUMNS = {
    **dict.fromkeys(("row_id", "label", "prediction"), is_integer_dtype),
    **dict.fromkeys(("probability", "margin"), is_float_dtype),
}
_MODEL_URI = re.compile(r"models:/(m-[0-9a-zA-Z]+)")  # not file:, not http:, not a name in the registry


class OtherTrainingError(RuntimeError):
    """A trial was trained again without its checkpoint, and its numbers differ from those in its run."""


class TrialRun(TrackedRun):
    """A handle on the one MLflow run that a trial has."""

    @property
    def is_trained(self) -> bool:
        """Whether its models are in MLflow, so that only the test may be missing."""
        return self.tags.get("trained") == "true"

    @retried
    def outcome(self, with_curve: bool) -> Outcome | None:
        """How training ended; None before that. Without the curve, its only val_acc is the best one."""
        state = self.tags.get("outcome", COMPLETE if self.is_trained else "")
        if not state:
            return None
        if not with_curve:
            best = self.metrics.get("best_val_acc")
            return Outcome(state, () if best is None else (best,))
        return Outcome(state, tuple(value for _, value in sorted(self._values("val_acc").items())))

    @property
    def is_tested(self) -> bool:
        """Whether the trial is finished; the run's end is written last."""
        has_results = {"test_acc", "last_test_acc"} <= self.metrics.keys()
        return self.status == "FINISHED" and self.is_trained and has_results

    @property
    def params(self) -> Mapping[str, str]:
        """The fields of its TrialConfig, as MLflow keeps them."""
        return all_printable(dict(self._run.data.params))

    @retried
    def log_evaluations(self, reports: Iterable[Mapping[str, Any]]) -> None:
        """Write the evaluations that MLflow lacks: every number of a report at step ``evaluation``.

        ``reported_at`` (ms) makes writing twice harmless: MLflow keeps one of two equal metrics. Raises
        OtherTrainingError if an evaluation is there with another val_loss: a run must not hold parts of
        two trainings.
        """
        for report in reports:
            evaluation, val_loss = report["evaluation"], report["val_loss"]
            before = self._val_losses.get(evaluation, val_loss)
            if before != val_loss and math.isfinite(val_loss):
                raise OtherTrainingError(
                    f"evaluation {evaluation} of {self.name} is there with another val_loss"
                )
            if evaluation not in self._val_losses:
                self._log(_report_metrics(report))
                self._val_losses[evaluation] = val_loss

    @cached_property
    def _val_losses(self) -> dict[int, float]:
        """The val_loss of each evaluation in MLflow."""
        complete = self._values("val_acc")  # written last
        return {number: loss for number, loss in self._values("val_loss").items() if number in complete}

    @retried
    def log_models(self, best: ModelFiles, last: ModelFiles | None, results: Mapping[str, float]) -> None:
        """Upload the best evaluation's model, and the last one's if it is another; write ``results``."""
        tags: dict[str, str] = {}
        for name, files in {"best_model": best, "last_model": last}.items():
            if files is not None:
                tags[f"{name}_digest"] = folder_digest(files.folder)
                tags[name] = upload_model(self.client, self._run, name, files)
        tags.setdefault("last_model", tags["best_model"])
        tags.setdefault("last_model_digest", tags["best_model_digest"])
        self._log_results(results)
        self._tag(tags | {"trained": "true"})

    @retried
    def log_outcome(self, state: str, results: Mapping[str, float], reason: str = "") -> None:
        """Finish the run of a trial that keeps no model and is not tested.

        ``reason`` is given if the trial failed and is not trained again.
        """
        self._log_results(results)
        self._tag({"outcome": state, "failure": reason[:_LONGEST_REASON]})
        self._end("FAILED" if reason else "FINISHED")

    def _log_results(self, values: Mapping[str, float]) -> None:
        """Write results of the trial as a whole, except those that an earlier attempt has written."""
        known, now = self.client.get_run(self.run_id).data.metrics, get_current_time_millis()
        self._log(
            [Metric(name, value, now, 0) for name, value in values.items() if known.get(name) != value]
        )
        self.metrics |= values

    @retried
    def interrupt(self) -> None:
        """Mark the run as stopped before its end; it runs again when the trial is opened again."""
        self._end("KILLED")

    @retried
    def fail(self, reason: str, outcome: str = "") -> None:
        """Mark the run as failed; ``outcome`` is given if a retry would fail in the same way."""
        self._tag({"failure": reason[:_LONGEST_REASON]} | ({"outcome": outcome} if outcome else {}))
        self._end("FAILED")

    @retried
    def download_model(self, which: str, folder: Path) -> Path:
        """Download the ``best`` or ``last`` model; returns the folder that was uploaded as a ModelFiles.

        Raises ChangedModelError if its files differ from the uploaded ones.
        """
        uri, digest = (self.tags.get(f"{which}_model{what}", "") for what in ("", "_digest"))
        if not (match := _MODEL_URI.fullmatch(uri)):
            raise UserError(f"{which}_model of run {self.run_id} is '{uri}', no model of this MLflow store")
        return download_model(self.client, match[1], digest, folder)

    @retried
    def discard_models(self) -> None:
        """Delete the models, so that the next invocation uploads them anew from the checkpoint."""
        self._tag({"trained": "false"})
        for model in models_of(self.client, self._run):
            self.client.delete_logged_model(model.model_id)

    @retried
    def log_test(self, results: Mapping[str, Any], labels: np.ndarray, rows: np.ndarray) -> None:
        """Write the test results of the ``best`` and the ``last`` model, and finish the run.

        A result has ``metrics`` by name, ``predictions``, (n,), and ``probabilities``, (n, classes).
        ``labels`` and ``rows``, (n,) each, are the labels and row ids of the test split.
        """
        for which, result in results.items():
            prefix = _PREFIXES[which]
            second, first = np.sort(result.probabilities, axis=1)[:, -2:].T
            columns = {"row_id": rows, "label": labels, "prediction": result.predictions}
            columns |= {"probability": first, "margin": first - second}
            self._log_table(prefix + _PREDICTIONS, columns)
            self._log_results({prefix + name: value for name, value in result.metrics.items()})
        self._end("FINISHED")

    @retried
    def predictions(self, which: str) -> pd.DataFrame:
        """The predictions of the ``best`` or ``last`` model, a row per test example.

        Columns ``row_id``, ``label``, ``prediction``, ``probability`` (of the predicted class) and
        ``margin`` (its lead over the second). UserError if they cannot be read.
        """
        return self._read_table(_PREFIXES[which] + _PREDICTIONS, _PREDICTION_COLUMNS)

    @retried
    def evaluations(self) -> pd.DataFrame:
        """A row per complete evaluation, indexed by its number, and a column per metric."""
        table = self._table([name for name in self.metrics if not name.endswith(_PER_STEP)])
        return table.dropna(subset=["val_acc"]) if "val_acc" in table else table.iloc[:0]

    @retried
    def steps(self) -> pd.DataFrame:
        """Loss, accuracy and learning rate in training, indexed by optimizer step, a column each."""
        return self._table([name for name in self.metrics if name.endswith(_PER_STEP)])

    def _table(self, names: Iterable[str]) -> pd.DataFrame:
        columns = {name: self._values(name) for name in sorted(names)}
        return pd.DataFrame({name: values for name, values in columns.items() if values}).sort_index()

    def _values(self, name: str) -> dict[int, float]:
        """Step -> value of a metric, without step 0, which holds results of the trial as a whole."""
        history = self.client.get_metric_history(self.run_id, name)
        return {metric.step: metric.value for metric in history if metric.step > 0}


def _report_metrics(report: Mapping[str, Any]) -> list[Metric]:
    evaluation, when = report["evaluation"], report["reported_at"]
    numbers = {
        name: value
        for name, value in report.items()
        if isinstance(value, (int, float)) and name not in _NO_METRICS
    }
    numbers["val_acc"] = numbers.pop("val_acc")  # last: with it, the evaluation counts as complete
    curve = [
        Metric(name, value, when, step)
        for step, *values in report["step_curve"]
        for name, value in zip(_STEP_METRICS, values, strict=True)
    ]
    return curve + [Metric(name, value, when, evaluation) for name, value in numbers.items()]
