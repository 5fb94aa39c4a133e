"""A file into a run of MLflow and back, proved to be the same."""

import hashlib
import tempfile
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient


class ChangedFileError(OSError):
    """What came back from MLflow is not what was stored; as with any failing disk, a repeat may mend it."""


def store_file(client: MlflowClient, run_id: str, path: Path) -> None:
    """Store a file at the run's top, read it back and compare; safe to repeat.

    Raises ChangedFileError where MLflow gives back something else.
    """
    client.log_artifact(run_id, str(path))
    with tempfile.TemporaryDirectory() as folder:
        try:
            stored = Path(client.download_artifacts(run_id, path.name, folder))
        except MlflowException as error:  # which says of everything that there is no such file
            raise ChangedFileError(f"{path.name} of run {run_id} cannot be read back") from error
        if file_digest(stored) != file_digest(path):
            raise ChangedFileError(f"{path.name} of run {run_id} is not what was stored")


def file_digest(path: Path) -> str:
    """SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
