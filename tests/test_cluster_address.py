"""A cluster that is not there, or is no Ray, is one line within seconds; Ray itself tries for minutes."""

import contextlib
import socket
import time

import pytest

from sweep.cluster import ray_session
from tests.helpers import refusal, web_server


def join(address):
    with ray_session(address, "127.0.0.1"):
        pass


@contextlib.contextmanager
def listening(who):
    """The port of something that is no Ray: nobody, a web server, or one that never says a word."""
    with contextlib.ExitStack() as stack:
        if who == "nobody":
            yield 1
        elif who == "a web server":
            yield stack.enter_context(web_server(host="0.0.0.0")).server_port
        else:
            yield stack.enter_context(socket.create_server(("0.0.0.0", 0))).getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize(
    ("who", "why"),
    [("nobody", "Connection refused"), ("a web server", "no Ray"), ("a deaf one", "no Ray")],
)
def test_who_is_no_ray_is_refused_in_one_line_and_ray_stays_silent(scheme, who, why, capfd, monkeypatch):
    monkeypatch.setattr("sweep.cluster._ANSWERS_WITHIN", 1.0)  # seconds: nobody here ever answers
    with listening(who) as port:
        started = time.monotonic()
        line = refusal(join, f"{scheme}127.0.0.1:{port}")
        assert time.monotonic() - started < 20
    assert line.startswith(f"the Ray cluster at {scheme}127.0.0.1:{port} cannot be reached (")
    assert why in line
    assert line.endswith("check --ray-address")
    assert [line for line in capfd.readouterr().err.splitlines() if "HTTP" not in line] == []


def test_a_host_that_nobody_knows_is_one_line():
    assert "cannot be reached" in refusal(join, "no-such-host.invalid:6379")
