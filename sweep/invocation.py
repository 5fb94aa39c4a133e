"""The parent run of one run of the command: what MLflow is told of the study before anything is trained."""

import contextlib
from collections.abc import Iterator
from datetime import datetime

from errors import UserError
from sweep.plan import PlannedStudy
from sweep.search import identity
from sweep.storage import StudyStorage
from tracking import InvocationRun, StudyStore, in_time


@contextlib.contextmanager
def invocation_of(
    planned: PlannedStudy, store: StudyStore, storage: StudyStorage
) -> Iterator[InvocationRun]:
    """The parent run, with the plan and the test split in it; a run that is refused is discarded."""
    plan = planned.plan
    title = f"{plan.study} · {datetime.now():%Y-%m-%d %H:%M}"
    tags = {"space": plan.space.name, "question": plan.space.question, **storage.owner}
    tags |= identity(plan.space, plan.shared.dataset_digest)
    invocation = store.start_invocation(title, plan.model_dump(mode="json"), tags)
    try:
        store.save_views(plan.space.varied)
        test = planned.splits.test
        invocation.log_test_split(test.row_ids, test.labels, test.texts)
        yield invocation
    except UserError:
        if invocation.generations:  # of a search that has begun
            invocation.finish("KILLED")
        else:
            invocation.discard()
        raise
    except BaseException:
        in_time(lambda: invocation.finish("KILLED"))
        raise
