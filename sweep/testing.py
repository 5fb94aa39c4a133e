"""The test phase: download the models of each trial, reload and test them once, register the best."""

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

from errors import StoreAwayError, last_line
from search_spaces import TrialConfig
from search_spaces.plan import Plan
from sweep.cluster import Resources
from sweep.storage import StudyStorage
from sweep.terminal import say
from tracking import ChangedModelError, StudyStore, TrialRun
from trainables.batches import TokenArrays, TokenTensors
from trainables.encoder_trainable import quiet_worker, worker_device
from trainables.evaluation import Evaluation, evaluate
from trainables.exported_model import load_exported_model

ModelFolder = dict[str, bytes]


class TestPhase:
    """Tests trials, as many at once as were trained at once.

    ``test_splits`` maps a model to its tokenised test split. ``failures`` maps trial hash to reason;
    those trials stay untested, and the next run of the command tries them again. A trial's checkpoints
    are removed once it is tested: until then they are the only copy of what MLflow may have lost.
    """

    __test__ = False  # not one of pytest's

    def __init__(
        self, test_splits: Mapping[str, TokenArrays], resources: Resources, storage: StudyStorage
    ) -> None:
        self.failures: dict[str, str] = {}
        self._splits = test_splits
        self._references = {model: ray.put(arrays) for model, arrays in test_splits.items()}
        self._evaluate = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(_evaluate_models)
        self._concurrent = resources.concurrent
        self._storage = storage

    def run(self, trials: Mapping[str, tuple[TrialConfig, TrialRun]]) -> None:
        """Test every trial, by hash; raises StoreAwayError if the store is away for too long."""
        under_way: deque = deque()
        for trial_hash, (config, run) in trials.items():
            if len(under_way) >= self._concurrent:
                self._finish(*under_way.popleft())
            with self._alone(trial_hash, run, "model cannot be downloaded"):
                split = self._references[config.model]
                result = self._evaluate.remote(_download(run), split, config.precision)
                under_way.append((config, run, result))
        while under_way:
            self._finish(*under_way.popleft())

    def _finish(
        self, config: TrialConfig, run: TrialRun, result: "ray.ObjectRef[dict[str, Evaluation]]"
    ) -> None:
        split = self._splits[config.model]
        with self._alone(config.trial_hash, run, "test failed"):
            evaluations = ray.get(result)
            evaluations.setdefault("last", evaluations["best"])
            run.log_test(evaluations, split.labels, split.row_ids)
            self._storage.trial_folder(config.trial_hash).remove()

    @contextmanager
    def _alone(self, trial_hash: str, run: TrialRun, what: str) -> Iterator[None]:
        """One trial's failure must not take the others with it; a store that is away stops them all."""
        try:
            yield
        except StoreAwayError:
            raise
        except ChangedModelError as error:
            self._fail(trial_hash, run, f"{error}: run again to upload it anew")
            with self._alone(trial_hash, run, "its models cannot be deleted"):
                run.discard_models()
        except Exception as error:
            self._fail(trial_hash, run, f"{what}: {last_line(error)}")

    def _fail(self, trial_hash: str, run: TrialRun, why: str) -> None:
        self.failures[trial_hash] = why
        with suppress(Exception):  # the store may be what is broken
            run.fail(why)


def _download(run: TrialRun) -> dict[str, ModelFolder]:
    """The best epoch's model, and the last epoch's if it is another model, as files in memory."""
    same = run.tags["best_model"] == run.tags["last_model"]
    models = {}
    for which in ("best",) if same else ("best", "last"):
        with tempfile.TemporaryDirectory() as folder:
            path = run.download_model(which, Path(folder))
            models[which] = {file.name: file.read_bytes() for file in path.iterdir()}
    return models


def _evaluate_models(
    models: dict[str, ModelFolder], test_split: TokenArrays, precision: str
) -> dict[str, Evaluation]:
    """Runs on a worker: write each model to disk, reload it, evaluate it on the test split."""
    quiet_worker()
    device = worker_device()
    results = {}
    for which, files in models.items():
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            exported = load_exported_model(Path(folder))
        data = TokenTensors(test_split, exported.pad_token, device)
        results[which] = evaluate(exported.model.to(device), data, precision)
    return results


def register_best(plan: Plan, runs: Mapping[str, TrialRun], store: StudyStore, meets_others: bool) -> None:
    """Register the finished trial with the highest val_acc, the earliest in the plan on ties.

    ``runs`` are all of the study. If the plan ``meets_others``, trials outside the plan with the same
    splits count too, so that a smaller plan cannot take the alias from a better model.
    """
    planned = [run for h in plan.trials if (run := runs.get(h))]
    others = [run for h, run in runs.items() if h not in plan.trials and plan.has_splits_of(run.params)]
    own = _highest(planned)
    others.sort(key=lambda run: run.started)  # of equals the alias stays with the first
    best = _highest([*planned, *others]) if meets_others else own
    if best is None:
        return
    uri, apart = store.register_best(best), ""
    if best is not own:
        apart = ", outside this plan" + (f": {found}" if (found := plan.apart(best.params)) else "")
    say(f"best model     {uri}  ({_with_val_acc(best)}{apart})")
    if own and best is not own:
        say(f"best of plan   {_with_val_acc(own)}")


def _highest(runs: Iterable[TrialRun]) -> TrialRun | None:
    """The tested one with the highest val_acc, the first on ties."""
    tested = [run for run in runs if run.is_tested]
    return max(tested, key=lambda run: run.metrics["best_val_acc"], default=None)


def _with_val_acc(run: TrialRun) -> str:
    return f"{run.name}, val_acc {run.metrics['best_val_acc']:.4f}"
