"""Whether what a sweep will write fits on the disks it writes to."""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from errors import UserError
from search_spaces import TrialConfig
from sweep.plan import Plan, gigabytes
from sweep.storage import StudyStorage
from tracking import sqlite_file

_SCRATCH_COPIES = 4  # best and last model, the one being uploaded, and the one read back


def check_disk_space(
    plan: Plan,
    to_train: Sequence[TrialConfig],
    concurrent: int,
    storage: StudyStorage,
    tracking_uri: str,
    *,
    anew: bool = False,
) -> None:
    """Raise UserError where a disk lacks room for the checkpoints at any one time, and for the models.

    Checkpoints that the plan's trials have already are part of the room there is; all there are, where
    the study is started ``anew``. More may be needed while the tracking store is away, because finished
    trials then keep their checkpoints: ``--dry-run`` says how much at most.
    """
    by_size = sorted(to_train, key=plan.weight_bytes, reverse=True)
    needs: dict[Path, int] = {
        storage.path: plan.checkpoint_bytes(by_size[:concurrent]),
        Path(tempfile.gettempdir()): _SCRATCH_COPIES * max(map(plan.weight_bytes, to_train), default=0),
    }
    if sqlite_file(tracking_uri) is not None:  # a server keeps the models on its own disk
        needs[Path.cwd()] = plan.model_bytes(to_train)
    going = [folder for folder in storage.trials.glob("*") if anew or folder.name in plan.trials]
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
