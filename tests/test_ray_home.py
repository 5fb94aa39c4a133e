"""Ray's token and folder are the user's own from their first moment, and go when nothing has failed."""

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from errors import StoppedError, UserError
from sweep.ray_home import NotStartedError, make_token, protect_token, ray_folder
from tests.helpers import ROOT, refusal


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def token(tmp_path, monkeypatch):
    """Where the token of a user without one would be, with the usual umask."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0o022)
    yield tmp_path / ".ray" / "auth_token"
    os.umask(before)


def test_the_first_token_is_as_rays_and_its_owners_alone(token):
    make_token()
    assert len(bytes.fromhex(token.read_text())) == 32
    assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    assert list(token.parent.iterdir()) == [token]


def test_a_token_that_is_there_stays_and_is_closed_to_others(token):
    token.parent.mkdir()
    token.write_text("a" * 64)
    protect_token()
    make_token()
    assert (token.read_text(), mode(token)) == ("a" * 64, 0o600)


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "b" * 64), ("RAY_AUTH_TOKEN_PATH", "/elsewhere")],
)
def test_none_is_made_where_none_is_asked_for_or_another_is_given(token, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    make_token()
    assert not token.exists()


def test_a_home_that_cannot_be_written_is_one_line(token, monkeypatch):
    monkeypatch.setenv("HOME", "/proc")
    assert "give one in RAY_AUTH_TOKEN" in refusal(make_token)


def test_of_many_first_commands_one_makes_the_token_and_none_sees_it_unfinished(token):
    script = (
        "import sys\n"
        "from sweep.ray_home import make_token, token_file\n"
        "sys.stdin.read()\n"
        "make_token()\n"
        "print(token_file().read_text(), end='')"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        start = [sys.executable, "-c", script]
        commands = [stack.enter_context(subprocess.Popen(start, cwd=ROOT, **pipes)) for _ in range(4)]
        for command in commands:
            command.stdin.close()  # all at once
        said = {command.stdout.read() for command in commands}
    assert said == {token.read_text()}


@pytest.fixture
def place(monkeypatch):
    """A usual temporary folder, as short as sockets need it."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with tempfile.TemporaryDirectory(prefix="w-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def leave(error=None, logs=True):
    with ray_folder() as folder:
        assert mode(folder.parent) == 0o700
        if logs:
            (folder / "session_2026-11-29_13-56-23_123456_7" / "logs").mkdir(parents=True)
        if error:
            raise error


def test_ray_writes_in_the_usual_place_and_what_it_wrote_goes(place):
    with ray_folder() as folder:
        assert folder.parent.parent == place
        (folder / "session_1").mkdir(parents=True)
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    ("error", "logs", "is_kept"),
    [
        (KeyboardInterrupt(), True, False),
        (UserError("no room"), True, False),
        (NotStartedError("no"), False, False),
        (NotStartedError("no"), True, True),
        (StoppedError("lost"), True, True),
        (RuntimeError("a defect"), True, True),
    ],
    ids=["stopped", "refused", "not started, nothing logged", "not started", "lost", "a defect"],
)
def test_after_a_failure_one_line_says_where_rays_logs_are_if_there_is_a_use_for_them(
    place, error, logs, is_kept, capsys
):
    with pytest.raises(type(error)):
        leave(error, logs)
    kept = list(place.glob("*/r/session_*/logs"))
    assert len(kept) == is_kept
    assert capsys.readouterr().out == "".join(f"Ray's logs are kept in {folder}\n" for folder in kept)
    assert bool(list(place.iterdir())) == is_kept


def test_a_place_that_is_too_long_for_rays_sockets_is_not_used(place, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(place / ("x" * 20)))
    with ray_folder() as folder:
        assert folder.parent.parent == Path("/tmp")
        assert mode(folder.parent) == 0o700


def test_a_place_that_cannot_be_made_is_one_line(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    assert "give another TMPDIR" in refusal(leave)
