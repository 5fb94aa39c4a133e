"""Files of runs and of models, into MLflow's artifact store and back."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient


def upload(client: MlflowClient, run_id: str, path: Path, under: str | None = None) -> None:
    """Store a file, or the files of a folder, at the run's top or in its folder ``under``."""
    with _repository(client, _of_run(client, run_id)) as repository:
        if path.is_dir():
            repository.log_artifacts(str(path), under)
        else:
            repository.log_artifact(str(path), under)


def download(client: MlflowClient, run_id: str, name: str, folder: Path) -> Path:
    """Fetch the run's file or folder ``name`` into ``folder``; returns where it lies."""
    with _repository(client, _of_run(client, run_id)) as repository:
        return Path(repository.download_artifacts(name, str(folder)))


def upload_model_folder(client: MlflowClient, model_id: str, folder: Path) -> None:
    """Store the files of ``folder`` as the model's."""
    with _repository(client, _of_model(client, model_id)) as repository:
        repository.log_artifacts(str(folder))


def download_model_folder(client: MlflowClient, model_id: str, folder: Path) -> Path:
    """Fetch the model's files into ``folder``; returns where they lie."""
    with _repository(client, _of_model(client, model_id)) as repository:
        return Path(repository.download_artifacts("", str(folder)))


def _of_run(client: MlflowClient, run_id: str) -> str:
    return client.get_run(run_id).info.artifact_uri


def _of_model(client: MlflowClient, model_id: str) -> str:
    return client.get_logged_model(model_id).artifact_location


@contextmanager
def _repository(client: MlflowClient, location: str) -> Iterator[ArtifactRepository]:
    """MLflow's repository at ``location``; its threads end with the block.

    MlflowClient's own calls leave them: it keeps the repositories of a thousand runs and models, and
    those that it lets go refer to themselves until Python collects garbage.
    """
    repository = get_artifact_repository(location, tracking_uri=client.tracking_uri)
    try:
        yield repository
    finally:
        for pool in vars(repository).values():
            if isinstance(pool, Executor):
                pool.shutdown(wait=False, cancel_futures=True)
