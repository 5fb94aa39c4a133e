import pytest

from tests.hostile.models import write_encoder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A complete local encoder."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")
