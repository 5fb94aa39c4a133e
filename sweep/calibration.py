"""``--calibrate``: how long trials take on this machine, from a few timed steps of each model."""

import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from search_spaces import TrialConfig
from sweep.hardware import gpu_expected
from sweep.options import SweepOptions
from sweep.plan import PlannedStudy
from sweep.terminal import working
from trainables.assets import TrialAssets, prepare_assets
from trainables.batches import windows_between
from trainables.evaluation import evaluate
from trainables.review_splits import ReviewSplits
from trainables.reviews import Reviews
from trainables.trial import Trial

SECONDS = 3.0  # of timed steps, for each model and size of window
_EXAMPLES = 1024  # of each split, at most
_PASSES = 4  # of a window, at most: further ones take the same time each


def calibrate(planned: PlannedStudy, options: SweepOptions) -> dict[str, float]:
    """Trial hash -> the seconds that its training and validation take here, if it has the device alone."""
    device = torch.device("cuda" if gpu_expected(options) else "cpu")
    threads = torch.get_num_threads()
    if device.type == "cpu":  # as many as Ray gives a trial
        torch.set_num_threads(max(1, int(options.cpus_per_trial or 1)))
    try:
        with working("timing a few steps of each model"):
            return dict(_timed(planned, device))
    finally:
        torch.set_num_threads(threads)


def _timed(planned: PlannedStudy, device: torch.device) -> Iterable[tuple[str, float]]:
    plan, sizes, splits = planned.plan, planned.splits.sizes(), _part(planned.splits)
    evaluated = sizes["val"] + min(sizes["val"], sizes["train"])  # examples per evaluation
    assets: dict[str, TrialAssets] = {}
    rates: dict[tuple[str, int], tuple[float, float]] = {}
    for trial_hash, config in plan.configs.items():
        window = min(config.target_batch_size, _PASSES * config.physical_batch_size)
        if config.model not in assets:
            assets[config.model] = prepare_assets(config, splits).trial
        if (config.model, window) not in rates:
            timed = config.replace(target_batch_size=window, scaling_rule="fixed")
            rates[config.model, window] = _seconds_per_example(timed, assets[config.model], device)
        trained, validated = rates[config.model, window]
        examples = plan.spent(config)["examples"]
        yield trial_hash, trained * examples + validated * evaluated * config.evaluation_count


def _part(splits: ReviewSplits) -> ReviewSplits:
    def first(reviews: Reviews) -> Reviews:
        return reviews.select(np.arange(min(_EXAMPLES, len(reviews.texts))))

    return replace(splits, train=first(splits.train), val=first(splits.val), test=first(splits.test))


def _seconds_per_example(
    config: TrialConfig, assets: TrialAssets, device: torch.device
) -> tuple[float, float]:
    """Of training and of evaluation; the first window, which warms everything up, is not timed."""
    trial = Trial(config, assets, device)
    trial.model.train()
    examples, started = 0, 0.0
    windows = windows_between(0, 10**6, len(trial.train), config.target_batch_size, config.seed)
    for _, number, window in windows:
        trial.accumulate(window, dropout_seed=number, measure=False)
        trial.engine.update()
        _wait(device)
        if not started:
            started = time.perf_counter()
            continue
        examples += len(window)
        if time.perf_counter() - started > SECONDS:
            break
    trained = time.perf_counter()
    evaluate(trial.model, trial.val, config.precision)
    _wait(device)
    return (trained - started) / examples, (time.perf_counter() - trained) / len(trial.val)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
