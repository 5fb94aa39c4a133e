"""A real store that goes and comes back: who waits for it, for how long, and what the user is told."""

import contextlib
import gc
import shutil
import sqlite3
import threading
from functools import partial

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import REQUEST_LIMIT_EXCEEDED
from mlflow.tracking import MlflowClient

from errors import StoreAwayError, StoreFailedError
from tests.faults.servers import mlflow_server
from tests.helpers import make_config
from tests.test_tracking import BEST, DATASET, LABELS, RESULTS, ROWS, model_files, report
from tracking import StudyStore, connection

WAIT = 60.0
ALL = ("experiments", "runs")  # without them nothing works


class Store:
    """A store with an open trial, whose tables can be taken away and brought back."""

    def __init__(self, uri, **options):
        self.said, self.written, self.was_told = [], [], threading.Event()
        self.store = StudyStore(uri, "films-study", say=self.say, **options)
        self._invocation = self.store.start_invocation("title", {"cells": []}, {})
        self.run = self.open_trial({})
        self._file = uri.removeprefix("sqlite:///")

    def say(self, line):
        self.said.append(line)
        self.was_told.set()

    def open_trial(self, tags):
        return self.store.open_trial([make_config()], "trial", DATASET, self._invocation, tags)

    def take(self, *tables):
        self._execute(*(f"ALTER TABLE {table} RENAME TO {table}_taken" for table in tables or ALL))

    def bring_back(self):
        self._execute(*(f"ALTER TABLE {table}_taken RENAME TO {table}" for table in ALL))

    def epochs(self):
        return self.store.read_runs().trials[make_config().trial_hash].evaluations().index.to_list()

    def _execute(self, *commands):
        with contextlib.closing(sqlite3.connect(self._file)) as database:
            for command in commands:
                database.execute(command)
            database.commit()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(connection, "LONGEST_PAUSE", 0.1)


@pytest.fixture
def here(empty_store):
    return Store(empty_store)


@pytest.fixture
def writer(here):
    writer = here.store.background()
    yield writer
    writer.stop()


def submit_epochs(writer, here, *epochs):
    def write(epoch):
        here.run.log_evaluations([report(epoch)])
        here.written.append(epoch)

    for epoch in epochs:
        writer.submit(f"trial {epoch % 2}", partial(write, epoch), pytest.fail)


def test_a_call_waits_until_the_store_is_back_and_the_user_is_told_once(here, capfd):
    here.take()
    threading.Thread(target=lambda: (here.was_told.wait(WAIT), here.bring_back())).start()
    here.run.log_evaluations([report(1), report(2)])
    assert here.epochs() == [1, 2]
    away, back = here.said
    assert away.startswith("the tracking store does not answer (")
    assert back == "the tracking store answers again"
    assert "Traceback" not in capfd.readouterr().err


def test_a_call_ends_once_the_store_is_away_for_longer_than_the_patience(empty_store):
    here = Store(empty_store, patience=0.5)
    here.take()
    rescue = threading.Timer(20.0, here.bring_back)  # a call that waits for ever then succeeds
    rescue.start()
    with pytest.raises(StoreAwayError, match="does not answer"):
        here.run.interrupt()
    rescue.cancel()


def test_a_server_that_has_too_many_requests_is_asked_again(here, monkeypatch):
    write, refused = MlflowClient.log_batch, []

    def refuse_twice(*args, **kwargs):
        if len(refused) < 2:
            refused.append(1)
            raise MlflowException("Too Many Requests", REQUEST_LIMIT_EXCEEDED)  # HTTP's 429
        write(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", refuse_twice)
    here.run.log_evaluations([report(1)])
    assert here.epochs() == [1]
    assert len(refused) == 2


def test_a_trial_whose_results_cannot_be_written_does_not_look_trained(here, tmp_path):
    here.take("metrics")
    with pytest.raises(StoreFailedError):
        here.run.log_models(model_files(tmp_path / "best"), None, RESULTS)
    (found,) = here.store.read_runs().trials.values()
    assert not found.is_trained


def test_writes_wait_longer_than_calls_do_and_are_then_made_in_order(empty_store):
    here = Store(empty_store, patience=0.0)
    writer = here.store.background()
    here.take()
    submit_epochs(writer, here, 1, 2, 3)
    assert here.was_told.wait(WAIT)
    with pytest.raises(StoreAwayError, match="does not answer"):
        here.run.interrupt()
    assert not writer.wait(0)
    assert writer.waiting() == {"trial 0": 1, "trial 1": 2}
    with pytest.raises(StoreAwayError, match="lacks 3 writes of 2 trials: run the same command again"):
        writer.finish()
    here.bring_back()
    assert writer.wait(WAIT)
    assert writer.waiting() == {}
    assert here.written == here.epochs() == [1, 2, 3]
    writer.stop()


def test_a_write_that_the_store_refuses_is_handed_back_and_the_next_is_made(here, writer):
    refusals = []
    writer.submit("trial", lambda: here.open_trial(tags={"what is this?": ""}), refusals.append)
    submit_epochs(writer, here, 1)
    writer.finish()
    assert [type(error) for error in refusals] == [StoreFailedError]
    assert "may only contain alphanumerics" in str(refusals[0])
    assert here.epochs() == [1]


def test_a_refusal_that_cannot_be_reported_does_not_hang_the_end(writer):
    def broken(*_):
        raise OSError("the log's disk is full")

    writer.submit("trial", broken, broken)
    assert writer.wait(10)


def test_what_keeps_failing_although_the_store_answers_is_at_fault_itself(here):
    here.take("metrics")
    with pytest.raises(StoreFailedError, match=r"the tracking store fails .*: mend that"):
        here.run.log_evaluations([report(1)])
    assert not here.said


@pytest.mark.parametrize(
    ("error", "attempts"), [(OSError("No space left on device"), 5), (KeyError("x"), 1)]
)
def test_what_is_not_the_stores_error_passes_as_it_is(here, error, attempts):
    made = []

    def fail():
        made.append(1)
        raise error

    with pytest.raises(type(error)) as raised:
        here.store.connection.repeat(fail)
    assert raised.value is error
    assert len(made) == attempts


def test_stopping_gives_up_what_waits(here, writer):
    here.take()
    submit_epochs(writer, here, 1, 2)
    assert here.was_told.wait(WAIT)
    writer.stop()
    submit_epochs(writer, here, 3)
    assert sum(writer.waiting().values()) == 3
    here.bring_back()
    here.run.interrupt()  # in the foreground, the store is at work as before
    assert here.epochs() == []


@pytest.fixture(scope="module")
def server(migrated_database, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(migrated_database, folder / "mlflow.db")
    with mlflow_server(folder, f"sqlite:///{folder}/mlflow.db") as server:
        yield server


@pytest.mark.slow
def test_files_that_come_and_go_leave_no_thread_behind(server, tmp_path):
    here = Store(server.uri)
    gc.disable()  # which would end them as well, but nobody knows when
    before = set(threading.enumerate())
    try:
        here.run.log_models(model_files(tmp_path / "a"), model_files(tmp_path / "b"), {"best_epoch": 1})
        here.run.download_model("best", tmp_path / "back")
        here.run.log_test({"best": BEST, "last": BEST}, LABELS, ROWS)
        here.run.predictions("best")
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=10)
            assert not thread.is_alive()
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_server_that_was_killed_gets_all_epochs_once_it_is_back(server):
    here = Store(server.uri)
    writer = here.store.background()
    server.kill()
    submit_epochs(writer, here, 1, 2)
    assert here.was_told.wait(WAIT)
    server.start()
    assert writer.wait(WAIT)
    assert here.epochs() == [1, 2]
    assert here.said[1:] == ["the tracking store answers again"]
    writer.stop()


@pytest.mark.slow
def test_a_server_that_hangs_does_not_hold_up_the_end(server):
    here = Store(server.uri)
    writer = here.store.background()
    server.pause()
    try:
        submit_epochs(writer, here, 1)
        assert not writer.wait(1.0)
        writer.stop()
        assert writer.waiting() == {"trial 1": 1}
    finally:
        server.resume()
