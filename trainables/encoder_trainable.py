"""The Ray Tune class around Trial: one actor, one trial at a time, one ``step()`` per epoch."""

import gc
import os
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from search_spaces import TrialConfig
from trainables.trial import EpochReport, NonFiniteLossError, Trial, TrialAssets, best_epoch
from trainables.trial_folder import TrialFolder


class EncoderTrainable(tune.Trainable):
    """Trains the TrialConfig in ``config["trial"]``.

    ``assets`` maps a model to the object reference of its TrialAssets; ``storage`` is the study's
    folder. The trial keeps its own checkpoints there, and goes on from them wherever and whenever it is
    built again: after the death of a worker, of a machine, or of the whole command.
    """

    _earlier: list[EpochReport]
    _damaged: list[str]

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], assets: dict[str, "ray.ObjectRef[TrialAssets]"], storage: str
    ) -> None:
        """Build the trial, and go on from its newest good checkpoint where there is one."""
        quiet_worker()
        self._assets = assets
        self._study_storage = Path(storage)
        self._build(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let Tune hand this actor its next trial, which saves a process start and the imports."""
        del self._trial
        gc.collect()  # Accelerate ties a model to itself; its GPU memory must not wait for a later turn
        self._build(new_config)
        return True

    def step(self) -> EpochReport:
        """One epoch, saved before it is reported; the report carries ``done`` with the last one.

        The first one after a resumption also carries the ``earlier`` epochs, because whoever trained
        them may have been killed before they were written down, and says which checkpoints were
        ``damaged``. A trial that diverged reports its ``failure``: to try again would change nothing.
        """
        trial = self._trial
        try:
            # a trial that was cut off after its last epoch has nothing left to train
            report = trial.history[-1] if trial.is_finished else self._run_epoch()
        except NonFiniteLossError as error:
            return {"failure": str(error), "done": True}
        earlier, self._earlier = self._earlier, []
        damaged, self._damaged = self._damaged, []
        best = best_epoch(trial.history)
        return report | {
            "best_epoch": best,
            "best_val_acc": trial.history[best - 1]["val_acc"],
            "done": trial.is_finished,
            "earlier": earlier,
            "damaged": damaged,
        }

    def _run_epoch(self) -> EpochReport:
        report = self._trial.run_epoch()
        self._folder.save(report["epoch"], self._trial.save)
        return report

    def _build(self, config: dict[str, Any]) -> None:
        trial_config = TrialConfig.from_dict(config["trial"])
        assets = ray.get(self._assets[trial_config.model])
        self._trial = Trial(trial_config, assets, worker_device())
        self._folder = TrialFolder(self._study_storage, trial_config.trial_hash)
        self._folder.remove_unfinished()
        found = self._folder.newest(assets.digest)
        self._damaged = found.damaged
        if found.folder:
            self._trial.restore(found.folder)
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
