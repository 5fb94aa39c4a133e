"""What measuring the gradient noise costs: measured windows against the same windows left alone.

    python -m benchmarks.noise_overhead [--model M] [--dataset D] [--targets N …] [--windows N]

Every window is stepped on both ways, in alternating order, on one core; CPU seconds, so that other work
on the machine matters little. In training a window is measured in every ``noise_every`` × 256 examples.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from search_spaces import TrialConfig
from trainables.assets import TrialAssets, prepare_assets
from trainables.batches import epoch_windows
from trainables.noise_scale import measured_windows
from trainables.review_splits import load_splits
from trainables.trial import Trial

TARGETS = (64, 256, 1024)


def main() -> None:
    """Print a table: a row per target batch size."""
    options = _options()
    torch.set_num_threads(1)
    config = TrialConfig(
        model=options.model,
        target_batch_size=options.targets[0],
        scaling_rule="fixed",
        dataset=options.dataset,
        train_size=options.train_size,
        eval_size=100,
        physical_batch_size=options.physical_batch_size,
    )
    assets = prepare_assets(config, load_splits(config)).trial
    print(f"noise_every {config.noise_every}, physical batch size {config.physical_batch_size}")
    print("target batch size  seconds a window  a measured one  windows measured  of training time")
    for target in options.targets:
        _print_row(config.replace(target_batch_size=target), assets, options.windows)


def _print_row(config: TrialConfig, assets: TrialAssets, windows: int) -> None:
    trial = Trial(config, assets, torch.device("cpu"))
    steps = trial.steps_per_epoch
    share = len(measured_windows(config, len(trial.train), epoch=1)) / steps
    alone, extra = _compare(trial, windows)
    print(
        f"{config.target_batch_size:17}  {alone:16.3f}  {100 * extra:+12.2f} %  "
        f"{100 * share:14.1f} %  {100 * extra * share:+14.2f} %"
    )


def _compare(trial: Trial, windows: int) -> tuple[float, float]:
    """Median CPU seconds of a window left alone, and the median of what measuring adds, relative."""
    config = trial.config
    trial.model.train()
    alone, ratios = [], []
    for number in range(windows):
        window = next(epoch_windows(len(trial.train), config.target_batch_size, config.seed, number))
        variants: dict[str, Callable[[], object]] = {
            "alone": partial(_step, trial, window, number, False),
            "measured": partial(_step, trial, window, number, True),
        }
        order = sorted(variants, reverse=bool(number % 2))
        seconds = {name: _cpu_seconds(variants[name]) for name in order}
        alone.append(seconds["alone"])
        ratios.append(seconds["measured"] / seconds["alone"] - 1)
    return statistics.median(alone), statistics.median(ratios)


def _step(trial: Trial, window: Tensor, seed: int, measure: bool) -> None:
    trial.accumulate(window, seed, measure)
    trial.engine.update()


def _cpu_seconds(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--dataset", default="demo-reviews")
    parser.add_argument("--train-size", type=int, default=None)
    parser.add_argument("--physical-batch-size", type=int, default=64)
    parser.add_argument("--targets", type=int, nargs="+", default=TARGETS, metavar="N")
    parser.add_argument("--windows", type=int, default=40, help="compared, per target batch size")
    return parser.parse_args()


if __name__ == "__main__":
    main()
