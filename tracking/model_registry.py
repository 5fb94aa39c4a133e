"""The registered model of a study: under its name, with the alias ``best``."""

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient

from tracking.trial_run import TrialRun

BEST = "best"


def register_best(client: MlflowClient, study: str, run: TrialRun) -> str:
    """Make the best-epoch model of ``run`` the study's ``best``; returns ``models:/<study>@best``.

    Safe to repeat: a model that is the study's best already gets no second version.
    """
    source = run.tags["best_model"]
    current = _current_best(client, study)
    if current is None or (current.run_id, current.source) != (run.run_id, source):
        version = client.create_model_version(
            study,
            source,
            run_id=run.run_id,
            model_id=source.removeprefix("models:/"),
            description=f"{run.name}, epoch {run.metrics['best_epoch']:.0f}: "
            f"val_acc {run.metrics['best_val_acc']:.4f}",
        )
        client.set_registered_model_alias(study, BEST, version.version)
    return f"models:/{study}@{BEST}"


def _current_best(client: MlflowClient, study: str) -> ModelVersion | None:
    """The version that has the alias; creates the registered model where there is none."""
    try:
        model = client.get_registered_model(study)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        client.create_registered_model(study)
        return None
    version = model.aliases.get(BEST)
    return client.get_model_version(study, version) if version else None
