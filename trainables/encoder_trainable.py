"""The Ray Tune class around Trial: one actor, one trial at a time, one ``step()`` per epoch."""

import os
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from search_spaces import TrialConfig
from trainables.memory import free_memory
from trainables.trial import EpochReport, NonFiniteLossError, Trial, TrialAssets, best_epoch
from trainables.trial_folder import TrialFolder


class EncoderTrainable(tune.Trainable):
    """Trains the TrialConfig in ``config["trial"]``.

    ``assets`` maps a model to the object reference of its TrialAssets; ``storage`` is the study's
    folder. The trial keeps its own checkpoints there, and goes on from them wherever and whenever it is
    built again: after the death of a worker, of a machine, or of the whole command.
    """

    _trial: Trial | None
    _folder: TrialFolder
    _is_resumed: bool
    _damaged: list[str]

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], assets: dict[str, "ray.ObjectRef[TrialAssets]"], storage: str
    ) -> None:
        """Note what to train; the first step builds it."""
        quiet_worker()
        self._assets = assets
        self._study_storage = Path(storage)
        self._trial = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let Tune hand this actor its next trial, which saves a process start and the imports.

        Tune fails a trial for good where this fails, and tries it again where a step does.
        """
        self._trial = None
        free_memory()  # Accelerate ties a model to itself; what the next trial, or another worker, can use
        return True

    def step(self) -> EpochReport:
        """One epoch, saved before it is reported; the report carries ``done`` with the last one.

        The first one after a resumption trains nothing: it reports the epochs that there are, ``earlier``
        ones too, because whoever trained them may have been killed before they were written down, and
        the next may fail. It says which checkpoints were ``damaged``. A trial that diverged reports its
        ``failure``: to try again would change nothing.
        """
        trial = self._trial = self._trial or self._build(self.config)
        is_resumed, self._is_resumed = self._is_resumed, False
        try:
            report = trial.history[-1] if is_resumed else self._run_epoch(trial)
        except NonFiniteLossError as error:
            return {"failure": str(error), "done": True}
        damaged, self._damaged = self._damaged, []
        best = best_epoch(trial.history)
        return report | {
            "best_epoch": best,
            "best_val_acc": trial.history[best - 1]["val_acc"],
            "done": trial.is_finished,
            "earlier": trial.history[:-1] if is_resumed else [],
            "damaged": damaged,
        }

    def _run_epoch(self, trial: Trial) -> EpochReport:
        report = trial.run_epoch()
        self._folder.save(report["epoch"], trial.save)
        return report

    def _build(self, config: dict[str, Any]) -> Trial:
        """The trial, gone on with from its newest good checkpoint where there is one."""
        trial_config = TrialConfig.from_dict(config["trial"])
        assets = ray.get(self._assets[trial_config.model])
        trial = Trial(trial_config, assets, worker_device())
        self._folder = TrialFolder(self._study_storage, trial_config.trial_hash)
        self._folder.remove_unfinished()
        found = self._folder.newest(assets.digest)
        self._damaged = found.damaged
        if found.folder:
            trial.restore(found.folder)
        self._is_resumed = bool(trial.history)
        return trial


def worker_device() -> torch.device:
    """The GPU that Ray assigned, held to its share of it, else the CPU with the cores that were given."""
    if ray.get_gpu_ids():
        if not torch.cuda.is_available():
            raise RuntimeError(
                "Ray assigned a GPU that PyTorch cannot use: install a CUDA build of torch that fits "
                "the driver, or give --gpus-per-trial 0"
            )
        device = torch.device("cuda", 0)
        share = ray.get_runtime_context().get_assigned_resources().get("GPU", 1.0)
        if share < 1:  # PyTorch then gives back what it caches before it takes the neighbour's memory
            torch.cuda.set_per_process_memory_fraction(share, device)
        return device
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return torch.device("cpu")


def quiet_worker() -> None:
    """Keep libraries' progress bars and notices out of the worker's log."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
