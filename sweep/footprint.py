"""The disk that a study's trials take, and whether there is room for it."""

import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from search_spaces import Stage, TrialConfig
from search_spaces.stages import Outcomes
from sweep.storage import StudyStorage
from tracking import sqlite_file

_BESIDE_TENSORS = 1_000_000  # bytes of a checkpoint: histories, names of tensors
_BESIDE_WEIGHTS = 5_000_000  # bytes of a model: its tokenizer, and the code that loads it
_SCRATCH_COPIES = 3  # of weights: best and last model, and the copy that is uploaded


@dataclass(frozen=True)
class Footprint:
    """Bytes that trials write, from their models' parameters; ``largest`` stands for unknown trials."""

    parameters: Mapping[str, int]  # of each model
    largest: TrialConfig

    def checkpoints(self, configs: Iterable[TrialConfig]) -> int:
        """Bytes of the trials' checkpoints, at most, while they are trained."""
        return 2 * self._bytes(configs, 4, _BESIDE_TENSORS)  # weights, best weights, Adam's two moments

    def trained(self, configs: Iterable[TrialConfig]) -> int:
        """Bytes of the last checkpoints of trained trials until the trials are tested."""
        return self._bytes(configs, 2, _BESIDE_TENSORS)  # weights, best weights

    def models(self, configs: Iterable[TrialConfig]) -> int:
        """Bytes of the models of the best and the last epoch, which stay in MLflow, at most."""
        return 2 * self._bytes(configs, 1, _BESIDE_WEIGHTS)

    def weights(self, config: TrialConfig) -> int:
        """Bytes of one set of a trial's weights, in fp32."""
        return 4 * self.parameters[config.model]

    def _bytes(self, configs: Iterable[TrialConfig], sets: int, beside: int) -> int:
        return sum(sets * self.weights(config) + beside for config in configs)

    def in_training(
        self, stages: Iterable[Stage], outcomes: Outcomes, ended: Set[str]
    ) -> list[TrialConfig]:
        """The trials that may have checkpoints at once, of the stage that needs the most room."""
        return max(
            (self._left(stage, stage.at_once, outcomes, ended) for stage in stages), key=self.checkpoints
        )

    def kept(self, stages: Iterable[Stage], outcomes: Outcomes, ended: Set[str]) -> list[TrialConfig]:
        """The trials whose models these stages will still keep."""
        kept = [self._left(stage, stage.trials, outcomes, ended) for stage in stages if stage.keeps_models]
        return [config for configs in kept for config in configs]

    def _left(self, stage: Stage, most: int, outcomes: Outcomes, ended: Set[str]) -> list[TrialConfig]:
        known = [each.config for each in stage.unfinished(outcomes, ended)]
        unknown = stage.trials - len(stage.proposed(outcomes))
        return known + [self.largest] * min(unknown, max(0, most - len(known)))


def check_disk_space(
    footprint: Footprint,
    to_train: Sequence[TrialConfig],
    concurrent: int,
    storage: StudyStorage,
    tracking_uri: str,
    *,
    kept: Sequence[TrialConfig],
) -> None:
    """Raise UserError if a disk lacks room for what training writes to it at any one time.

    The models of the trials in ``kept`` stay in MLflow. Checkpoints that the trials to train already have
    count as free room. More may be needed while MLflow is away, because trained trials then wait:
    ``--dry-run`` says how much at most.
    """
    by_size = sorted(to_train, key=footprint.weights, reverse=True)
    scratch = _SCRATCH_COPIES * max(map(footprint.weights, to_train), default=0)
    checkpoints = footprint.checkpoints(by_size[:concurrent]) + footprint.trained(by_size[concurrent:])
    needs = {storage.path: checkpoints + scratch}
    if sqlite_file(tracking_uri) is not None:  # a server keeps the models on its own disk
        needs[Path.cwd()] = footprint.models(kept)
    hashes = {config.trial_hash for config in to_train}
    going = [folder for folder in storage.trials.glob("*") if folder.name in hashes]
    taken = {storage.path.stat().st_dev: sum(map(_size, going))}
    on_device: defaultdict[int, int] = defaultdict(int)
    for folder, needed in needs.items():
        device = folder.stat().st_dev
        on_device[device] += needed
        free = shutil.disk_usage(folder).free + taken.get(device, 0)
        if on_device[device] > free:
            raise UserError(
                f"the disk of {folder} has {gigabytes(free)} free and the study needs "
                f"{gigabytes(on_device[device])}: make room, or give another --storage-path"
            )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
