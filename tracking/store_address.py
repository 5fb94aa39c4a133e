"""The tracking store's address: whether it can work and answers, and MLflow's client for it."""

import logging
import os
import re
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from addresses import bare, with_credentials
from errors import UserError, first_line

_NOT_AUTHENTICATED = 401  # an HTTP status
_SERVER_TIMEOUT = 10  # seconds
_SILENCE = 5.0  # seconds until the user is told that the store is waited for
_SQLITE = "sqlite:///"
_WORKS = re.compile(r"https?://|(sqlite|postgresql|mysql|mssql)(\+\w+)?://")

Say = Callable[[str], object]


def nobody(line: str) -> None:
    """Say nothing."""


def quiet_mlflow() -> None:
    """Turn off MLflow's notices, and its own repetitions, which would hide an error for minutes."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it logs the tracebacks of what it raises
    logging.getLogger("alembic").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"mlflow\..*")


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of an SQLite store; None for the other kinds."""
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


def check_store_exists(tracking_uri: str) -> None:
    """Raise UserError if the store is an SQLite file that does not exist; opening it would create one."""
    path = sqlite_file(tracking_uri)
    if path is not None and not os.path.isfile(path):  # noqa: PTH113 - Path raises for long names
        raise UserError(f"there is no {path} here: run this where the study ran, or give --tracking-uri")


def client_of(tracking_uri: str) -> MlflowClient:
    """MLflow's client for a store, with the credentials that were in its address.

    The credentials of a server go into the environment, where MLflow reads them: MLflow prints addresses.
    """
    address = with_credentials(tracking_uri)
    parts = urlsplit(address)
    if parts.scheme in {"http", "https"} and parts.username and parts.password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
        address = bare(address)
    return MlflowClient(address)


def check_store(tracking_uri: str, say: Say = nobody) -> None:
    """Raise UserError for a URI that cannot work, a store that does not answer, or a damaged file.

    An SQLite file that does not exist is created. ``say`` is told if the answer takes long: MLflow tries
    for two minutes to reach a database.
    """
    if not _WORKS.match(tracking_uri):
        raise UserError(
            f"'{tracking_uri}' is not a tracking URI that works here: "
            "use sqlite:///FILE.db or http://HOST:PORT"
        )
    path = sqlite_file(tracking_uri)
    try:
        if path is not None and path.exists():
            _check_file(path)
        elif path is not None:
            _create_file(path)
        with _told_of_silence(tracking_uri, say):
            ask(tracking_uri)
    except UserError:
        raise
    except Exception as error:  # requests, SQLAlchemy and MLflow each have their own
        if isinstance(error, MlflowException) and error.get_http_status_code() == _NOT_AUTHENTICATED:
            raise UserError(
                f"the tracking store {tracking_uri} asks for a password: give it in "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from error
        advice = f"see who holds {path}, and whether it may be written" if path else "start it"
        raise UserError(
            f"the tracking store {tracking_uri} does not answer ({first_line(error)}): "
            f"{advice}, or give another --tracking-uri"
        ) from error


def _check_file(path: Path) -> None:
    """Raise UserError for a file that SQLite itself finds damaged."""
    try:
        with closing(sqlite3.connect(path)) as database:
            found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError:
        return  # locked or not readable: MLflow reports that
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise UserError(
            f"{path} is damaged ({found.splitlines()[-1]}): put a backup in its place, or move it "
            "away, which starts a new store; checkpoints of unfinished trials are kept elsewhere"
        )


def _create_file(path: Path) -> None:
    """Create the store under another name, then rename it: MLflow cannot complete a creation cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        ask(f"{_SQLITE}{partial_file}")
        if not path.exists():  # another process may have created it meanwhile
            partial_file.rename(path)
    finally:
        partial_file.unlink(missing_ok=True)


@contextmanager
def _told_of_silence(tracking_uri: str, say: Say) -> Iterator[None]:
    timer = threading.Timer(_SILENCE, say, [f"waiting for the tracking store {tracking_uri} to answer"])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def ask(tracking_uri: str) -> None:
    """Raise the error of MLflow, requests or the database if the store does not answer."""
    client = client_of(tracking_uri)
    if tracking_uri.startswith("http"):
        # /health times out quickly, but does not notice that the server's database is gone: search as well
        url = f"{client.tracking_uri.rstrip('/')}/health"
        requests.get(url, timeout=_SERVER_TIMEOUT).raise_for_status()
    client.search_experiments(max_results=1)
