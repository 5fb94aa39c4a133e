"""A model's files, from a folder into MLflow and back, proved to be the same."""

import hashlib
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import mlflow
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema

from errors import UserError
from tracking.artifacts import download_model_folder, upload_model_folder
from tracking.stored_files import ChangedFileError, file_digest

_MODELS = "models:/"  # with which the URI of a model begins
_SERVING_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas")
_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string")]),
    outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")]),
)


class ChangedModelError(ChangedFileError):
    """A model that came back from MLflow other than it was uploaded."""


@dataclass(frozen=True)
class ModelFiles:
    """A model to log: a folder, the module whose ``_load_pyfunc`` reads it, and that module's code."""

    folder: Path
    loader_module: str
    code_paths: tuple[Path, ...]


@dataclass(frozen=True)
class UploadedModel:
    """Where a model is, and what its files must be."""

    uri: str
    digest: str


def upload_model(client: MlflowClient, run: Run, name: str, files: ModelFiles) -> UploadedModel:
    """Upload a model of a run, read it back and compare.

    Safe to repeat: what an attempt that was cut off has left is written over, so that there is one
    model of that name per run. Raises ChangedModelError where MLflow gives back something else; an
    earlier attempt's is discarded then, because what is wrong with it need not be what is written over.
    """
    earlier = _started_model(client, run, name)
    model = earlier or client.create_logged_model(
        run.info.experiment_id, name, run.info.run_id, params=run.data.params
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        _save(folder, files, Model(run_id=run.info.run_id, model_uuid=uuid4().hex, model_id=model.model_id))
        upload_model_folder(client, model.model_id, folder)
    uploaded = UploadedModel(_MODELS + model.model_id, folder_digest(files.folder))
    try:
        with tempfile.TemporaryDirectory() as temporary:
            download_model(client, uploaded, Path(temporary))
    except ChangedModelError:
        if earlier:
            delete_model(client, uploaded.uri)
        raise
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if model.model_id not in _outputs(client, run):
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return uploaded


def download_model(client: MlflowClient, model: UploadedModel, folder: Path) -> Path:
    """Download into ``folder``; returns where the files lie that were given as ModelFiles.

    Raises ChangedModelError where they are not those; an empty digest, of older studies, is not checked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = download_model_folder(client, model.uri.removeprefix(_MODELS), folder).resolve()
    data = (path / _data_folder(model, path)).resolve()
    if path not in data.parents:
        raise UserError(
            f"{model.uri} names files outside itself: it is not a model that this program stored"
        )
    if model.digest and folder_digest(data) != model.digest:
        raise ChangedModelError(f"{model.uri} is not what was uploaded")
    return data


def delete_model(client: MlflowClient, uri: str) -> None:
    """Mark a model as deleted, so that nobody uploads into it again."""
    with suppress(MlflowException):  # an earlier attempt has deleted it
        client.delete_logged_model(uri.removeprefix(_MODELS))


def _data_folder(model: UploadedModel, path: Path) -> str:
    try:
        return str(Model.load(str(path)).flavors["python_function"]["data"])
    except (OSError, MemoryError):  # this machine's trouble says nothing about the model
        raise
    except Exception as error:  # MLflow and YAML each have their own
        raise ChangedModelError(f"the MLmodel file of {model.uri} cannot be read") from error


def folder_digest(folder: Path) -> str:
    """16 hex digits that change with the name, the size and the bytes of any file in the folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size} {file_digest(path)}\n".encode())
    return digest.hexdigest()[:16]


def _started_model(client: MlflowClient, run: Run, name: str) -> LoggedModel | None:
    """The model that an earlier attempt has created."""
    query = f"source_run_id = '{run.info.run_id}' AND name = '{name}'"
    models = client.search_logged_models([run.info.experiment_id], query)
    return models[0] if models else None


def _save(folder: Path, files: ModelFiles, model: Model) -> None:
    mlflow.pyfunc.save_model(
        path=str(folder),
        mlflow_model=model,
        loader_module=files.loader_module,
        data_path=str(files.folder),
        code_paths=[str(path) for path in files.code_paths],
        signature=_SIGNATURE,
        pip_requirements=[f"{p}=={version(p).split('+')[0]}" for p in _SERVING_PACKAGES],
    )


def _outputs(client: MlflowClient, run: Run) -> set[str]:
    outputs = client.get_run(run.info.run_id).outputs
    return {output.model_id for output in outputs.model_outputs} if outputs else set()
