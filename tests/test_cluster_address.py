"""A cluster that is not there, or is no Ray, is one line within seconds; Ray itself tries for minutes."""

import contextlib
import http.server
import socket
import threading
import time

import pytest

from sweep.cluster import ray_session
from tests.helpers import refusal


def join(address):
    with ray_session(address, "127.0.0.1"):
        pass


@contextlib.contextmanager
def web_server():
    """Something that listens and is no Ray."""
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def deaf_server():
    """It takes connections and never says a word."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def nobody():
    yield 1


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize(
    ("who", "why"),
    [(nobody, "Connection refused"), (web_server, "no Ray"), (deaf_server, "no Ray")],
)
def test_who_is_no_ray_is_refused_in_one_line_and_ray_stays_silent(scheme, who, why, capfd):
    with who() as port:
        started = time.monotonic()
        line = refusal(join, f"{scheme}127.0.0.1:{port}")
        assert time.monotonic() - started < 20
    assert line.startswith(f"the Ray cluster at {scheme}127.0.0.1:{port} cannot be reached (")
    assert why in line
    assert line.endswith("check --ray-address")
    assert [line for line in capfd.readouterr().err.splitlines() if "HTTP" not in line] == []


def test_a_host_that_nobody_knows_is_one_line():
    assert "cannot be reached" in refusal(join, "no-such-host.invalid:6379")
