"""The parent run of one run of the command: what MLflow is told of the study before anything is trained."""

import contextlib
from collections.abc import Iterator
from datetime import datetime

from errors import UserError
from search_spaces import SearchSpace
from sweep.plan import Plan
from sweep.search import IDENTITY, identity
from sweep.storage import StudyStorage
from sweep.training import in_time
from tracking import InvocationRun, StudyStore


@contextlib.contextmanager
def invocation_of(plan: Plan, store: StudyStore, storage: StudyStorage) -> Iterator[InvocationRun]:
    """The parent run, with the plan and the test split in it; a refused one is taken back."""
    title = f"{plan.study} · {datetime.now():%Y-%m-%d %H:%M}"
    tags = {"space": plan.space.name, "question": plan.space.question, **storage.owner}
    if isinstance(plan.space, SearchSpace):
        tags[IDENTITY] = identity(plan.space)
    invocation = store.start_invocation(title, plan.to_dict(), tags)
    try:
        store.save_views(plan.varied)
        test = plan.splits.test
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
