"""Credentials leave addresses where options are read, and nobody but the client sees them again."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

import pytest
from mlflow.tracking import MlflowClient

import addresses
from errors import StoppedError, UserError
from sweep.options import SweepOptions
from tests.helpers import ROOT, outcome, refusal, web_server
from tracking import StudyStore
from tracking.artifacts import download
from tracking.store_address import client_of

STUDY = ["--space", "fixed_lr", "--demo"]
CLOSED = "127.0.0.1:1"
SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path):
    """No credential of one test is known in the next; no test leaves any in the environment."""
    monkeypatch.setattr(addresses, "_whole", {})
    monkeypatch.setattr(addresses, "_trusted", set())
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"http://user:{SECRET}@host:5000/mlflow", "http://user:***@host:5000/mlflow"),
        (f"https://user:a@{SECRET}@host", "https://user:***@host"),
        (f"http://{SECRET}@host", "http://***@host"),
        (f"http://:{SECRET}@host", "http://:***@host"),
        (f"http://host/?token={SECRET}&page=2", "http://host/?token=***&page=2"),
        (f"http://host/?access_token={SECRET}", "http://host/?access_token=***"),
        (f"postgresql+psycopg2://user:{SECRET}@host/db", "postgresql+psycopg2://user:***@host/db"),
        (f"postgresql://host/db?user=u&password={SECRET}", "postgresql://host/db?user=u&password=***"),
        (f"mssql+pyodbc:///?odbc_connect=PWD%3D{SECRET}", "mssql+pyodbc:///?odbc_connect=***"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("http://host/#/runs?viewStateShareKey=a", "http://host/#/runs?viewStateShareKey=a"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_what_is_secret_in_it(address, shown):
    assert SweepOptions(space="fixed_lr", tracking_uri=address).tracking_uri == shown
    assert addresses.with_credentials(shown) == address
    assert addresses.has_credentials(shown) == (shown != address)
    assert addresses.redacted(f"no answer from {address} to {address} twice").count(shown) == 2


def test_the_default_address_loses_its_credentials_too(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@host")
    assert SweepOptions(space="fixed_lr").tracking_uri == "http://user:***@host"


def test_every_error_for_the_user_is_without_credentials():
    for kind in (UserError, StoppedError):
        assert str(kind(f"none from http://user:{SECRET}@host")) == "none from http://user:***@host"


def test_mlflow_gets_a_servers_credentials_apart_from_its_address():
    shown = addresses.take_credentials(f"http://us%40er:{SECRET}%2F@host:5000/path")
    assert client_of(shown).tracking_uri == "http://host:5000/path"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "us@er"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == f"{SECRET}/"


def refused(words):
    """The one line of a command that is refused, perhaps after it has said something."""
    code, out, err = outcome(words)
    assert (code, err.count("\n")) == (2, 1)
    assert SECRET not in out + err
    return err


@pytest.mark.parametrize(
    "words",
    [
        [*STUDY, "--tracking-uri", f"http://user:{SECRET}@{CLOSED}"],
        [*STUDY, f"--tracking-uri=http://user:{SECRET}@{CLOSED}"],
        [*STUDY, "--tracking-uri", f"http://{CLOSED}/?token={SECRET}"],
        [*STUDY, "--tracking-uri", f"ftp://user:{SECRET}@{CLOSED}"],
        [*STUDY, "--ray-address", f"ray://user:{SECRET}@{CLOSED}"],
        ["--space", "best_config", "--optuna-storage", f"oracle://user:{SECRET}@{CLOSED}/db"],
        [*STUDY, f"http://user:{SECRET}@{CLOSED}"],  # which nobody has asked for
        ["status", "--address", f"http://user:{SECRET}@{CLOSED}"],
        [*STUDY, "--dataset", f"https://user:{SECRET}@{CLOSED}/films.csv"],
    ],
    ids=lambda words: " ".join(words[-2:]).replace(SECRET, "…"),
)
def test_a_refused_address_is_one_line_without_its_secret(words):
    assert "***" in refused(words)  # and the secret is not


def test_a_study_with_a_password_in_its_command_line_is_not_submitted():
    places = ["--storage-path", "/studies/checkpoints", "--results-path", "/studies/results"]
    words = ["--tracking-uri", f"http://user:{SECRET}@mlflow:5000", "--precision", "fp32"]
    line = refused(["submit", "--address", f"http://{CLOSED}", *STUDY, *words, *places])
    assert "--tracking-uri http://user:***@mlflow:5000 holds a password" in line
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line


def test_other_accounts_do_not_see_credentials_in_the_list_of_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys, psutil\n"
        "from addresses import clean_command_line, take_credentials, with_credentials\n"
        "clean_command_line()\n"
        "known = [with_credentials(word.rpartition('=')[2]) for word in sys.argv[1:]]\n"
        "print(json.dumps([psutil.Process().cmdline()[-3:], known, dict(os.environ)]))\n"
    )
    one, other = f"http://user:{SECRET}@host", f"postgresql://user:{SECRET}2@host/db"
    words = ["--tracking-uri", one, f"--optuna-storage={other}"]
    command, surroundings = [sys.executable, script, *words], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
    seen, known, environment = json.loads(done.stdout)
    shown = ["http://user:***@host", "--optuna-storage=postgresql://user:***@host/db"]
    assert seen == ["--tracking-uri", *shown]
    assert known == ["--tracking-uri", one, other]
    assert SECRET not in json.dumps(environment)  # which the processes that it starts would inherit


# -- a store that keeps its artifacts elsewhere ----------------------------------------------------


class Asked(BaseHTTPRequestHandler):
    """A server that notes what it is asked, and with which credentials."""

    def do_GET(self):
        self.server.asked.append(self.headers.get("Authorization", ""))
        body = json.dumps({"files": [{"path": "plan.json", "is_dir": False, "file_size": 2}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Nothing on the terminal."""


@pytest.fixture
def elsewhere():
    with web_server(Asked) as server:
        server.asked = []
        yield server


@pytest.fixture
def credentials(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)


@pytest.mark.parametrize(
    "place", ["http://{host}/api/2.0/mlflow-artifacts/artifacts/0", "mlflow-artifacts://{host}/0"]
)
def test_artifacts_on_another_host_do_not_get_the_password(place, elsewhere, credentials, tmp_path):
    host = f"127.0.0.1:{elsewhere.server_port}"
    client, place = MlflowClient("http://localhost:9"), place.format(host=host)
    told = refusal(download, client, place, "plan.json", tmp_path)
    assert f"keeps artifacts at {host}" in told
    assert f"--artifact-host {host}" in told
    assert not elsewhere.asked
    addresses.trust_artifact_hosts([host])
    assert download(client, place, "plan.json", tmp_path)
    assert all(each.startswith("Basic ") for each in elsewhere.asked)
    assert elsewhere.asked


def test_a_study_whose_store_names_another_host_is_refused_in_one_line(elsewhere, credentials, empty_store):
    place = f"http://127.0.0.1:{elsewhere.server_port}/artifacts"
    MlflowClient(empty_store).create_experiment("fixed_lr-demo", artifact_location=place)
    words = [*STUDY, "--models", "bert-tiny", "--tracking-uri", empty_store]
    assert "--artifact-host" in refused(words)
    assert not elsewhere.asked


@pytest.mark.parametrize(
    ("place", "store", "is_own"),
    [
        ("http://host:5000/a", "http://host:5000", True),
        ("mlflow-artifacts://host:5000/a", "http://host:5000", True),
        ("http://host/a", "http://host:80", True),
        ("http://HOST:5000/a", "http://host:5000", True),
        ("http://host:5001/a", "http://host:5000", False),
        ("http://host/a", "https://host", False),  # the password in the clear
        ("https://host.evil.org/a", "https://host", False),
        ("https://host@evil.org/a", "https://host", False),
        ("http://host/a", "sqlite:///mlflow.db", False),
    ],
)
def test_which_host_is_the_stores_own(place, store, is_own):
    assert addresses.is_trusted(place, store) == is_own


# -- a database that does not answer ---------------------------------------------------------------


def test_somebody_hears_which_database_is_waited_for(monkeypatch):
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 4)  # MLflow's own take 100 seconds
    monkeypatch.setattr("tracking.store_address._SILENCE", 0.1)
    shown, said = addresses.take_credentials(f"postgresql+psycopg2://user:{SECRET}@{CLOSED}/db"), []
    told = refusal(StudyStore, shown, "films", said.append)
    assert said == [f"waiting for the tracking store postgresql+psycopg2://user:***@{CLOSED}/db to answer"]
    assert told.startswith(f"the tracking store postgresql+psycopg2://user:***@{CLOSED}/db does not answer")
    assert SECRET not in told
