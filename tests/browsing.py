"""Chromium, and the servers whose pages it opens."""

import shutil

import pytest

from tests.faults.servers import Server

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
server = Server
