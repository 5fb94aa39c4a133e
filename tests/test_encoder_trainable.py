"""The class that Tune drives, on a real Ray: what its steps report when a trial goes on."""

import math
import os

import pytest
import ray
import torch
from ray import tune

from sweep.cluster import Resources
from sweep.options import SweepOptions
from sweep.plan import make_plan
from sweep.storage import StudyStorage
from sweep.training import train
from tests.helpers import CPU, tiny_config
from tracking import StudyStore
from trainables.checkpoint import TrialFolder
from trainables.encoder_trainable import EncoderTrainable
from trainables.trial import Trial

pytestmark = pytest.mark.timeout(method="thread")  # ray.get() ignores what the signal of the other raises
CONFIG = tiny_config(epochs=3, train_size=64)


@pytest.fixture(scope="module", autouse=True)
def ray_here():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def storage(tmp_path):
    return tmp_path / "trials"


@pytest.fixture
def trainable(assets, storage, tmp_path, monkeypatch):
    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(tmp_path))  # not the home
    references = {"bert-tiny": ray.put(assets["bert-tiny"])}
    bound = tune.with_parameters(EncoderTrainable, assets=references, storage=str(storage))
    return bound(config={"trial": CONFIG.to_dict()})


def saved(assets, storage, epochs, spoil=lambda model: None):
    """A trial of CONFIG that was saved after each of so many epochs, the last time spoilt."""
    trial = Trial(CONFIG, assets["bert-tiny"], CPU)
    folder = TrialFolder(storage, CONFIG.trial_hash)
    for epoch in range(1, epochs + 1):
        trial.run_to_evaluation()
        if epoch == epochs:
            spoil(trial.model)
        folder.save(epoch, trial.save)


def test_what_a_killed_worker_had_saved_is_reported_before_anything_is_trained(trainable, assets, storage):
    saved(assets, storage, 2)
    first = trainable.step()
    assert [report["epoch"] for report in first["earlier"]] == [1]
    assert (first["report"]["epoch"], first["done"]) == (2, False)
    second = trainable.step()
    assert second["earlier"] == []
    assert (second["report"]["epoch"], second["done"]) == (3, True)


def test_a_trial_that_was_cut_off_after_its_last_epoch_has_nothing_left_to_train(
    trainable, assets, storage
):
    saved(assets, storage, 3)
    report = trainable.step()
    assert (report["report"]["epoch"], report["done"]) == (3, True)
    assert [earlier["epoch"] for earlier in report["earlier"]] == [1, 2]


def test_the_epochs_before_a_trial_diverged_are_reported_also_when_it_goes_on(trainable, assets, storage):
    def spoil(model):
        torch.nn.init.constant_(next(model.parameters()), math.nan)

    saved(assets, storage, 2, spoil)
    first = trainable.step()
    assert [report["epoch"] for report in [*first["earlier"], first["report"]]] == [1, 2]
    second = trainable.step()
    assert second["done"]
    assert "is nan at step" in second["failure"]


def test_a_trial_that_does_not_fit_fails_at_once(trainable):
    """To try again would change nothing; Tune tries again what is raised."""
    trainable.step()
    trainable._trial.model.register_forward_pre_hook(lambda *_: torch.empty(1 << 60, dtype=torch.uint8))
    report = trainable.step()
    assert report["done"]
    assert report["failure"].startswith("out of memory even with one example at a time: give trials more")
    assert "you tried to allocate" in report["failure"]
    assert report["failure"].isprintable()  # it is one line


def test_a_trial_that_cannot_be_built_fails_in_a_step_which_tune_tries_again(trainable):
    trainable.step()
    lost = CONFIG.replace(model="modernbert-tiny")  # nobody gave it the assets of that one
    assert trainable.reset({"trial": lost.to_dict()})
    with pytest.raises(KeyError):
        trainable.step()
    assert trainable.reset({"trial": CONFIG.to_dict()})
    assert trainable.step()["report"]["epoch"] == 1


def test_a_trial_whose_worker_dies_before_it_starts_is_tried_again(
    assets, empty_store, tmp_path, monkeypatch
):
    class DiesBetweenTrials(EncoderTrainable):
        def reset_config(self, new_config):
            if not (marker := self._study_storage.parent / "has died").exists():
                marker.touch()
                os._exit(1)
            return super().reset_config(new_config)

    monkeypatch.setattr("sweep.training.EncoderTrainable", DiesBetweenTrials)
    options = SweepOptions(space="fixed_lr", name="films", demo=True, models=["bert-tiny"], epochs=1)
    planned = make_plan(
        options.model_copy(update={"train_size": 64, "eval_size": 60}), bf16_available=False
    )
    (grid,), plan, store = planned.stages(), planned.plan, StudyStore(empty_store, "films")
    invocation = store.start_invocation("title", plan.model_dump(mode="json"), {})
    with (storage := StudyStorage(str(tmp_path / "ray_results"), "films")).owned():
        recorder = train(
            grid,
            outcomes := {},
            set(),
            plan,
            lambda each: store.open_trial(each.cells, each.name, plan.dataset, invocation, {}),
            assets={"bert-tiny": assets["bert-tiny"]},
            resources=Resources(gpus=0, cpus=1, concurrent=1),
            storage=storage,
            writer=store.background(),
            max_failures=1,
        )
    assert recorder.failures == {}
    assert len(outcomes) == 3
