"""What an invocation makes of what it finds: what goes on, what starts anew, whether there is room."""

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from ray.tune.experiment import Trial as TuneTrial
from transformers import AutoConfig, AutoModel

from errors import UserError
from sweep.assets import ModelAssets, prepare_assets
from sweep.disk_space import check_disk_space
from sweep.missing import changed_runs, forget_trained, unfinished
from sweep.options import SweepOptions
from sweep.plan import make_plan, plan_tables
from sweep.progress import Progress
from sweep.recorder import Recorder
from sweep.storage import StudyStorage
from sweep.store_writer import StoreWriter
from tests.helpers import CPU, message, tiny_config
from tracking import Patience, StudyStore, TrialRun
from trainables.trial import Trial

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
def store(empty_store):
    return StudyStore(empty_store, "films")


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


def test_trials_of_the_same_weights_go_on(plan, store, assets):
    open_all(plan, store, assets["bert-tiny"].digest)
    assert changed_runs(plan, store.trial_runs(), model_assets(assets)) == {}


def test_trials_whose_weights_changed_start_anew_the_finished_ones_too(plan, store, assets):
    open_all(plan, store, "other weights")
    trained = next(iter(plan.trials))
    store.client.set_tag(store.trial_runs()[trained].run_id, "trained", "true")
    assert changed_runs(plan, store.trial_runs(), model_assets(assets)).keys() == plan.trials.keys()


def test_assets_differ_where_only_the_settings_of_the_model_do(assets, splits, tmp_path):
    encoder = assets["bert-tiny"].encoder
    encoder.write_tokenizer(tmp_path)
    AutoModel.from_config(AutoConfig.for_model(**encoder.config)).save_pretrained(tmp_path)
    config = tiny_config(model=str(tmp_path))
    before, again = (prepare_assets(config, splits).trial.digest for _ in range(2))
    assert before == again
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"hidden_dropout_prob": 0.5}))
    assert prepare_assets(config, splits).trial.digest != before


def test_a_model_that_nothing_is_left_to_do_for_is_not_looked_at(plan, store):
    open_all(plan, store, "other weights")
    assert changed_runs(plan, store.trial_runs(), {}) == {}


def epoch(number, val_loss):
    times = {"examples_per_second": 10.0, "epoch_seconds": 2.0}
    accuracies = {"train_loss": 0.7, "train_acc": 0.5, "val_acc": 0.5, "best_val_acc": 0.5}
    return times | accuracies | {"epoch": number, "val_loss": val_loss, "step_curve": [], "best_epoch": 1}


def recording(plan, store, storage, assets=MappingProxyType({})):
    """A recorder of the plan's first trial, its writer, and that trial as Tune would hand it over."""
    invocation = store.start_invocation("title", plan.to_dict(), {})
    writer = StoreWriter(Patience(store.answers, print))
    recorder = Recorder(
        plan,
        lambda cells: store.open_trial(cells, 1, plan.dataset, invocation),
        assets=assets,
        storage=storage,
        writer=writer,
        progress=Progress(plan.trials, 1),
    )
    trial = TuneTrial("noop", config={"trial": configs(plan)[0].to_dict()}, stub=True)
    recorder.on_trial_start(0, [], trial)
    return recorder, writer, trial


def record(plan, store, storage, results):
    """What Tune would tell of a trial whose worker reports these epochs, one after the other."""
    recorder, writer, trial = recording(plan, store, storage)
    for number, result in enumerate(results, 1):
        recorder.on_trial_result(number, [], trial, result | {"earlier": [], "damaged": []})
    assert writer.wait(60)
    assert not recorder.failures


def losses(store, plan):
    return store.trial_runs()[configs(plan)[0].trial_hash].epochs()["val_loss"].to_dict()


def test_a_trial_trained_again_to_the_same_numbers_keeps_its_run(plan, store, storage):
    record(plan, store, storage, [epoch(1, 0.5), epoch(2, 0.4)])
    (before,) = store.trial_runs().values()
    record(plan, store, storage, [epoch(1, 0.5), epoch(2, 0.4), epoch(3, 0.3)])
    (after,) = store.trial_runs().values()
    assert before.run_id == after.run_id
    assert losses(store, plan) == {1: 0.5, 2: 0.4, 3: 0.3}


def test_a_trial_trained_again_to_other_numbers_gets_a_run_of_its_own(plan, store, storage, capsys):
    record(plan, store, storage, [epoch(1, 0.5), epoch(2, 0.4), epoch(3, 0.3)])
    (before,) = store.trial_runs().values()
    record(plan, store, storage, [epoch(1, 0.5), epoch(2, 0.41)])  # the second by chance no longer the same
    (after,) = store.trial_runs().values()
    assert before.run_id != after.run_id
    assert losses(store, plan) == {1: 0.5, 2: 0.41}
    assert "epoch 2 of bert-tiny" in capsys.readouterr().out


def trained_and_reported(plan, store, storage, assets):
    """The plan's first trial, trained to its end, saved and reported; returns the recorder."""
    recorder, writer, tune_trial = recording(plan, store, storage, assets)
    trial = Trial(configs(plan)[0], assets["bert-tiny"], CPU)
    while not trial.is_finished:
        report = trial.run_epoch()
        storage.trial_folder(trial.config.trial_hash).save(report["epoch"], trial.save)
        best = {"best_epoch": 1, "best_val_acc": 0.5}
        recorder.on_trial_result(1, [], tune_trial, report | best | {"earlier": [], "damaged": []})
    recorder.on_trial_complete(1, [], tune_trial)
    assert writer.wait(60)
    return recorder


def test_what_a_trial_saved_goes_once_all_of_it_is_in_mlflow(plan, store, storage, assets):
    assert not trained_and_reported(plan, store, storage, assets).failures
    assert kept(storage) == []
    assert [run.is_trained for run in store.trial_runs().values()] == [True]


def test_a_trial_of_which_an_epoch_was_refused_keeps_what_it_saved(
    plan, store, storage, assets, monkeypatch
):
    write = TrialRun.log_epochs

    def refuse_the_second(run, reports):
        if [report["epoch"] for report in reports] == [2]:
            raise MlflowException("no more room", INVALID_PARAMETER_VALUE)
        write(run, reports)

    monkeypatch.setattr(TrialRun, "log_epochs", refuse_the_second)
    recorder = trained_and_reported(plan, store, storage, assets)
    assert ["no more room" in reason for reason in recorder.failures.values()] == [True]
    assert kept(storage) == list(recorder.failures)
    assert [run.is_trained for run in store.trial_runs().values()] == [False]


def test_what_is_left_of_a_trained_trial_is_removed(plan, store, storage):
    open_all(plan, store, "digest")
    checkpoints(plan, storage)
    trained = next(iter(plan.trials))
    store.client.set_tag(store.trial_runs()[trained].run_id, "trained", "true")
    forget_trained(plan, store.trial_runs(), storage)
    to_train, to_test = unfinished(plan, store.trial_runs())
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


def fill(storage, trial_hash):
    """A checkpoint of four terabytes, without taking them from the disk."""
    folder = storage.trial_folder(trial_hash).path / "epoch-000001"
    folder.mkdir(parents=True)
    with (folder / "optimizer.pt").open("wb") as file:
        file.truncate(4 * 10**12)


def test_only_checkpoints_that_will_go_count_as_room(plan, storage, store):
    large = replace(plan, parameters={"bert-tiny": 10**10})
    fill(storage, "0123456789ab")  # of other settings: it stays, unless all is started anew
    with pytest.raises(UserError, match="make room"):
        check_disk_space(large, configs(large), 2, storage, store.tracking_uri)
    check_disk_space(large, configs(large), 2, storage, store.tracking_uri, anew=True)
    fill(storage, configs(large)[0].trial_hash)
    check_disk_space(large, configs(large), 2, storage, store.tracking_uri)


def test_what_a_kill_has_left_of_a_trained_trial_counts_as_room(plan, storage, store):
    large = replace(plan, parameters={"bert-tiny": 10**10})
    trained, *to_train = configs(large)
    fill(storage, trained.trial_hash)
    check_disk_space(large, to_train, 2, storage, store.tracking_uri)


def test_a_trial_never_has_more_on_disk_than_was_announced(plan, storage, assets):
    trial = Trial(configs(plan)[0], assets["bert-tiny"], CPU)
    folder, announced = storage.trial_folder(trial.config.trial_hash), plan.checkpoint_bytes([trial.config])

    def size():
        return sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())

    def write_and_look(partial):
        trial.save(partial)
        assert 0 < size() <= announced

    for _ in range(trial.config.epochs):
        folder.save(trial.run_epoch()["epoch"], write_and_look)
    folder.save(trial.epoch + 1, write_and_look)  # a third, of which there is never room
    assert len(list(folder.path.iterdir())) == 2


def test_the_plan_announces_two_checkpoints_of_four_tensors_for_each_trial(plan):
    summary = plan_tables(plan)[0]
    weights = 4 * plan.parameters["bert-tiny"]
    assert plan.checkpoint_bytes(configs(plan)) == 2 * 2 * (4 * weights + 1_000_000)
    assert f"checkpoints {plan.checkpoint_bytes(configs(plan)) / 1e9:.2f} GB at most" in summary
