import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def clean_up_when_terminated():
    """``timeout`` and CI end a run with SIGTERM, which would leave raylets and namespaces behind."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, earlier)
