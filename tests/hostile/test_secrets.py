"""One real study on an MLflow server with passwords, the password in its address: who sees it?"""

import contextlib
import tempfile
from pathlib import Path

import psutil
import pytest
import requests

from tests.faults import processes
from tests.faults.servers import mlflow_server
from tests.faults.study import Command

pytestmark = pytest.mark.slow
USER, SECRET = "admin", "s3cr3t-of-the-store"
STUDY = (
    "--space fixed_lr --demo --models bert-tiny --target-batch-sizes 64 --epochs 10 --train-size 320 "
    "--eval-size 60 --max-length 32"
).split()
CONFIGURATION = """\
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = {user}
admin_password = {secret}
"""


class Tried:
    """The study's command and the store, and where the secret was seen while Ray ran."""

    def __init__(self, folder):
        self.folder, self.temporary = folder, folder / "tmp"
        self.temporary.mkdir()
        self.seen = set()

    def run(self):
        private = self.folder / "private"
        private.mkdir()
        configuration = private / "basic_auth.ini"
        configuration.write_text(CONFIGURATION.format(folder=private, user=USER, secret=SECRET))
        server = {"MLFLOW_AUTH_CONFIG_PATH": str(configuration), "MLFLOW_FLASK_SERVER_SECRET_KEY": "key"}
        places = {"HOME": str(self.folder), "TMPDIR": str(self.temporary)}
        database = f"sqlite:///{self.folder}/mlflow.db"
        with mlflow_server(self.folder / "mlflow", database, environment=server) as store:
            address = store.uri.replace("://", f"://{USER}:{SECRET}@")
            words = [*STUDY, "--tracking-uri", address]
            with Command(self.folder / "work", study=words, environment=places) as self.command:
                self.command.start()
                assert self.command.wait_for("epoch 2/"), self.command.said()
                self._look()
                assert self.command.wait() == 0, self.command.said()
            self.found = requests.get(
                f"{store.uri}/api/2.0/mlflow/experiments/get-by-name",
                params={"experiment_name": "fixed_lr-demo"},
                auth=(USER, SECRET),
                timeout=10,
            ).json()
        return self

    def _look(self):
        """At the command lines of all its processes, and at what Ray has written so far."""
        for process in processes.family(self.command.folder):
            with contextlib.suppress(psutil.Error):
                self.seen |= {f"{process.name()}: {word}" for word in process.cmdline() if SECRET in word}
        assert list(self.temporary.rglob("session_*"))  # what Ray writes is there
        self.seen |= holding(self.temporary)


def holding(folder):
    """The files in which the secret is."""
    found = set()
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it went, or is a socket
            if path.is_file() and SECRET.encode() in path.read_bytes():
                found.add(str(path.relative_to(folder)))
    return found


@pytest.fixture(scope="module")
def tried():
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="s-") as folder:
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        yield Tried(Path(folder)).run()


def test_the_study_is_on_the_server(tried):
    assert tried.found["experiment"]["name"] == "fixed_lr-demo"
    assert list((tried.folder / "mlflow" / "artifacts").rglob("report.html"))


def test_the_password_is_in_no_command_line_and_in_none_of_rays_files(tried):
    assert not tried.seen


def test_the_password_is_in_no_file_of_the_study_or_of_the_store(tried):
    assert {path.split("/")[0] for path in holding(tried.folder)} == {"private"}
    page = (tried.command.folder / "results" / "fixed_lr-demo" / "report.html").read_text()
    assert "http://127.0.0.1:" in page  # its links work for whoever has a password
    assert f"{USER}:" not in page
    assert SECRET not in tried.command.output()
