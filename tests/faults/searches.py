"""Real searches, killed at random moments, whose trials cost nothing: only their training is a formula."""

import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sweep.study  # isort: skip - before Ray, which reads what this package sets
import sweep.training  # isort: skip
from mlflow.tracking import MlflowClient
from ray import tune

from search_spaces import SearchSpace, TrialConfig
from search_spaces.search_space import SAMPLERS
from sweep.options import SweepOptions, parse_options
from tests.faults.study import Command
from trainables.assets import ModelAssets

_NAME = "formula"
_STUDY = (
    f"--space best_config --name {_NAME} --demo --train-size 64 --eval-size 20 --max-length 8 --epochs 3"
)
_LONGEST_STEP = 0.05  # seconds
_LATEST = 6.0  # seconds after Ray has started, for a kill
_DIVERGES = 6e-3  # learning rates above


class Formula(tune.Trainable):
    """Trains nothing: its accuracy is a function of the configuration and the epoch."""

    def setup(self, config: dict[str, Any], assets: object, storage: str) -> None:  # type: ignore[override]
        self._history: list[dict[str, Any]] = []

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._history = []
        return True

    def step(self) -> dict[str, Any]:
        config, epoch = TrialConfig.from_dict(self.config["trial"]), len(self._history) + 1
        time.sleep(random.uniform(0, _LONGEST_STEP))  # so that trials end in any order
        if config.base_lr > _DIVERGES:
            return {"failure": "train_loss is nan", "diverged": True, "done": True}
        distance = (math.log10(config.base_lr) + 3) ** 2 + abs(math.log2(config.target_batch_size) - 6) / 4
        val_acc = 0.9 - 0.05 * distance - 0.1 * config.head_dropout - 0.02 * (config.epochs - epoch)
        same = dict.fromkeys(("train_loss", "train_acc", "val_loss", "examples_per_second"), 1.0)
        report = same | {"evaluation": epoch, "epoch": epoch, "val_acc": val_acc, "reported_at": epoch}
        self._history.append(report | {"epoch_seconds": 0.1, "physical_batch_size": 64, "step_curve": []})
        done = epoch == config.epochs
        return {"report": self._history[-1], "earlier": [], "damaged": [], "done": done}


def main() -> int:
    """The command, with the formula in place of training."""
    sweep.training.EncoderTrainable = Formula  # type: ignore[attr-defined,misc,assignment]
    trial: Any = SimpleNamespace(digest="formula")
    sweep.study.prepare_assets = lambda config, splits: ModelAssets(trial, trial)  # type: ignore[attr-defined]
    stages = SearchSpace.stages  # the first alone: nothing is confirmed
    SearchSpace.stages = lambda space, around: stages(space, around)[:1]  # type: ignore[method-assign]
    options = parse_options(SweepOptions, sys.argv[1:])
    outcome = sweep.study.run_study(options)
    return len(outcome.failures)


def command(folder: Path, *more: str) -> Command:
    """The search of formulas in a folder."""
    return Command(folder, *more, study=_STUDY.split(), script=Path(__file__))


def found(folder: Path) -> list[tuple]:
    """What a search has come to: the generations, and each trial's epochs and outcome."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(_NAME)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    generations = {
        (key, value)
        for run in runs
        for key, value in run.data.tags.items()
        if key.startswith("generation.")
    }
    trials = []
    for run in runs:
        if run.data.tags.get("role") == "search":
            history = client.get_metric_history(run.info.run_id, "val_acc")
            epochs = sorted((metric.step, metric.value) for metric in history)
            place = int(run.data.tags["number"]), run.data.tags["trial_hash"]
            trials.append((*place, run.data.tags.get("outcome"), run.info.status, epochs))
    return [*sorted(generations), *sorted(trials)]


def killed(folder: Path, kills: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Kill searches of every sampler so often each; what was done and, in the end, what differs."""
    for sampler in SAMPLERS:
        more = ["--sampler", sampler, "--trials", "40"]
        with command(folder / f"{sampler}-whole", *more) as whole:
            assert whole.run() == 0, whole.output()
        with command(folder / f"{sampler}-killed", *more) as victim:
            moments = []
            for _ in range(kills):
                victim.start().wait_for("Ray dashboard")
                seconds = rng.uniform(0.0, _LATEST)
                time.sleep(seconds)  # for so long it trains, whatever happens
                running = "running" if victim.is_running else "finished"
                victim.kill()
                moments.append(f"{sampler}: {seconds:.2f} s after Ray had started, {running}")
            code = victim.run()
            problem = "" if code == 0 else f"exit code {code}"
            if not problem and found(victim.folder) != found(whole.folder):
                problem = "the killed search came to other trials"
        yield from ((moment, problem) for moment in moments)


if __name__ == "__main__":
    sys.exit(main())
