"""How many trials run at once, and on what: counted per machine, because a trial runs on one."""

import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest
from ray._private import ray_constants

from errors import UserError
from sweep.cluster import Resources, fitting_resources, ray_session
from sweep.hardware import check_version
from sweep.options import SweepOptions
from tests.helpers import message, refusal


def options(**values):
    return SweepOptions(space="batch_lr_grid", **values)


@pytest.mark.parametrize(
    ("machines", "wishes", "expected"),
    [
        ([(0, 2)], {}, Resources(0, 1, 2)),
        ([(0, 4), (0, 2)], {"cpus_per_trial": 2}, Resources(0, 2, 3)),
        ([(0, 8)], {"max_concurrent": 3}, Resources(0, 1, 3)),
        ([(1, 16)], {}, Resources(1, 4, 1)),
        ([(1, 2)], {}, Resources(1, 2, 1)),
        ([(1, 16)], {"gpus_per_trial": 0.1}, Resources(0.1, 1, 10)),
        ([(8, 64)], {"gpus_per_trial": 0.4, "cpus_per_trial": 1}, Resources(0.4, 1, 16)),
        ([(0, 64), (1, 2)], {}, Resources(1, 2, 1)),  # the cores of the other machine are of no use
        ([(8, 64), (4, 16)], {}, Resources(1, 4, 12)),
        ([(4, 2)], {"cpus_per_trial": 1}, Resources(1, 1, 2)),  # four GPUs, and cores for two
        ([(1, 8)], {"gpus_per_trial": 0}, Resources(0, 1, 8)),
    ],
)
def test_what_fits(machines, wishes, expected):
    assert fitting_resources(options(**wishes), machines) == expected


@pytest.mark.parametrize(
    ("machines", "wishes", "text"),
    [
        ([(0, 8), (0, 8)], {"gpus_per_trial": 0.5}, "0.5 needs a GPU, and no machine has one"),
        ([(0, 4), (0, 4)], {"cpus_per_trial": 6}, "6 is more than the 4 cores of one machine"),
        ([(0, 64), (1, 2)], {"cpus_per_trial": 4}, "--cpus-per-trial 4 is more than the 2 cores"),
    ],
)
def test_what_no_machine_has_is_one_line(machines, wishes, text):
    assert text in refusal(fitting_resources, options(**wishes), machines)


@pytest.mark.parametrize(
    ("kernel_module", "cuda", "text"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22", "13.0", "550"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release", "13.0", "570"),
    ],
)
def test_a_driver_that_is_too_old_is_one_line(kernel_module, cuda, text):
    said = refusal(check_version, kernel_module, cuda)
    assert f"the NVIDIA driver is {text} and this torch (CUDA {cuda}) needs 580 or newer" in said


@pytest.mark.parametrize("cuda", ["12.8", "13.0"])
def test_a_driver_that_is_new_enough_is_not_mentioned(cuda):
    check_version("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release", cuda)


@pytest.mark.slow
def test_ray_that_cannot_start_says_where_its_logs_are_and_ends_no_process_of_others(monkeypatch, capsys):
    monkeypatch.setattr(ray_constants, "DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES", 1000)
    somebody_elses = subprocess.Popen(["sleep", "600"])
    before = {child.pid for child in psutil.Process().children()}  # also of other tests
    with tempfile.TemporaryDirectory(prefix="w-", dir="/tmp") as folder:  # short, which Ray's sockets need
        monkeypatch.setenv("RAY_TMPDIR", folder)
        try:
            with pytest.raises(UserError) as raised, ray_session(None, "127.0.0.1"):
                pass
            assert "Ray does not start on this machine (Attempting to cap object store" in message(raised)
            alive = {child.pid for child in psutil.Process().children() if child.status() != "zombie"}
            assert somebody_elses.pid in alive
            assert not alive - before
        finally:
            somebody_elses.kill()
            somebody_elses.wait()
        (logs,) = Path(folder).glob("*/r/session_[0-9]*/logs")
        assert list(logs.glob("gcs_server*"))
        assert capsys.readouterr().out == f"Ray's logs are kept in {logs}\n"
