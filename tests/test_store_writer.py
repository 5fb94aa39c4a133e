"""Writes in the background: in order, patient with a store that is away, honest about one that refuses."""

import shutil
import socket
import sqlite3
import threading

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient
from sweep.store_writer import StoreWriter

from errors import StoreAwayError, StoreFailedError
from tracking import Patience
from tracking.patience import is_temporary
from tracking.store_place import quiet_mlflow

WAIT = 30.0


class Store:
    """A store that can be taken away."""

    def __init__(self):
        self.is_here = threading.Event()
        self.is_here.set()
        self.tried = threading.Event()
        self.written = []
        self.said = []

    def write(self, value):
        self.tried.set()
        if not self.is_here.is_set():
            raise requests.ConnectionError("connection refused")
        self.written.append(value)

    def patience(self):
        return Patience(self.is_here.is_set, self.said.append)


@pytest.fixture
def store():
    return Store()


def submit(writer, store, *values, refused=None):
    for value in values:
        writer.submit(f"trial {value % 2}", lambda v=value: store.write(v), refused or pytest.fail)


def test_writes_are_made_in_order(store):
    writer = StoreWriter(store.patience())
    submit(writer, store, *range(20))
    assert writer.wait(WAIT)
    assert store.written == list(range(20))
    assert writer.waiting() == {}


def test_while_the_store_is_away_everything_waits_and_then_is_written_in_order(store):
    writer = StoreWriter(store.patience())
    store.is_here.clear()
    submit(writer, store, 1, 2, 3)
    assert store.tried.wait(WAIT)
    assert not writer.wait(0)
    assert writer.waiting() == {"trial 0": 1, "trial 1": 2}
    store.is_here.set()
    assert writer.wait(WAIT)
    assert store.written == [1, 2, 3]
    assert len(store.said) == 2
    assert "does not answer (connection refused)" in store.said[0]
    assert store.said[1] == "the tracking store answers again"


def test_a_write_that_the_store_refuses_is_handed_back_and_the_next_is_made(store):
    writer, refusals = StoreWriter(store.patience()), []

    def refuse():
        raise RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "too long"})

    writer.submit("trial", refuse, refusals.append)
    submit(writer, store, 1)
    assert writer.wait(WAIT)
    assert [type(error) for error in refusals] == [StoreFailedError]
    assert "fails (INVALID_PARAMETER_VALUE: too long): mend that" in str(refusals[0])
    assert store.written == [1]


def test_a_write_that_keeps_failing_while_the_store_answers_is_at_fault_itself(store):
    writer, refusals, attempts = StoreWriter(store.patience()), [], []

    def fail():
        attempts.append(1)
        raise OSError("No space left on device")

    writer.submit("trial", fail, refusals.append)
    assert writer.wait(WAIT)
    assert len(refusals) == 1
    assert len(attempts) == 5
    assert not store.said


def test_a_mistake_in_a_write_is_not_blamed_on_the_store(store):
    with pytest.raises(ZeroDivisionError):
        store.patience().call(lambda: 1 / 0)


def test_stopping_gives_up_what_waits(store):
    writer = StoreWriter(store.patience())
    store.is_here.clear()
    submit(writer, store, 1, 2)
    assert store.tried.wait(WAIT)
    writer.stop()
    assert not writer.wait(0)
    assert sum(writer.waiting().values()) == 2
    assert store.written == []


def test_whatever_a_call_raises_while_the_store_is_away_is_repeated(store):
    store.is_here.clear()

    def hidden():
        try:
            store.write(1)
        except requests.ConnectionError:
            raise ValueError("no such artifact") from None  # as MLflow's clients do

    Patience(store.is_here.is_set, lambda line: store.is_here.set()).call(hidden)
    assert store.written == [1]


def test_of_a_call_that_is_at_fault_its_own_error_is_raised_however_late(store):
    def fail():
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.patience().call(fail, seconds=0.1)


def test_a_call_that_fails_late_is_still_repeated_while_the_store_answers(store):
    """Patience is for a store that is away: one read-back that differs must not cost a model."""
    attempts = []

    def differs_once():
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("read back differently")
        return "whole"

    assert store.patience().call(differs_once, seconds=0) == "whole"


def test_patience_ends(store):
    store.is_here.clear()
    with pytest.raises(StoreAwayError, match="does not answer"):
        store.patience().call(lambda: store.write(1), seconds=0.1)


def test_what_a_server_that_is_not_there_raises_is_temporary(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    with pytest.raises(MlflowException) as raised:
        MlflowClient(f"http://127.0.0.1:{port}").search_experiments()
    assert is_temporary(raised.value)


def test_what_a_locked_database_raises_is_temporary_and_not_shown(
    migrated_database, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    quiet_mlflow()
    shutil.copyfile(migrated_database, tmp_path / "locked.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/locked.db")
    experiment = client.create_experiment("e")
    with sqlite3.connect(tmp_path / "locked.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MlflowException) as raised:
            client.create_run(experiment)
        other.execute("ROLLBACK")
    assert is_temporary(raised.value)
    assert "Traceback" not in capfd.readouterr().err


def test_a_mistake_of_ours_is_not_temporary():
    assert not is_temporary(ValueError("bug"))
    assert not is_temporary(MlflowException.invalid_parameter_value("too long"))
