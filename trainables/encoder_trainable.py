"""The Ray Tune class around Trial: one actor, one trial at a time, one ``step()`` per evaluation."""

import os
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from search_spaces import TrialConfig
from trainables.accumulation import DoesNotFitError, free_memory
from trainables.assets import TrialAssets
from trainables.checkpoint import TrialFolder
from trainables.trial import NonFiniteLossError, Report, Trial


class EncoderTrainable(tune.Trainable):
    """Trains the TrialConfig in ``config["trial"]``.

    ``assets`` maps a model to the object reference of its TrialAssets; ``storage`` is the study's folder.
    The trial keeps its checkpoints in that folder, and resumes from them when it is built again, on any
    machine: after the death of a worker, of a machine, or of the whole command.
    """

    _trial: Trial | None
    _folder: TrialFolder

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], assets: dict[str, "ray.ObjectRef[TrialAssets]"], storage: str
    ) -> None:
        """Build nothing yet: Tune retries a trial if its step fails, but not if its setup fails."""
        quiet_worker()
        self._assets = assets
        self._study_storage = Path(storage)
        self._trial = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let Tune give this actor its next trial, which saves a process start and the imports."""
        self._trial = None
        free_memory()  # Accelerate keeps a model in a reference cycle; the next trial needs the memory
        return True

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation, save, and return the ``report``; ``done`` with the last one.

        The first step after resuming trains nothing. It returns the checkpoint's last evaluation and the
        ``earlier`` ones, because the worker that trained them may have been killed before they reached
        MLflow, and the ``damaged`` checkpoints. A trial that ``diverged`` or does not fit into memory
        returns its ``failure``: a retry would end in the same way.
        """
        earlier: list[Report] = []
        damaged: list[str] = []
        is_resumed = False
        if self._trial is None:
            self._trial, damaged = self._build(TrialConfig.from_dict(self.config["trial"]))
            is_resumed = bool(self._trial.history)
        trial = self._trial
        if is_resumed:
            *earlier, report = trial.history
        else:
            try:
                report = trial.run_to_evaluation()
            except (NonFiniteLossError, DoesNotFitError) as error:
                diverged = isinstance(error, NonFiniteLossError)
                return {"failure": str(error), "diverged": diverged, "done": True}
            self._folder.save(trial.evaluation, trial.save)
        return {"report": report, "earlier": earlier, "damaged": damaged, "done": trial.is_finished}

    def _build(self, config: TrialConfig) -> tuple[Trial, list[str]]:
        """The trial, restored from its newest good checkpoint if there is one; and the damaged ones."""
        assets = ray.get(self._assets[config.model])
        trial = Trial(config, assets, worker_device())
        self._folder = TrialFolder(self._study_storage, config.trial_hash)
        self._folder.remove_unfinished()
        found = self._folder.newest(assets.digest)
        if found.folder:
            trial.restore(found.folder)
        return trial, found.damaged


def worker_device() -> torch.device:
    """The GPU that Ray assigned, limited to the trial's share, else the CPU with the assigned cores."""
    if ray.get_gpu_ids():
        if not torch.cuda.is_available():
            raise RuntimeError(
                "Ray assigned a GPU that PyTorch cannot use: install a CUDA build of torch that fits "
                "the driver, or give --gpus-per-trial 0"
            )
        device = torch.device("cuda", 0)
        share = ray.get_runtime_context().get_assigned_resources().get("GPU", 1.0)
        if share < 1:  # with a limit, PyTorch frees its cache before it takes another trial's memory
            torch.cuda.set_per_process_memory_fraction(share, device)
        return device
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return torch.device("cpu")


def quiet_worker() -> None:
    """Keep libraries' progress bars and notices out of the worker's log."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
