"""A signal is heard, whatever the command is busy with; each in a process of its own."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT

CLEANING_UP = """
import os, signal, sys, time, weakref
from sweep.terminal import hear_signals

class Thing:
    pass

def goes(_):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    time.sleep(0.01)

hear_signals()
if "ray" in sys.argv:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # Ray's own while it starts
thing = Thing()
watch = weakref.ref(thing, goes)
try:
    del thing  # what is raised in here is ignored
    time.sleep(5)
    print("not heard")
except KeyboardInterrupt:
    print("heard")
"""


@pytest.mark.parametrize("what", [["SIGINT"], ["SIGTERM"], ["SIGTERM", "ray"]], ids=" ".join)
def test_a_signal_while_python_cleans_up_is_heard_and_shows_no_traceback(what):
    command = [sys.executable, "-c", CLEANING_UP, *what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("heard", "")
