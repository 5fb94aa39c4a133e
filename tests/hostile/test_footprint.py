"""One real study on a tracking server with passwords, watched.

Where does it listen, whom does it answer, who sees the password, what does it leave behind?
"""

import contextlib
import os
import stat
import sys
import tempfile
import time
from pathlib import Path
from subprocess import PIPE, Popen

import psutil
import pytest
import requests

from tests.faults import processes
from tests.faults.servers import mlflow_server
from tests.faults.study import Command

pytestmark = pytest.mark.slow
USER, SECRET = "admin", "s3cr3t-of-the-store"
SWEEP = (
    "--space fixed_lr --demo --models bert-tiny --target-batch-sizes 64 --epochs 20 --train-size 320 "
    "--eval-size 60 --max-length 32"
).split()
CONFIGURATION = """\
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = {user}
admin_password = {secret}
"""
ASK = "import ray; from ray._raylet import GcsClient; "  # imported by the time it is told the address
ASK += "GcsClient(input()).get_all_node_info(timeout=10); print('joined')"
EMPTY = "torchinductor_"  # torch makes this folder when it is imported, for what it compiles: nothing


class Watched:
    """What was seen of a study while it ran, and where it could have written."""

    def __init__(self, folder):
        self.folder = folder
        names = ("home", "tmp", "stranger", "private")
        self.home, self.temporary, self.stranger, self.private = (folder / name for name in names)
        for name in names:
            (folder / name).mkdir()
        self.listening, self.dashboard, self.joined = set(), {}, None
        self.rays, self.open_to_others, self.with_secret = set(), set(), set()

    def run(self):
        configuration = self.private / "basic_auth.ini"
        configuration.write_text(CONFIGURATION.format(folder=self.private, user=USER, secret=SECRET))
        environment = {
            "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "key",
        }
        database = f"sqlite:///{self.folder}/mlflow.db"
        with mlflow_server(self.folder / "mlflow", database, environment=environment) as store:
            address = store.uri.replace("://", f"://{USER}:{SECRET}@")
            places = {"HOME": str(self.home), "TMPDIR": str(self.temporary)}
            words = [*SWEEP, "--tracking-uri", address]
            self.command = Command(self.folder / "work", study=words, environment=places)
            self._watch()
            self.found = requests.get(
                f"{store.uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=fixed_lr-demo",
                auth=(USER, SECRET),
                timeout=10,
            ).json()
        assert self.command.wait() == 0, self.command.said()
        return self

    def in_temporary(self):
        return [path for path in self.temporary.iterdir() if not path.name.startswith(EMPTY)]

    def _watch(self):
        without = {"HOME": str(self.stranger), "TMPDIR": str(self.stranger), "RAY_AUTH_MODE": "disabled"}
        stranger, streams = [sys.executable, "-c", ASK], dict.fromkeys(("stdin", "stdout", "stderr"), PIPE)
        with Popen(stranger, env=os.environ | without, text=True, **streams) as waiting:
            with self.command.start():
                while self.command.is_running:
                    self._look_at_ports()
                    self._look_at_files()
                    if not self.dashboard and "epoch 1/" in self.command.said():
                        self._look_for_the_secret()
                        self._ask(waiting)
                    time.sleep(0.1)
            waiting.kill()  # if it was never told an address

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

    def _look_for_the_secret(self):
        """In the command lines of all its processes, and in what Ray has written so far."""
        for process in processes.family(self.command.folder):
            with contextlib.suppress(psutil.Error):
                words = [word for word in process.cmdline() if SECRET in word]
                self.with_secret |= {f"{process.name()}: {word}" for word in words}
        self.with_secret |= holding(self.temporary)

    def _ask(self, waiting):
        """The dashboard without and with a wrong token; and the cluster from a process without one."""
        address = next(w for w in self.command.said().split() if w.startswith("http://127.0.0.1:"))
        for token in ("", "Bearer wrong"):
            headers = {"Authorization": token} if token else {}
            answer = requests.get(f"{address}/api/jobs/", headers=headers, timeout=60)
            self.dashboard[token] = answer.status_code
        gcs = next(f"127.0.0.1:{port}" for name, _, port in self.listening if name == "gcs_server")
        out, why = waiting.communicate(gcs)
        self.joined = "joined" in out, why


def holding(folder):
    """The files in which the secret is."""
    found = set()
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it went, or is a socket
            if path.is_file() and SECRET.encode() in path.read_bytes():
                found.add(str(path.relative_to(folder)))
    return found


@pytest.fixture(scope="module")
def watched():
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="w-") as folder:
        for name in list(os.environ):
            if name.startswith(("RAY_", "MLFLOW_", "MPL", "XDG")):
                patch.delenv(name)
        yield Watched(Path(folder)).run()  # in a short folder, which Ray's sockets need


def test_every_server_listens_on_loopback(watched):
    assert {name for name, _, _ in watched.listening} >= {"gcs_server", "raylet"}
    assert {ip for _, ip, _ in watched.listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


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
    files = {str(path.relative_to(watched.home)) for path in watched.home.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith(".cache/matplotlib/fontlist")} == {
        ".ray/auth_token"
    }
    assert not watched.in_temporary()
    assert not list(watched.temporary.glob("*/*"))
    work = {path.name for path in watched.command.folder.iterdir()}
    assert work <= {"mlruns", "ray_results", "results", "output.log"}


def test_the_study_is_on_the_server(watched):
    assert watched.found["experiment"]["name"] == "fixed_lr-demo"
    assert list((watched.folder / "mlflow" / "artifacts").rglob("report.html"))


def test_the_password_is_in_no_command_line_and_in_none_of_rays_files(watched):
    assert not watched.with_secret


def test_the_password_is_in_no_file_of_the_study_or_of_the_store(watched):
    assert {path.split("/")[0] for path in holding(watched.folder)} == {"private"}
    page = (watched.command.folder / "results" / "fixed_lr-demo" / "report.html").read_text()
    assert "http://127.0.0.1:" in page  # its links work for whoever has a password
    assert f"{USER}:" not in page
    assert SECRET not in watched.command.output()
