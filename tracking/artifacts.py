"""Files and models in MLflow's artifact store, and back."""

import hashlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import Experiment, LoggedModel, LoggedModelOutput, Run
from mlflow.models.signature import ModelSignature
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import (
    get_artifact_repository,
    get_registered_artifact_repositories,
)
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from addresses import is_trusted
from errors import UserError
from tracking.store_address import sqlite_file

_SERVING_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas")
# table of MLflow's database -> its column with the places of artifacts
_PLACES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string")]),
    outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")]),
)


class ChangedModelError(OSError):
    """A model in MLflow differs from the one that was uploaded."""


@dataclass(frozen=True)
class ModelFiles:
    """A model to log: its folder, the module whose ``_load_pyfunc`` reads it, and that module's code."""

    folder: Path
    loader_module: str
    code_paths: tuple[Path, ...]


def _of_trusted_host(
    repository: Callable[..., ArtifactRepository],
    artifact_uri: str,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> ArtifactRepository:
    host = urlsplit(artifact_uri).netloc.rpartition("@")[2]
    if host and not is_trusted(artifact_uri, tracking_uri or mlflow.get_tracking_uri()):
        raise UserError(
            f"the tracking store keeps artifacts at {host}, which would get MLflow's user and password: "
            f"give --artifact-host {host} if that is meant"
        )
    return repository(artifact_uri, tracking_uri=tracking_uri, registry_uri=registry_uri)


# MLflow sends the store's password to whatever host the store names for its artifacts
_repositories: dict[str, Any] = get_registered_artifact_repositories()
for _scheme in ("http", "https", "mlflow-artifacts"):
    _repositories[_scheme] = partial(_of_trusted_host, _repositories[_scheme])


def download(client: MlflowClient, location: str, name: str, folder: Path) -> Path | None:
    """Download a file or folder, all if ``name`` is empty; returns its local path, None if there is none.
    MLflow downloads in threads, which would stay until Python collects garbage; they are ended here.
    Uploads start no threads, neither to a folder nor to a server.
    """
    repository = get_artifact_repository(location, tracking_uri=client.tracking_uri)
    try:
        if name and all(file.path != name for file in repository.list_artifacts()):
            return None
        return Path(repository.download_artifacts(name, str(folder)))
    finally:
        for pool in vars(repository).values():
            if isinstance(pool, Executor):
                pool.shutdown(wait=False, cancel_futures=True)


def follow_move(tracking_uri: str, experiment: Experiment) -> Path | None:
    """Tell an SQLite store where a study's artifacts lie, if their folder was moved with it.

    MLflow keeps absolute paths. Returns the new place, in ``mlruns`` beside the store or in the current
    folder. None if the old place exists, if neither holds the study's runs, or for another kind of store.
    """
    file, before = sqlite_file(tracking_uri), experiment.artifact_location
    if file is None or not is_local_uri(before) or Path(local_file_uri_to_path(before)).exists():
        return None
    places = [
        folder / "mlruns" / experiment.experiment_id for folder in (file.absolute().parent, Path.cwd())
    ]
    with closing(sqlite3.connect(file)) as database, database:
        runs = database.execute(
            "select run_uuid from runs where experiment_id = ?", (experiment.experiment_id,)
        ).fetchall()
        now = next((place for place in places if any((place / run).is_dir() for (run,) in runs)), None)
        if now is None:
            return None
        for table, column in _PLACES.items():
            database.execute(
                f"update {table} set {column} = ? || substr({column}, ?) "
                f"where {column} = ? or substr({column}, 1, ?) = ?",
                (str(now), len(before) + 1, before, len(before) + 1, f"{before}/"),
            )
    return now


def upload_model(client: MlflowClient, run: Run, name: str, files: ModelFiles) -> str:
    """Log a model of a run; returns its URI. Safe to repeat: there is one model of that name per run."""
    experiment_id, run_id = run.info.experiment_id, run.info.run_id
    model_id = next((model.model_id for model in models_of(client, run) if model.name == name), None)
    if model_id is None:
        model = client.create_logged_model(experiment_id, name, run_id, params=run.data.params)
        model_id = model.model_id
    mlflow.pyfunc.log_model(
        model_id=model_id,  # without it, the model would go to the active run, or to the experiment Default
        loader_module=files.loader_module,
        data_path=str(files.folder),
        code_paths=[str(path) for path in files.code_paths],
        signature=_SIGNATURE,
        pip_requirements=[f"{p}=={version(p).split('+')[0]}" for p in _SERVING_PACKAGES],
    )
    outputs = client.get_run(run_id).outputs
    if not outputs or all(output.model_id != model_id for output in outputs.model_outputs):
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return f"models:/{model_id}"


def models_of(client: MlflowClient, run: Run) -> list[LoggedModel]:
    """The models of a run, including those of an upload that was cut off."""
    query = f"source_run_id = '{run.info.run_id}'"
    return list(client.search_logged_models([run.info.experiment_id], query))


def download_model(client: MlflowClient, model_id: str, digest: str, folder: Path) -> Path:
    """Download a model into ``folder``; returns the folder that was uploaded as ``ModelFiles.folder``.

    Raises ChangedModelError if its files do not have this digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    download(client, client.get_logged_model(model_id).artifact_location, "", folder)
    found = list(folder.glob("data/*"))
    if len(found) != 1 or folder_digest(found[0]) != digest:
        raise ChangedModelError(f"models:/{model_id} is not what was uploaded")
    return found[0]


def folder_digest(folder: Path) -> str:
    """16 hex digits that change with the name, the size and the bytes of any file in the folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size} {content}\n".encode())
    return digest.hexdigest()[:16]
