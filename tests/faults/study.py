"""The study that faults are injected into, and what must be equal to an uninterrupted one afterwards."""

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.tracking import MlflowClient

from tests.faults import processes
from tests.helpers import ROOT
from tracking.artifacts import folder_digest
from tracking.store_address import quiet_mlflow

NAME = "faults"
STUDY = (
    f"--space batch_lr_grid --name {NAME} --demo --models bert-tiny modernbert-tiny --precision fp32 "
    "--target-batch-sizes 64 256 --scaling-rules fixed --epochs 3 --train-size 640 --eval-size 60 "
    "--max-length 32 --max-failures 20 --physical-batch-size 64"
).split()
_TIMES = ("examples_per_second", "epoch_seconds")
_QUIET = {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
_LONGEST = 420  # seconds for the whole study on a busy machine


class Command:
    """The command in a folder of its own; what it says accumulates in ``output.log``."""

    def __init__(
        self,
        folder: Path,
        *more: str,
        study: Sequence[str] = STUDY,
        environment: dict[str, str] | None = None,
        enter: Sequence[str] = (),
        script: Path = ROOT / "tune_main.py",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._command = [*enter, sys.executable, str(script), *study, *more]
        self._environment = _QUIET | {"PYTHONPATH": str(ROOT)} | (environment or {})
        self._said_before = 0
        self._started = 0.0
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *raised: object) -> None:
        self.kill()

    def start(self, *more: str) -> "Command":
        """Start it, or start it again."""
        self._said_before = len(self.output())
        self._started = time.time() - 2.0  # the system's clock of processes is that coarse
        self.process = processes.start(self.folder, [*self._command, *more], self._environment)
        return self

    def output(self) -> str:
        """All that it has said, in all its runs."""
        log = self.folder / "output.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def said(self) -> str:
        """What the latest run has said."""
        return self.output()[self._said_before :]

    @property
    def sqlite_uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait_until(self, happened: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait for it, or for the end of the latest run; returns the seconds it took."""
        return processes.wait_until(lambda: happened() or not self.is_running, seconds, what)

    def wait_for(self, text: str) -> bool:
        """Wait until the latest run has said it; False where it ended without."""
        self.wait_until(lambda: text in self.said(), _LONGEST, repr(text))
        return text in self.said()

    def wait(self) -> int:
        """Wait for the end of the latest run; returns its exit code."""
        self.wait_until(lambda: False, _LONGEST, "the command to end")
        return self.process.returncode

    def run(self, *more: str) -> int:
        return self.start(*more).wait()

    def family(self, all_runs: bool = True) -> list[str]:
        """The names of the processes that still run of those that it, or its latest run, has started."""
        since = 0.0 if all_runs else self._started
        return [process.name() for process in processes.family(self.folder, since)]

    def kill(self) -> None:
        """``kill -9`` everything it has started."""
        processes.kill(self.folder)


def facts(tracking_uri: str, artifacts_from: Path) -> dict[str, dict[str, str]]:
    """Trial hash -> all that must not depend on what happened on the way, as text.

    Every epoch and step of every metric, the results, the status, the predictions and the bytes of the
    models; how many runs the trial has, and how many were left behind. Of times only how many there are.
    """
    quiet_mlflow()
    with contextlib.chdir(artifacts_from):  # artifact locations may be relative
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name(NAME)
        grouped = defaultdict(list)
        for run in client.search_runs([experiment.experiment_id], "tags.trial_hash LIKE '%'"):
            grouped[run.data.tags["trial_hash"]].append(run)
        return {h: _facts(client, same) for h, same in grouped.items()}


def differences(wanted: dict[str, dict[str, str]], found: dict[str, dict[str, str]]) -> list[str]:
    """What differs, a line each."""
    lines = [f"{h}: no such trial" for h in wanted.keys() - found.keys()]
    lines += [f"{h}: a trial too many" for h in found.keys() - wanted.keys()]
    for h in wanted.keys() & found.keys():
        for key in sorted(wanted[h].keys() | found[h].keys()):
            expected, actual = wanted[h].get(key, "absent"), found[h].get(key, "absent")
            if expected != actual:
                lines.append(f"{h}: {key} is {actual[:300]}, not {expected[:300]}")
    return lines


def _facts(client: MlflowClient, runs: list) -> dict[str, str]:
    current = [run for run in runs if "superseded" not in run.data.tags]
    known = {"runs": str(len(current)), "left behind": str(len(runs) - len(current))}
    if not current:
        return known
    run = current[0]
    known["status"] = run.info.status
    for name in sorted(run.data.metrics):
        history = client.get_metric_history(run.info.run_id, name)
        values = [(m.step, "…" if name in _TIMES else m.value) for m in history]
        known[f"metric {name}"] = repr(sorted(values, key=lambda pair: pair[0]))
    artifacts = {
        "predictions": (_predictions, f"runs:/{run.info.run_id}/test_predictions.parquet"),
        "last_predictions": (_predictions, f"runs:/{run.info.run_id}/last_test_predictions.parquet"),
        "best_model": (_model, run.data.tags.get("best_model", "")),
        "last_model": (_model, run.data.tags.get("last_model", "")),
    }
    mlflow.set_tracking_uri(client.tracking_uri)
    for what, (digest, uri) in artifacts.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
                known[what] = digest(Path(path))
            except Exception as error:  # which is a difference in itself
                known[what] = f"unreadable: {error}"
    return known


def _predictions(path: Path) -> str:
    frame = pd.read_parquet(path)
    digest = hashlib.sha256(repr(frame.dtypes.to_dict()).encode())
    for _, column in frame.items():
        digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()


def _model(path: Path) -> str:
    return folder_digest(path / "data")
