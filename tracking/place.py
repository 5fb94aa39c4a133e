"""The place that a tracking URI names: is it of a kind that works, is it whole, does it answer?"""

import contextlib
import logging
import os
import re
import sqlite3
import warnings
from pathlib import Path
from uuid import uuid4

import requests
from mlflow.tracking import MlflowClient

from errors import UserError, first_line

_SERVER_TIMEOUT = 10  # seconds
_SQLITE = "sqlite:///"
_WORKS = re.compile(r"https?://|(sqlite|postgresql|mysql|mssql)(\+\w+)?://")


def check_place(tracking_uri: str) -> None:
    """Raise UserError for a URI that cannot work, a store that does not answer and a damaged file.

    An SQLite file that does not exist is made.
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
            _create(path)
        _ask(tracking_uri)
    except UserError:
        raise
    except Exception as error:  # requests, SQLAlchemy and MLflow each have their own
        advice = f"see who holds {path}, and whether it may be written" if path else "start it"
        raise UserError(
            f"the tracking store {tracking_uri} does not answer ({first_line(error)}): "
            f"{advice}, or give another --tracking-uri"
        ) from error


def answers(tracking_uri: str) -> bool:
    """Whether the store, and the database behind a server, answer now."""
    try:
        _ask(tracking_uri)
    except Exception:  # as above
        return False
    return True


def check_store_exists(tracking_uri: str) -> None:
    """Raise UserError for an SQLite file that is not there; opening it would create an empty one."""
    path = sqlite_file(tracking_uri)
    if path is not None and not os.path.isfile(path):  # noqa: PTH113 - Path raises for long names
        raise UserError(f"there is no {path} here: run this where the study ran, or give --tracking-uri")


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of an SQLite store; None for the other kinds."""
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


def quiet_mlflow() -> None:
    """Keep MLflow's notices and its own repetitions away; they would hide for minutes what went wrong."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it logs the tracebacks of what it raises
    logging.getLogger("alembic").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"mlflow\..*")


def _ask(tracking_uri: str) -> None:
    if tracking_uri.startswith("http"):
        # health alone would not notice a server whose database is gone, but it is quick to time out
        url = f"{tracking_uri.rstrip('/')}/health"
        requests.get(url, timeout=_SERVER_TIMEOUT).raise_for_status()
    MlflowClient(tracking_uri).search_experiments(max_results=1)


def _check_file(path: Path) -> None:
    """Raise UserError for a file that SQLite itself finds damaged."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError:
        return  # locked or not readable, which MLflow will say
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise UserError(
            f"{path} is damaged ({found.splitlines()[-1]}): put a backup in its place, or move it "
            "away, which starts a new store; checkpoints of unfinished trials are kept elsewhere"
        )


def _create(path: Path) -> None:
    """Make the store beside its place first: MLflow cannot complete a migration that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        MlflowClient(f"{_SQLITE}{partial}").search_experiments(max_results=1)
        if not path.exists():  # another process may have been quicker
            partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
