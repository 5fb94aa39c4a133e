import signal

import pytest

from tests.faults.study import Command, facts


@pytest.fixture(scope="session", autouse=True)
def clean_up_when_terminated():
    """``timeout`` and CI end a run with SIGTERM, which would leave raylets and namespaces behind."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, earlier)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """What every study must come to."""
    command = Command(tmp_path_factory.mktemp("uninterrupted") / "study")
    assert command.run() == 0, command.output()
    return facts(command.sqlite_uri, command.folder)
