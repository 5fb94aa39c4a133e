"""The only importer of mlflow: one experiment per study, a run per invocation, a child per trial."""

from tracking.study_store import InvocationRun, StudyStore, quiet_mlflow
from tracking.trial_run import DatasetFacts, ModelFiles, TrialRun, run_name

__all__ = [
    "DatasetFacts",
    "InvocationRun",
    "ModelFiles",
    "StudyStore",
    "TrialRun",
    "quiet_mlflow",
    "run_name",
]
