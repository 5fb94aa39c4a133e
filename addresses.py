"""Addresses with credentials in them: what people see of one, and what a client connects to."""

import json
import os
import re
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://\S*")
_PASSWORD = re.compile(r"(?<=://)([^/?#\s@:]*):[^/?#\s]*@")  # up to the last @: a password may hold one
_TOKEN_AS_USER = re.compile(r"(?i)(?<=http://|ttps://)[^/?#\s@:]+@")
_SECRETS = "token|password|passwd|pass|pwd|secret|key|sig|signature|odbc_connect"
_QUERY = re.compile(rf"(?i)([?&](?:[\w.-]*[_.-])?(?:{_SECRETS})=)[^&#\s]+")
_HANDED_ON = "BATCHSCALE_CREDENTIALS"
_PORTS = {"http": 80, "https": 443}

_whole: dict[str, str] = {}  # an address as shown, without credentials -> the address
_trusted: set[str] = set()  # hosts that may get MLflow's password, beside the store


def redacted(text: str) -> str:
    """The text with ``***`` for every password and token in an address: ``http://user:***@host``."""
    text = _PASSWORD.sub(r"\1:***@", text)
    return _QUERY.sub(r"\1***", _TOKEN_AS_USER.sub("***@", text))


def take_credentials(text: str) -> str:
    """An address as people may see it; ``with_credentials`` gives the whole. Other text stays as it is."""
    if not _ADDRESS.fullmatch(text):
        return text
    shown = redacted(text)
    if shown != text:
        _whole[shown] = text
    return shown


def with_credentials(shown: str) -> str:
    """The whole address, for a client to connect to, given the address as shown."""
    return _whole.get(shown, shown)


def has_credentials(shown: str) -> bool:
    """Whether the address was given with a password or a token."""
    return shown in _whole


def bare(address: str) -> str:
    """The address without user, password and query, for links."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def clean_command_line() -> None:
    """If the command line holds credentials, replace this process by one whose command line has none.

    Every account of a machine sees command lines with ``ps``, and Ray stores them in its table of jobs. The
    new process gets the credentials in its environment, which only its owner can read.
    """
    _whole.update(json.loads(os.environ.pop(_HANDED_ON, "{}")))
    words = list(map(_without_credentials, sys.argv[1:]))
    if words == sys.argv[1:]:
        return
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(words)]  # the interpreter's own, and the script
    environment = os.environ | {_HANDED_ON: json.dumps(_whole)}
    os.execve(sys.executable, [sys.orig_argv[0], *before, *words], environment)


def _without_credentials(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return flag + equals + take_credentials(value)


def trust_artifact_hosts(hosts: Sequence[str]) -> None:
    """Trust these hosts, ``host`` or ``host:port``, with artifacts and the store's password."""
    _trusted.update(hosts)


def is_trusted(address: str, store: str) -> bool:
    """Whether an address may get the store's password: it is on the store's host, or on a trusted one."""
    own = _origin(store)
    place = _, host, port = _origin(address, own[0])
    return place == own or bool({host, f"{host}:{port}"} & _trusted)


def _origin(address: str, default_scheme: str = "") -> tuple[str, str | None, int | None]:
    """Scheme, host and port; ``default_scheme`` if the scheme is not HTTP, such as mlflow-artifacts."""
    parts = urlsplit(address)
    scheme = parts.scheme if parts.scheme in _PORTS else default_scheme
    return scheme, parts.hostname, parts.port or _PORTS.get(scheme)
