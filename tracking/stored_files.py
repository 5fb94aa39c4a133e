"""A file into a run of MLflow and back, proved to be the same."""

import hashlib
import tempfile
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tracking.artifacts import download, upload


class ChangedFileError(OSError):
    """What came back from MLflow is not what was stored; as with any failing disk, a repeat may mend it."""


def store_file(client: MlflowClient, run_id: str, path: Path) -> None:
    """Store a file at the run's top, read it back and compare; safe to repeat.

    Raises ChangedFileError where MLflow gives back something else.
    """
    upload(client, run_id, path)
    with tempfile.TemporaryDirectory() as folder:
        try:
            stored = download(client, run_id, path.name, Path(folder))
        except MlflowException as error:  # whatever its code, storing again may mend it
            raise ChangedFileError(f"{path.name} of run {run_id} cannot be read back") from error
        if file_digest(stored) != file_digest(path):
            raise ChangedFileError(f"{path.name} of run {run_id} is not what was stored")


def file_digest(path: Path) -> str:
    """SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
