"""The only importer of mlflow: one experiment per study, a run per invocation, a child per trial."""

import os

# read when MLflow is imported, which would report each use to its makers
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from search_spaces import UserError, first_line, printable, unknown
from tracking.model_registry import register_best
from tracking.study_store import InvocationRun, StudyStore, check_store_exists, check_study_name
from tracking.trial_run import DatasetFacts, ModelFiles, TrialRun, run_name

__all__ = [
    "DatasetFacts",
    "InvocationRun",
    "ModelFiles",
    "StudyStore",
    "TrialRun",
    "UserError",
    "check_store_exists",
    "check_study_name",
    "first_line",
    "printable",
    "register_best",
    "run_name",
    "unknown",
]
