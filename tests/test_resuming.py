"""What an invocation makes of what it finds: what goes on, what starts anew, whether there is room."""

import shutil
from dataclasses import replace

import pytest

from search_spaces import UserError
from sweep.assets import ModelAssets
from sweep.disk_space import check_disk_space
from sweep.options import SweepOptions
from sweep.plan import make_plan, plan_tables
from sweep.storage import StudyStorage
from sweep.study import _leave_changed, _unfinished
from tests.helpers import message
from tracking import StudyStore

OPTIONS = SweepOptions(
    space="batch_lr_grid",
    demo=True,
    name="films",
    models=["bert-tiny"],
    target_batch_sizes=[64, 256],
    scaling_rules=["fixed"],
    precision="fp32",
    settings={"epochs": 2, "train_size": 200, "eval_size": 60},
)


@pytest.fixture(scope="module")
def plan():
    return make_plan(OPTIONS, bf16_available=False)


@pytest.fixture
def store(migrated_database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(migrated_database, tmp_path / "mlflow.db")
    return StudyStore(f"sqlite:///{tmp_path}/mlflow.db", "films")


@pytest.fixture
def storage(tmp_path):
    return StudyStorage(str(tmp_path / "ray_results"), "films")


def open_all(plan, store, digest):
    invocation = store.start_invocation("title", plan.to_dict(), {})
    for cells in plan.trials.values():
        store.open_trial(cells, 1, plan.dataset, invocation, {"assets_digest": digest})


def checkpoints(plan, storage):
    for trial_hash in plan.trials:
        (storage.trial_folder(trial_hash).path / "epoch-000001").mkdir(parents=True)
        storage.journal.add(trial_hash, [{"epoch": 1}])


def kept(storage):
    return sorted(path.name for path in storage.trials.glob("*"))


def model_assets(assets):
    return {"bert-tiny": ModelAssets(assets["bert-tiny"], assets["bert-tiny"].val)}


def configs(plan):
    return [cells[0] for cells in plan.trials.values()]


def test_unfinished_trials_of_the_same_weights_go_on(plan, store, storage, assets):
    open_all(plan, store, assets["bert-tiny"].digest)
    checkpoints(plan, storage)
    _leave_changed(configs(plan), model_assets(assets), store, storage)
    assert store.trial_runs().keys() == plan.trials.keys()
    assert kept(storage) == sorted(plan.trials)


def test_a_trial_whose_weights_changed_starts_anew_and_says_so(plan, store, storage, assets, capsys):
    open_all(plan, store, "other weights")
    checkpoints(plan, storage)
    first = configs(plan)[:1]  # the other one is finished, say
    _leave_changed(first, model_assets(assets), store, storage)
    assert store.trial_runs().keys() == plan.trials.keys() - {first[0].trial_hash}
    assert kept(storage) == sorted(plan.trials.keys() - {first[0].trial_hash})
    assert storage.journal.epochs(first[0].trial_hash) == []
    assert "its model or its tokens have changed: starting it anew" in capsys.readouterr().out


def test_what_is_left_of_a_trained_trial_is_removed(plan, store, storage):
    open_all(plan, store, "digest")
    checkpoints(plan, storage)
    trained = next(iter(plan.trials))
    store.client.set_tag(store.trial_runs()[trained].run_id, "trained", "true")
    to_train, to_test = _unfinished(plan, store.trial_runs(), storage)
    assert [config.trial_hash for config in to_test] == [trained]
    assert [config.trial_hash for config in to_train] == [h for h in plan.trials if h != trained]
    assert kept(storage) == sorted(plan.trials.keys() - {trained})


def test_a_study_that_fits_is_let_through(plan, storage, store):
    check_disk_space(plan, configs(plan), 2, storage, store.tracking_uri)


def test_a_study_that_cannot_fit_is_one_line_before_anything_is_trained(plan, storage, store):
    huge = replace(plan, parameters={"bert-tiny": 10**13})
    with pytest.raises(UserError) as raised:
        check_disk_space(huge, configs(huge), 2, storage, store.tracking_uri)
    assert "make room" in message(raised)
    assert "needs 640000.00 GB" in message(raised)  # two trials, two checkpoints, four tensors, four bytes


def test_the_plan_announces_two_checkpoints_of_four_tensors_for_each_trial(plan):
    summary = plan_tables(plan)[0]
    weights = 4 * plan.parameters["bert-tiny"]
    assert plan.checkpoint_bytes(configs(plan)) == 2 * 2 * (4 * weights + 1_000_000)
    assert f"checkpoints {plan.checkpoint_bytes(configs(plan)) / 1e9:.2f} GB at most" in summary
