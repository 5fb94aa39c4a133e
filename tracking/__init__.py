"""The only importer of mlflow: one experiment per study, a run per invocation, a child per trial."""

import os

# MLflow reads this when it is imported; without it, MLflow reports each use to its makers
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from tracking.artifacts import ChangedModelError, ModelFiles
from tracking.connection import LAST_WRITES, BackgroundWriter, in_time
from tracking.earlier import EarlierTrial, earlier_trials
from tracking.runs import FORMAT, InvocationRun
from tracking.store_address import Say, check_store_exists, nobody, sqlite_file
from tracking.study_store import StudyRuns, StudyStore, check_study_name
from tracking.trial_run import OtherTrainingError, TrialRun
from tracking.views import colour_tag

__all__ = [
    "FORMAT",
    "LAST_WRITES",
    "BackgroundWriter",
    "ChangedModelError",
    "EarlierTrial",
    "InvocationRun",
    "ModelFiles",
    "OtherTrainingError",
    "Say",
    "StudyRuns",
    "StudyStore",
    "TrialRun",
    "check_store_exists",
    "check_study_name",
    "colour_tag",
    "earlier_trials",
    "in_time",
    "nobody",
    "sqlite_file",
]
