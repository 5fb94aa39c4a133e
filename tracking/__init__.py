"""The only importer of mlflow: one experiment per study, a run per invocation, a child per trial."""

import os

# read when MLflow is imported, which would report each use to its makers
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from tracking.dataset_facts import DatasetFacts
from tracking.model_files import ChangedModelError, ModelFiles
from tracking.model_registry import register_best
from tracking.patience import Patience
from tracking.store_place import check_store_exists, sqlite_file
from tracking.study_store import PROCESS, STORAGE_ID, InvocationRun, StudyStore, check_study_name
from tracking.trial_run import (
    EPOCH_METRICS,
    MEMORY_METRICS,
    NOISE_METRICS,
    OtherTrainingError,
    TrialRun,
    is_other_training,
    now_ms,
)

__all__ = [
    "EPOCH_METRICS",
    "MEMORY_METRICS",
    "NOISE_METRICS",
    "PROCESS",
    "STORAGE_ID",
    "ChangedModelError",
    "DatasetFacts",
    "InvocationRun",
    "ModelFiles",
    "OtherTrainingError",
    "Patience",
    "StudyStore",
    "TrialRun",
    "check_store_exists",
    "check_study_name",
    "is_other_training",
    "now_ms",
    "register_best",
    "sqlite_file",
]
