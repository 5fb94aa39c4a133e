"""The Ray Tune class around Trial: one actor, one trial at a time, one ``step()`` per epoch."""

import gc
import os
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from search_spaces import TrialConfig
from trainables.trial import EpochReport, Trial, TrialAssets, best_epoch


class EncoderTrainable(tune.Trainable):
    """Trains the TrialConfig in ``config["trial"]``.

    ``assets`` maps a model to the object reference of its TrialAssets; ``checkpoints`` maps a trial
    hash to the folder of a checkpoint that an earlier invocation left.
    """

    _earlier: list[EpochReport]

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        assets: dict[str, "ray.ObjectRef[TrialAssets]"],
        checkpoints: dict[str, str],
    ) -> None:
        """Build the trial, and go on from an earlier invocation's checkpoint where there is one."""
        quiet_worker()
        self._assets = assets
        self._checkpoints = checkpoints
        self._build(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let Tune hand this actor its next trial, which saves a process start and the imports."""
        del self._trial
        gc.collect()  # Accelerate ties a model to itself; its GPU memory must not wait for a later turn
        self._build(new_config)
        return True

    def step(self) -> EpochReport:
        """One epoch; the report carries ``done`` with the last one.

        The first one after a restore also carries the ``earlier`` epochs: whoever trained them may have
        been killed before they were written down.
        """
        trial = self._trial
        earlier, self._earlier = self._earlier, []
        # a trial that was cut off after its last epoch has nothing left to train
        report = trial.history[-1] if trial.is_finished else trial.run_epoch()
        best = best_epoch(trial.history)
        return report | {
            "best_epoch": best,
            "best_val_acc": trial.history[best - 1]["val_acc"],
            "done": trial.is_finished,
            "earlier": earlier,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The trial's whole state."""
        self._trial.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str | None) -> None:  # type: ignore[override]
        """Go on from a checkpoint that Tune kept."""
        if checkpoint:
            self._restore(checkpoint)

    def _build(self, config: dict[str, Any]) -> None:
        trial_config = TrialConfig.from_dict(config["trial"])
        assets = ray.get(self._assets[trial_config.model])
        self._trial = Trial(trial_config, assets, worker_device())
        self._earlier = []
        if checkpoint := self._checkpoints.get(trial_config.trial_hash):
            self._restore(checkpoint)

    def _restore(self, checkpoint: str) -> None:
        self._trial.restore(Path(checkpoint))
        self._earlier = list(self._trial.history)


def worker_device() -> torch.device:
    """The GPU that Ray assigned to this worker, else the CPU with the cores it was given."""
    if ray.get_gpu_ids():
        if not torch.cuda.is_available():
            raise RuntimeError(
                "Ray assigned a GPU that PyTorch cannot use: install a CUDA build of torch that fits "
                "the driver, or give --gpus-per-trial 0"
            )
        return torch.device("cuda", 0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return torch.device("cpu")


def quiet_worker() -> None:
    """Keep libraries' progress bars and notices out of the worker's log."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
