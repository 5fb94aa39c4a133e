"""The only importer of mlflow: one experiment per study, a run per invocation, a child per trial."""

from search_spaces import UserError, unknown
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
    "register_best",
    "run_name",
    "unknown",
]
