"""Ray's token and Ray's files where this program starts Ray: nobody else's account can reach them."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ray._common.utils import get_default_system_temp_dir
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

from errors import UserError, first_line
from sweep.terminal import say

_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes of a path
_SOCKET = "session_2026-11-29_13-56-23_123456_{pid}/sockets/dash_TaskEventsHead"  # Ray's longest
_IF_TOO_LONG = Path("/tmp")


class NotStartedError(UserError):
    """Ray did not start on this machine."""


def token_file() -> Path:
    """Where Ray keeps its token, unless the environment names another place."""
    return Path.home() / ".ray" / "auth_token"


def protect_token() -> None:
    """Take away the rights of others to an existing token."""
    with contextlib.suppress(OSError):  # there is none, or it is somebody else's
        token_file().chmod(token_file().stat().st_mode & 0o700)


def make_token() -> None:
    """Make the token before Ray does: every account can read Ray's until Ray is up.

    The file appears complete, and only the first of several commands makes it. UserError if it cannot be
    written.
    """
    is_asked_for = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    is_given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not is_asked_for or is_given or token_file().exists():
        return
    folder = token_file().parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", prefix=".auth_token-", dir=folder) as file:  # 0600 at once
            file.write(generate_new_authentication_token())
            file.flush()
            with contextlib.suppress(FileExistsError):  # another command was quicker
                token_file().hardlink_to(file.name)
    except OSError as error:
        raise UserError(
            f"cannot write Ray's token {token_file()} ({first_line(error)}): give one in RAY_AUTH_TOKEN"
        ) from error


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's files, open to every account, in one that only this account may enter.

    Removed at the end. After a failure it stays if Ray has logged anything, and the terminal says where
    it is. UserError if none can be made.
    """
    try:
        own = Path(tempfile.mkdtemp(prefix="ray-", dir=_place()))
    except OSError as error:
        raise UserError(
            f"Ray on this machine has no temporary folder ({first_line(error)}): give another TMPDIR"
        ) from error
    folder, failed = own / "r", True
    try:
        yield folder
        failed = False
    except NotStartedError:
        raise
    except (KeyboardInterrupt, UserError):  # Ray's logs have nothing to say of these
        failed = False
        raise
    finally:
        logs = next(folder.glob("session_[0-9]*/logs"), None)
        if failed and logs:
            say(f"Ray's logs are kept in {logs}")
        else:
            shutil.rmtree(own, ignore_errors=True)


@contextlib.contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Give processes started meanwhile this temporary folder: Ray and its workers leave files behind."""
    tempfile.gettempdir()  # this process keeps its own folder
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before


def _place() -> Path:
    """Where Ray would put its files, else a place with a path short enough for Ray's sockets."""
    usual = Path(get_default_system_temp_dir()).absolute()
    usual.mkdir(parents=True, exist_ok=True)
    socket = usual / "ray-abcdefgh" / "r" / _SOCKET.format(pid=os.getpid())
    return usual if len(os.fsencode(socket)) <= _LONGEST_SOCKET else _IF_TOO_LONG
