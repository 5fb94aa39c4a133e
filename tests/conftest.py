import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported: no test asks the hub

import shutil
from dataclasses import replace

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from mlflow.tracking import MlflowClient
from playwright.sync_api import sync_playwright
from xdist.scheduler.loadfile import LoadFileScheduling

from tests.browsing import CHROMIUM
from tests.helpers import TINY_MODELS, tiny_config
from tests.hostile.models import write_encoder
from tests.small_study import copy_study, write_small_study
from trainables.assets import prepare_assets
from trainables.review_splits import load_splits

# the same examples every time, on any machine however busy; make test-all takes more of them
for profile, examples in {"quick": 15, "full": 100}.items():
    settings.register_profile(
        profile,
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile("quick")


# each of these takes both cores: one after the other, while the second process runs the rest
_STARTS_RAY = (
    "faults/test_studies faults/test_machines hostile/test_footprint test_study "
    "faults/test_service test_search_study test_pages test_run_study"
).split()


class OneRayAtATime(LoadFileScheduling):
    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return "ray" if file.removeprefix("tests/").removesuffix(".py") in _STARTS_RAY else file


def pytest_xdist_make_scheduler(config, log):
    return OneRayAtATime(config, log)


def pytest_collection_modifyitems(items):
    for item in items:
        if any(item.get_closest_marker(name) for name in ("slow", "campaign", "image")):
            item.add_marker(pytest.mark.timeout(7200))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def splits():
    """The demo corpus cut to 4 to 15 words a review: quick to train on, and still ragged."""

    def cut(reviews):
        return replace(
            reviews, texts=[" ".join(text.split()[: 4 + i % 12]) for i, text in enumerate(reviews.texts)]
        )

    whole = load_splits(tiny_config())
    return replace(whole, train=cut(whole.train), val=cut(whole.val), test=cut(whole.test))


@pytest.fixture(scope="session")
def assets(splits):
    return {model: prepare_assets(tiny_config(model=model), splits).trial for model in TINY_MODELS}


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    """A local encoder with the pooler that hub checkpoints of BERT carry; no test may change it."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "small-bert")


@pytest.fixture(scope="module", autouse=True)
def own_tracking_uri():
    """MLflow puts the URI of an opened store into the environment, where the next module would find it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")  # what stood there before comes back afterwards
        patch.delenv("MLFLOW_TRACKING_URI")
        yield


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory):
    """An empty MLflow store; making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def empty_store(migrated_database, tmp_path, monkeypatch):
    """The URI of an empty MLflow store in the test's own folder, where the test then is."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(migrated_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def small_study(tmp_path_factory, worker_id):
    """The tracking URI of a small study that was really trained; no test may add a run to it.

    One of several processes trains it, each of the others gets a copy.
    """
    folder, shared = (
        tmp_path_factory.mktemp("small_study"),
        tmp_path_factory.getbasetemp().parent / "trained",
    )
    if worker_id == "master":
        return write_small_study(folder)
    with FileLock(f"{shared}.lock"):
        if shared.exists():
            return copy_study(f"sqlite:///{shared}/mlflow.db", folder)
        tracking_uri = write_small_study(folder)
        copy_study(tracking_uri, shared)
        return tracking_uri


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A tab of a large screen."""
    context = browser.new_context(viewport={"width": 1900, "height": 1200})
    context.set_default_timeout(60_000)  # milliseconds, on a busy machine
    yield context.new_page()
    context.close()
