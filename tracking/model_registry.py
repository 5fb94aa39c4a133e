"""The registered model of a study: under its name, with the alias ``best``."""

from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient

from tracking.trial_run import TrialRun

BEST = "best"


def register_best(client: MlflowClient, study: str, run: TrialRun) -> str:
    """Make the best-epoch model of ``run`` the study's ``best``; returns ``models:/<study>@best``.

    Safe to repeat: a model that has a version gets no second one.
    """
    source = run.tags["best_model"]
    model = _registered(client, study)
    version = _version(client, study, run.run_id, source) or client.create_model_version(
        study,
        source,
        run_id=run.run_id,
        model_id=source.removeprefix("models:/"),
        description=f"{run.name}, epoch {run.metrics['best_epoch']:.0f}: "
        f"val_acc {run.metrics['best_val_acc']:.4f}",
    )
    if str(model.aliases.get(BEST)) != str(version.version):
        client.set_registered_model_alias(study, BEST, version.version)
    return f"models:/{study}@{BEST}"


def _registered(client: MlflowClient, study: str) -> RegisteredModel:
    try:
        return client.get_registered_model(study)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return client.create_registered_model(study)


def _version(client: MlflowClient, study: str, run_id: str, source: str) -> ModelVersion | None:
    """The version that this model already has, be it from an attempt that was cut off."""
    versions = client.search_model_versions(f"name = '{study}' AND run_id = '{run_id}'")
    return next((version for version in versions if version.source == source), None)
