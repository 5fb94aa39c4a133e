"""What a run of the command makes of what it finds: what is resumed, what starts anew, what has room."""

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from ray.tune.experiment import Trial as TuneTrial

from reports import write_report
from search_spaces.stages import COMPLETE, Grid, Outcome, Proposal
from sweep.footprint import check_disk_space
from sweep.metrics import ExportedMetrics
from sweep.options import SweepOptions
from sweep.plan import make_plan
from sweep.progress import Progress
from sweep.queue import TrialQueue
from sweep.recorder import Recorder
from sweep.search import Proposer
from sweep.storage import StudyStorage
from sweep.study import Sweep
from sweep.trial_writer import TrialWriter
from tests.helpers import CPU, refusal, tiny_config
from tests.hostile.models import write_encoder
from tests.test_tracking import report
from tracking import StudyStore, TrialRun
from trainables.assets import ModelAssets, prepare_assets
from trainables.trial import Trial

OPTIONS = SweepOptions(
    space="batch_lr_grid",
    demo=True,
    name="films",
    models=["bert-tiny"],
    target_batch_sizes=[64, 256],
    scaling_rules=["fixed"],
    precision="fp32",
    epochs=2,
    train_size=200,
    eval_size=60,
)


@pytest.fixture(scope="module")
def planned():
    return make_plan(OPTIONS, bf16_available=False)


@pytest.fixture(scope="module")
def plan(planned):
    return planned.plan


@pytest.fixture
def store(empty_store):
    return StudyStore(empty_store, "films")


@pytest.fixture
def storage(tmp_path):
    with (storage := StudyStorage(str(tmp_path / "ray_results"), "films")).owned():
        yield storage


def sweep(planned, store, storage, **options):
    """A run of the command that has read the study."""
    plan = planned.plan.model_dump(mode="json")
    invocation = store.start_invocation("title", plan, storage.owner)
    now = Sweep(planned, OPTIONS.model_copy(update=options), store, storage, invocation)
    now.read()
    return now


def left(sweep):
    """The trials that lack training, and those that lack the test alone."""
    (grid,) = sweep.planned.stages()
    to_train, to_test = sweep.unfinished(grid)
    return {each.trial_hash for each in to_train}, {each.trial_hash for each in to_test}


def changed(sweep):
    (grid,) = sweep.planned.stages()
    return sweep.changed(grid, grid.propose({}))


def open_all(plan, store, storage, digest):
    """An earlier run of the command that opened every trial and was killed."""
    invocation = store.start_invocation("title", plan.model_dump(mode="json"), storage.owner)
    for cells in plan.trials.values():
        store.open_trial(cells, "trial", plan.dataset, invocation, {"assets_digest": digest})
    return store.read_runs().trials


def checkpoints(plan, storage):
    for trial_hash in plan.trials:
        (storage.trial_folder(trial_hash).path / "evaluation-000001").mkdir(parents=True)


def kept(storage):
    return sorted(path.name for path in storage.trials.glob("*"))


# -- whose study it is -----------------------------------------------------------------------------


def test_what_a_killed_command_left_running_is_ended(planned, plan, store, storage):
    open_all(plan, store, storage, "digest")
    sweep(planned, store, storage)
    found = store.read_runs()
    assert [run.is_running for run in found.invocations] == [True, False]
    assert not any(run.is_running for run in found.trials.values())


def test_a_study_at_work_elsewhere_is_refused_and_can_be_taken_over(
    planned, plan, store, storage, tmp_path
):
    with (elsewhere := StudyStorage(str(tmp_path / "elsewhere"), "films")).owned():
        open_all(planned.plan, store, elsewhere, "digest")
        reason = refusal(sweep, planned, store, storage)
    assert f"is being run by {elsewhere.owner['process']} with another --storage-path" in reason
    assert "--take-over" in reason
    sweep(planned, store, storage, take_over=True)


def test_fresh_leaves_earlier_runs_in_mlflow_and_they_no_longer_count(planned, plan, store, storage):
    earlier = open_all(plan, store, storage, "digest")
    checkpoints(plan, storage)
    now = sweep(planned, store, storage, fresh=True)
    assert left(now) == (set(plan.trials), set())
    assert store.read_runs().trials.keys() == earlier.keys()  # as long as it may still be refused
    now.start_anew(set())
    found = store.read_runs()
    assert (found.trials, [run.run_id for run in found.invocations]) == ({}, [now.invocation.run_id])
    assert kept(storage) == []
    for run in earlier.values():
        assert store.client.get_run(run.run_id).info.status == "KILLED"


def without_number(client, run):
    client.delete_tag(run.run_id, "format")


def with_another_number(client, run):
    client.set_tag(run.run_id, "format", "0")


@pytest.mark.parametrize("change", [without_number, with_another_number])
@pytest.mark.parametrize("whose", ["invocations", "trials"])
def test_a_study_of_another_version_is_refused_and_starts_anew_under_fresh(
    planned, store, storage, change, whose
):
    plan = planned.plan
    trials = open_all(plan, store, storage, "digest")
    invocations = {run.run_id: run for run in store.read_runs().invocations}
    for run in {"invocations": invocations, "trials": trials}[whose].values():
        change(store.client, run)
    places = (store.tracking_uri, "films", str(storage.path.parent / "results"))
    for read in (lambda: sweep(planned, store, storage), lambda: write_report(*places)):
        assert refusal(read) == (
            "study 'films' was written by another version of this program: run its command with --fresh, "
            "which trains it anew, or with another --name"
        )
    now = sweep(planned, store, storage, fresh=True)
    assert left(now) == (set(plan.trials), set())
    now.start_anew(set())
    found = store.read_runs()
    assert (found.trials, [run.run_id for run in found.invocations]) == ({}, [now.invocation.run_id])
    for run in [*trials.values(), *invocations.values()]:  # still there
        assert store.client.get_run(run.run_id).data.tags["superseded"] == "true"


def test_checkpoints_of_another_version_are_not_resumed_from(planned, plan, store, storage):
    checkpoints(plan, storage)
    mark = storage.path / ".batchscale"
    mark.write_text(mark.read_text().replace("format", "another format"))
    assert "of another version of this program: give --fresh" in refusal(sweep, planned, store, storage)
    sweep(planned, store, storage, fresh=True).start_anew(set())
    assert kept(storage) == []
    sweep(planned, store, storage)


# -- what is left to do ----------------------------------------------------------------------------


def test_a_trained_trial_lacks_its_test_and_a_finished_ones_checkpoint_goes(planned, plan, store, storage):
    trained, finished = plan.trials
    runs = open_all(plan, store, storage, "digest")
    checkpoints(plan, storage)
    for run in runs.values():
        store.client.set_tag(run.run_id, "trained", "true")
    for name in ("test_acc", "last_test_acc"):
        store.client.log_metric(runs[finished].run_id, name, 0.5)
    store.client.set_terminated(runs[finished].run_id, "FINISHED")
    now = sweep(planned, store, storage)
    assert left(now) == (set(), {trained})
    assert kept(storage) == [trained]


def test_only_trials_whose_model_has_changed_start_anew(planned, plan, store, storage, assets):
    model = {"bert-tiny": ModelAssets(assets["bert-tiny"], assets["bert-tiny"].val)}
    open_all(plan, store, storage, assets["bert-tiny"].digest)
    now = sweep(planned, store, storage)
    assert changed(now) == set()  # a model that nothing is left to do for is not looked at
    now.assets = model
    assert changed(now) == set()
    other = replace(assets["bert-tiny"], digest="other")
    checkpoints(plan, storage)
    now.assets = {"bert-tiny": replace(model["bert-tiny"], trial=other)}
    assert changed(now) == set(plan.trials)
    now.start_anew(set(plan.trials))
    assert kept(storage) == []
    assert not store.read_runs().trials


def test_assets_differ_where_only_the_settings_of_the_model_do(splits, tmp_path):
    folder = write_encoder(tmp_path / "encoder")
    config = tiny_config(model=str(folder))
    before, again = (prepare_assets(config, splits).trial.digest for _ in range(2))
    assert before == again
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"hidden_dropout_prob": 0.5}))
    assert prepare_assets(config, splits).trial.digest != before


# -- what a trial reports --------------------------------------------------------------------------


def recording(plan, store, storage, assets=MappingProxyType({}), stage=None):
    """A recorder of the first trial, its writer, and that trial as Tune would hand it over."""
    queue = TrialQueue(stage or Grid([first(plan)]), {}, set(), max_failures=0)
    invocation = store.start_invocation("title", plan.model_dump(mode="json"), {})
    writer, progress = store.background(), Progress(["val_acc"], concurrent=1, expected=1)
    recorder = Recorder(plan, queue, progress, ExportedMetrics(plan.study))
    recorder.writer = TrialWriter(
        plan,
        lambda proposal: store.open_trial(proposal.cells, "trial", plan.dataset, invocation, {}),
        assets=assets,
        storage=storage,
        writer=writer,
        refused=recorder.fail,
        finished=progress.trial_finished,
        say=progress.say,
    )
    queue.announce = lambda proposal: recorder.trial_proposed(Proposal(proposal.cells, "trial"))
    config = queue.next().config
    trial = TuneTrial("noop", config={"trial": config.to_dict()}, stub=True)
    recorder.on_trial_start(0, [], trial)
    return recorder, writer, trial


def first(plan):
    return next(iter(plan.configs.values()))


def record(plan, store, storage, reports):
    """What Tune would tell of a trial whose worker reports these epochs, one after the other."""
    recorder, writer, trial = recording(plan, store, storage)
    for each in reports:
        recorder.on_trial_result(1, [], trial, {"report": each, "earlier": [], "damaged": []})
    assert writer.wait(60)
    assert not recorder.failures
    (run,) = store.read_runs().trials.values()
    return run.run_id, run.evaluations()["val_loss"].to_dict()


def test_a_trial_trained_again_to_the_same_numbers_keeps_its_run(plan, store, storage):
    before, _ = record(plan, store, storage, [report(1), report(2)])
    after, losses = record(plan, store, storage, [report(1), report(2), report(3)])
    assert before == after
    assert losses == {1: 0.6, 2: 0.6, 3: 0.6}


def test_a_trial_trained_again_to_other_numbers_gets_a_run_of_its_own(plan, store, storage, capsys):
    before, _ = record(plan, store, storage, [report(1), report(2), report(3)])
    after, losses = record(plan, store, storage, [report(1), report(2, val_loss=0.61)])
    assert before != after
    assert losses == {1: 0.6, 2: 0.61}
    assert "evaluation 2 of trial is there with another val_loss" in capsys.readouterr().out


def test_an_evaluation_that_is_told_again_after_a_death_counts_once(store, storage):
    options = SweepOptions(space="best_config", name="films", demo=True, epochs=2, eval_size=60, trials=1)
    searched = make_plan(options, bf16_available=False)
    search, _ = searched.stages(proposer=lambda space: Proposer(space, chance=0.5))
    recorder, writer, trial = recording(searched.plan, store, storage, stage=search)
    evaluations = [report(1, train_acc=0.5, val_acc=0.5), report(2, train_acc=0.5, val_acc=0.75)]
    for each in (evaluations[0], *evaluations):  # the worker died behind the first, which it tells again
        recorder.on_trial_result(1, [], trial, {"report": each, "earlier": [], "damaged": []})
    recorder.on_trial_complete(1, [], trial)
    assert writer.wait(60)
    (run,) = store.read_runs().trials.values()
    complete = Outcome(COMPLETE, (0.5, 0.75))
    assert run.outcome(with_curve=True) == complete
    assert run.tags["outcome"] == COMPLETE
    assert run.metrics["best_epoch"] == 2


def train_and_report(plan, store, storage, assets):
    """The plan's first trial, trained to its end, saved and reported; returns the recorder."""
    recorder, writer, tune_trial = recording(plan, store, storage, assets)
    trial = Trial(first(plan), assets["bert-tiny"], CPU)
    while not trial.is_finished:
        result = {"report": trial.run_to_evaluation(), "earlier": [], "damaged": []}
        storage.trial_folder(trial.config.trial_hash).save(trial.evaluation, trial.save)
        recorder.on_trial_result(1, [], tune_trial, result)
    recorder.on_trial_complete(1, [], tune_trial)
    assert writer.wait(60)
    return recorder


def test_a_trained_trial_keeps_its_last_checkpoint_until_it_is_tested(plan, store, storage, assets):
    recorder = train_and_report(plan, store, storage, assets)
    assert not recorder.failures
    assert [run.is_trained for run in store.read_runs().trials.values()] == [True]
    (folder,) = (storage.trial_folder(trial_hash).path for trial_hash in recorder.writer.runs)
    assert [path.name for path in folder.iterdir()] == ["evaluation-000002"]


def test_a_trial_of_which_an_epoch_was_refused_is_not_uploaded(plan, store, storage, assets, monkeypatch):
    write = TrialRun.log_evaluations

    def refuse_the_second(run, reports):
        if len(reports) == 2:
            raise MlflowException("no more room", INVALID_PARAMETER_VALUE)
        write(run, reports)

    monkeypatch.setattr(TrialRun, "log_evaluations", refuse_the_second)
    recorder = train_and_report(plan, store, storage, assets)
    assert ["no more room" in reason for reason in recorder.failures.values()] == [True]
    assert kept(storage) == list(recorder.failures)
    assert [run.is_trained for run in store.read_runs().trials.values()] == [False]


# -- room on the disk ------------------------------------------------------------------------------


def check_room(footprint, store, storage, configs):
    check_disk_space(footprint, configs, 2, storage, store.tracking_uri, kept=configs)


def test_a_study_that_cannot_fit_is_one_line_and_one_that_fits_is_let_through(planned, storage, store):
    configs = list(planned.plan.configs.values())
    check_room(planned.footprint, store, storage, configs)
    large = replace(planned.footprint, parameters={"bert-tiny": 10**13})
    reason = refusal(check_room, large, store, storage, configs)
    # two trials with two checkpoints of four tensors, and three copies of weights, four bytes each
    assert "needs 760000.00 GB: make room" in reason


def test_only_checkpoints_of_the_plan_count_as_room(planned, storage, store):
    large = replace(planned.footprint, parameters={"bert-tiny": 10**10})
    configs = list(planned.plan.configs.values())

    def fill(trial_hash):
        """A checkpoint of four terabytes, without taking them from the disk."""
        folder = storage.trial_folder(trial_hash).path / "evaluation-000001"
        folder.mkdir(parents=True)
        with (folder / "optimizer.pt").open("wb") as file:
            file.truncate(4 * 10**12)

    fill("0123456789ab")  # of other settings: it stays
    assert "make room" in refusal(check_room, large, store, storage, configs)
    fill(configs[0].trial_hash)
    check_room(large, store, storage, configs)


def test_a_trial_never_has_more_on_disk_than_was_announced(planned, plan, storage, assets):
    trial = Trial(first(plan), assets["bert-tiny"], CPU)
    folder = storage.trial_folder(trial.config.trial_hash)
    announced = planned.footprint.checkpoints([trial.config])

    def size():
        return sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())

    def write_and_look(partial):
        trial.save(partial)
        assert 0 < size() <= announced

    for _ in range(trial.config.epochs):
        folder.save(trial.run_to_evaluation()["evaluation"], write_and_look)
    folder.keep_newest()
    assert 0 < size() <= planned.footprint.trained([trial.config])
