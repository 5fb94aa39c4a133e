"""The test phase: download each trial's models from MLflow, reload them, test them once."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from errors import StoreAwayError, last_line
from search_spaces import TrialConfig
from sweep.cluster import Resources
from tracking import ChangedModelError, TrialRun
from trainables.encoder_trainable import quiet_worker, worker_device
from trainables.evaluation import Evaluation, evaluate
from trainables.exported_model import load_exported_model
from trainables.tokens import TokenArrays
from trainables.windows import TokenTensors

ModelFolder = dict[str, bytes]
Patiently = Callable[[Callable[[], Any]], Any]  # calls a function of the store until it works


@dataclass(frozen=True)
class UntestedTrial:
    """A trial whose models are in MLflow and whose test results are not."""

    config: TrialConfig
    run: TrialRun


def run_tests(
    trials: Iterable[UntestedTrial],
    test_splits: dict[str, TokenArrays],
    resources: Resources,
    patiently: Patiently,
) -> dict[str, str]:
    """Test every trial, as many at once as were trained at once.

    ``test_splits`` maps a model to its tokenised test split; ``patiently`` calls the store. Returns
    trial hash -> reason for what failed; those trials stay untested, and the next invocation tries them
    again. Raises StoreAwayError where the store is away for too long.
    """
    tests = _Tests(test_splits, resources, patiently)
    for trial in trials:
        if tests.under_way >= resources.concurrent:
            tests.finish_oldest()
        tests.start(trial)
    while tests.under_way:
        tests.finish_oldest()
    return tests.failures


class _Tests:
    """The tests under way, the oldest first, and why those failed that did."""

    def __init__(
        self, test_splits: dict[str, TokenArrays], resources: Resources, patiently: Patiently
    ) -> None:
        self.failures: dict[str, str] = {}
        self._splits = test_splits
        self._references = {model: ray.put(arrays) for model, arrays in test_splits.items()}
        self._evaluate = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(_evaluate_models)
        self._patiently = patiently
        self._running: deque = deque()

    @property
    def under_way(self) -> int:
        """How many were started and are not finished."""
        return len(self._running)

    def start(self, trial: UntestedTrial) -> None:
        """Download the trial's models, and have a worker evaluate them."""
        with self._alone(trial, "model cannot be downloaded"):
            models = self._patiently(partial(_download, trial.run))
            split = self._references[trial.config.model]
            self._running.append((trial, self._evaluate.remote(models, split, trial.config.precision)))

    def finish_oldest(self) -> None:
        """Wait for the results of the oldest, and write them."""
        trial, reference = self._running.popleft()
        split = self._splits[trial.config.model]
        with self._alone(trial, "test failed"):
            results = ray.get(reference)
            best, last = results["best"], results.get("last", results["best"])
            self._patiently(lambda: trial.run.log_test(best, last, split.labels, split.row_ids))

    @contextmanager
    def _alone(self, trial: UntestedTrial, what: str) -> Iterator[None]:
        """One trial's failure must not take the others with it; a store that is away stops them all."""
        try:
            yield
        except StoreAwayError:
            raise
        except ChangedModelError as error:
            self._patiently(trial.run.discard_models)
            self._fail(trial, f"{error}: run again to train it anew")
        except Exception as error:
            self._fail(trial, f"{what}: {last_line(error)}")

    def _fail(self, trial: UntestedTrial, why: str) -> None:
        self.failures[trial.config.trial_hash] = why
        with suppress(Exception):  # the store may be what is broken
            trial.run.fail(why)


def _download(run: TrialRun) -> dict[str, ModelFolder]:
    """The best epoch's model, and the last epoch's where it is another one, as files in memory."""
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
