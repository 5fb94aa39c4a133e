"""One real sweep, watched: where it listens, whom it answers, what it leaves behind."""

import contextlib
import os
import stat
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from subprocess import PIPE, Popen

import psutil
import pytest

from tests.faults import processes
from tests.faults.study import Command

pytestmark = pytest.mark.slow
SWEEP = (
    "--space fixed_lr --demo --models bert-tiny --target-batch-sizes 64 --epochs 20 --train-size 320 "
    "--eval-size 60 --max-length 32"
).split()
ASK = "import ray; from ray._raylet import GcsClient; "  # imported by the time it is told the address
ASK += "GcsClient(input()).get_all_node_info(timeout=10); print('joined')"
EMPTY = "torchinductor_"  # torch makes this folder when it is imported, for what it compiles: nothing


class Watched:
    """What was seen of a sweep while it ran, and where it could have written."""

    def __init__(self, folder):
        self.home, self.temporary, self.stranger = (folder / name for name in ("home", "tmp", "stranger"))
        for place in (self.home, self.temporary, self.stranger):
            place.mkdir()
        places = {"HOME": str(self.home), "TMPDIR": str(self.temporary)}
        self.command = Command(folder / "work", study=SWEEP, environment=places)
        self.listening, self.dashboard, self.joined = set(), {}, None
        self.rays, self.open_to_others = set(), set()

    def run(self):
        without = {"HOME": str(self.stranger), "TMPDIR": str(self.stranger), "RAY_AUTH_MODE": "disabled"}
        stranger, streams = [sys.executable, "-c", ASK], dict.fromkeys(("stdin", "stdout", "stderr"), PIPE)
        with Popen(stranger, env=os.environ | without, text=True, **streams) as waiting:
            with self.command.start():
                while self.command.is_running:
                    self._look_at_ports()
                    self._look_at_files()
                    if not self.dashboard and "epoch 1/" in self.command.said():
                        self._ask(waiting)
                    time.sleep(0.1)
            waiting.kill()  # where it was never told an address
        assert self.command.wait() == 0, self.command.said()
        return self

    def in_temporary(self):
        return [path for path in self.temporary.iterdir() if not path.name.startswith(EMPTY)]

    def _look_at_files(self):
        """What another account could reach, were its way to ``temporary`` and ``home`` free, as in /tmp."""
        self.rays |= {path.name for path in self.temporary.glob("*/r/session_[0-9]*/sockets/*")}
        token = self.home / ".ray" / "auth_token"
        for path in (token, *self.in_temporary()):
            with contextlib.suppress(FileNotFoundError):
                if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
                    self.open_to_others.add(f"{mode:o} {path.name}")

    def _look_at_ports(self):
        for process in processes.family(self.command.folder):
            with contextlib.suppress(psutil.Error):  # it ended
                found = process.net_connections("inet")
                self.listening |= {(process.name(), c.laddr.ip, c.laddr.port) for c in found if not c.raddr}

    def _ask(self, waiting):
        """The dashboard without and with a wrong token; and the cluster from a process without one."""
        address = next(w for w in self.command.said().split() if w.startswith("http://127.0.0.1:"))
        for token in ("", "Bearer wrong"):
            headers = {"Authorization": token} if token else {}
            request = urllib.request.Request(f"{address}/api/jobs/", headers=headers)
            try:
                self.dashboard[token] = urllib.request.urlopen(request, timeout=60).status
            except urllib.error.HTTPError as error:
                self.dashboard[token] = error.code
        gcs = next(f"127.0.0.1:{port}" for name, _, port in self.listening if name == "gcs_server")
        out, why = waiting.communicate(gcs)
        self.joined = "joined" in out, why


@pytest.fixture(scope="module")
def watched():
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="w-") as folder:
        for name in list(os.environ):
            if name.startswith(("RAY_", "MLFLOW_", "MPL", "XDG")):
                patch.delenv(name)
        yield Watched(Path(folder)).run()  # in a short folder, which Ray's sockets need


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_server_listens_on_loopback(watched):
    assert {name for name, _, _ in watched.listening} >= {"gcs_server", "raylet"}
    outside = {
        found for found in watched.listening if found[1] not in {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    }
    assert not outside


def test_nobody_is_let_in_without_the_token(watched):
    assert set(watched.dashboard) == {"", "Bearer wrong"}
    assert set(watched.dashboard.values()) <= {401, 403}
    joined, why = watched.joined
    assert not joined
    assert "authenticat" in why.lower()


def test_token_and_files_are_their_owners_alone_at_every_moment(watched):
    assert {"raylet", "plasma_store"} <= watched.rays
    assert not watched.open_to_others
    assert stat.S_IMODE((watched.home / ".ray" / "auth_token").stat().st_mode) == 0o600


def test_nothing_is_left_outside_but_the_token_and_a_list_of_fonts(watched):
    home = {name for name in files(watched.home) if not name.startswith(".cache/matplotlib/fontlist")}
    assert home == {".ray/auth_token"}
    assert not watched.in_temporary()
    assert not list(watched.temporary.glob("*/*"))
    work = {path.name for path in watched.command.folder.iterdir()}
    assert work <= {"mlflow.db", "mlruns", "ray_results", "results", "output.log"}
