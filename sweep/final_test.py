"""The test phase: download each trial's models from MLflow, reload them, test them once."""

import contextlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from search_spaces import StoreAwayError, TrialConfig
from sweep.cluster import Resources
from sweep.recorder import reason
from tracking import ChangedModelError, TrialRun
from trainables.encoder_trainable import quiet_worker, worker_device
from trainables.evaluation import Evaluation, evaluate
from trainables.exported_model import load_exported_model
from trainables.tokens import TokenArrays
from trainables.windows import TokenTensors

ModelFolder = dict[str, bytes]


@dataclass(frozen=True)
class UntestedTrial:
    """A trial whose models are in MLflow and whose test results are not."""

    config: TrialConfig
    run: TrialRun


def run_tests(
    trials: Iterable[UntestedTrial],
    test_splits: dict[str, TokenArrays],
    resources: Resources,
    patiently: Callable[[Callable[[], Any]], Any],
) -> dict[str, str]:
    """Test every trial, as many at once as were trained at once.

    ``test_splits`` maps a model to its tokenised test split; ``patiently`` calls the store. Returns
    trial hash -> reason for what failed; those trials stay untested, and the next invocation tries them
    again. Raises StoreAwayError where the store is away for too long.
    """
    references = {model: ray.put(arrays) for model, arrays in test_splits.items()}
    evaluate_remotely = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(_evaluate_models)
    failures: dict[str, str] = {}
    running: deque = deque()

    def fail(trial: UntestedTrial, why: str) -> None:
        failures[trial.config.trial_hash] = why
        with contextlib.suppress(Exception):  # the store may be what is broken
            trial.run.fail(why)

    def finish_oldest() -> None:
        trial, reference = running.popleft()
        arrays = test_splits[trial.config.model]
        try:
            results = ray.get(reference)
            best, last = results["best"], results.get("last", results["best"])
            patiently(lambda: trial.run.log_test(best, last, arrays.labels, arrays.row_ids))
        except StoreAwayError:
            raise
        except Exception as error:  # one trial's test must not take the others with it
            fail(trial, f"test failed: {reason(error)}")

    for trial in trials:
        if len(running) >= resources.concurrent:
            finish_oldest()
        try:
            models = patiently(partial(_download, trial.run))
        except StoreAwayError:
            raise
        except ChangedModelError as error:
            trial.run.discard_models()
            fail(trial, f"{error}: run again to train it anew")
            continue
        except Exception as error:
            fail(trial, f"model cannot be downloaded: {reason(error)}")
            continue
        reference = evaluate_remotely.remote(models, references[trial.config.model], trial.config.precision)
        running.append((trial, reference))
    while running:
        finish_oldest()
    return failures


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
