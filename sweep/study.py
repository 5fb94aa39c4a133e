"""A study from the command line to tested models."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from search_spaces import StoreAwayError, TrialConfig, printable
from sweep.assets import ModelAssets, prepare_assets
from sweep.cluster import Resources, check_shared, ray_session, resources_per_trial
from sweep.console import console
from sweep.disk_space import check_disk_space
from sweep.environment import environment_tags
from sweep.final_test import UntestedTrial, run_tests
from sweep.hardware import bf16_available
from sweep.launch import train
from sweep.options import SweepOptions
from sweep.physical_batch import with_measured_sizes
from sweep.plan import Plan, make_plan, plan_tables
from sweep.progress import Progress
from sweep.recorder import Recorder
from sweep.storage import StudyStorage, writable_folder
from sweep.store_writer import StoreWriter
from tracking import (
    InvocationRun,
    Patience,
    StudyStore,
    TrialRun,
    check_study_name,
    register_best,
    run_name,
)

Patiently = Callable[..., Any]  # calls a function of the store until it works

_BRIEFLY = 3.0  # seconds for a store to take what is left when the user wants to stop


@dataclass(frozen=True)
class StudyOutcome:
    """What became of an invocation: the failed trials by name, each with its reason."""

    study: str
    failures: dict[str, str]


def show_plan(options: SweepOptions) -> None:
    """Print what ``run_study`` would do."""
    check_study_name(options.study)
    for part in plan_tables(make_plan(options, bf16_available(options))):
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)


def run_study(options: SweepOptions) -> StudyOutcome:
    """Plan, train what is missing, test what is untested.

    Everything that can be wrong with the input raises UserError before the first run is created.
    Raises StoreAwayError where MLflow was away for too long; what it lacks waits in the storage.
    """
    check_study_name(options.study)
    plan = make_plan(options, bf16_available(options))
    storage = StudyStorage(options.storage_path, plan.study)
    writable_folder(Path(options.results_path) / plan.study, "--results-path")
    store = StudyStore(options.tracking_uri, plan.study)
    patience = Patience(store.answers, console.print)
    with storage.lock():
        console.print(plan_tables(plan)[0], markup=False)
        patiently = partial(patience.call, seconds=options.store_patience)
        failures = _finish(plan, options, store, storage, patiently)
        storage.tidy()
    return StudyOutcome(plan.study, failures)


def _finish(
    plan: Plan, options: SweepOptions, store: StudyStore, storage: StudyStorage, patiently: Patiently
) -> dict[str, str]:
    """Do what is left of the study; returns the failed trials by name, each with its reason."""
    runs = {} if options.fresh else patiently(store.trial_runs)
    to_train, to_test = _unfinished(plan, runs, storage)
    if not to_train and not to_test:
        console.print(f"all {len(plan.trials)} trials are already trained and tested")
        patiently(lambda: start_invocation(plan, store).finish("FINISHED"))
        patiently(lambda: _register_best(plan, store))
        return {}
    assets = _prepare(plan, {config.model for config in [*to_train, *to_test]})
    with ray_session(options.ray_address) as dashboard:
        resources = resources_per_trial(options)
        check_shared(storage.path)
        check_disk_space(plan, to_train, resources.concurrent, storage, options.tracking_uri)
        _announce(dashboard, options, resources)
        plan, to_train = with_measured_sizes(plan, to_train, assets, resources, storage.root)
        invocation = patiently(lambda: start_invocation(plan, store, storage.holder))
        sweep = _Sweep(plan, options, store, storage, invocation, assets, resources, patiently)
        failures = sweep.run(to_train)
    seeds = len(plan.space.seeds)
    return {run_name(plan.trials[h], seeds): reason for h, reason in failures.items()}


def _leave_changed(
    to_train: Sequence[TrialConfig],
    assets: Mapping[str, ModelAssets],
    store: StudyStore,
    storage: StudyStorage,
) -> None:
    """Leave behind the runs of trials whose model or tokens have changed, which start anew."""
    digests = {config.trial_hash: assets[config.model].trial.digest for config in to_train}
    for trial_hash, run in store.trial_runs().items():
        if run.assets_digest not in {"", digests.get(trial_hash, run.assets_digest)}:
            console.print(
                f"{run.name}: its model or its tokens have changed: starting it anew", markup=False
            )
            storage.forget(trial_hash)
            run.leave_behind()


def start_invocation(
    plan: Plan, store: StudyStore, holder: Mapping[str, str] = MappingProxyType({})
) -> InvocationRun:
    """Open the parent run, with the plan, the test split and who carries it out in it."""
    title = f"{plan.study} · {datetime.now():%Y-%m-%d %H:%M}"
    tags = {"space": plan.space.name, "question": plan.space.question, **holder}
    invocation = store.start_invocation(title, plan.to_dict(), tags)
    test = plan.splits.test
    invocation.log_test_split(test.row_ids, test.labels, test.texts)
    return invocation


@dataclass(frozen=True)
class _Sweep:
    """One invocation under way; its phases return trial hash -> reason for what failed."""

    plan: Plan
    options: SweepOptions
    store: StudyStore
    storage: StudyStorage
    invocation: InvocationRun
    assets: dict[str, ModelAssets]
    resources: Resources
    patiently: Patiently

    def run(self, to_train: Sequence[TrialConfig]) -> dict[str, str]:
        status = "KILLED"
        try:
            with self.invocation.heartbeat():
                self._take_over(to_train)
                failures = self.train(to_train)
                failures |= self.test(failures)
                self.patiently(lambda: _register_best(self.plan, self.store))
            status = "FAILED" if failures else "FINISHED"
        finally:
            with suppress(StoreAwayError):  # the next invocation ends what this one leaves open
                self.patiently(lambda: self.invocation.finish(status), seconds=_BRIEFLY)
        return failures

    def _take_over(self, to_train: Sequence[TrialConfig]) -> None:
        """Make sure that nobody else is at work, and leave behind what is not to be gone on with."""
        say = partial(console.print, markup=False)
        self.patiently(lambda: self.store.check_alone(self.invocation, say))
        self.patiently(lambda: self.store.end_killed_invocations(self.invocation))
        if self.options.fresh:
            self.patiently(lambda: self.store.start_anew(self.invocation))
            self.storage.clear()
        else:
            self.patiently(lambda: _leave_changed(to_train, self.assets, self.store, self.storage))

    def train(self, configs: Sequence[TrialConfig]) -> dict[str, str]:
        if not configs:
            return {}
        trials = {config.trial_hash: self.plan.trials[config.trial_hash] for config in configs}
        assets = {model: value.trial for model, value in self.assets.items()}
        writer = StoreWriter(Patience(self.store.answers, console.print))
        open_run = partial(self._open_run, environment_tags(self.resources))
        with Progress(trials, self.resources.concurrent) as progress:
            recorder = Recorder(
                self.plan,
                open_run,
                assets=assets,
                storage=self.storage,
                writer=writer,
                progress=progress,
            )
            try:
                train(
                    configs,
                    assets,
                    self.resources,
                    self.storage,
                    recorder=recorder,
                    max_failures=self.options.max_failures,
                )
                self._wait_for(writer)
            except KeyboardInterrupt:
                recorder.interrupt()
                writer.wait(_BRIEFLY)
                raise
            finally:
                writer.stop()
        return recorder.failures

    def _open_run(self, tags: dict[str, str], cells: Sequence[TrialConfig]) -> TrialRun:
        seeds = len(self.plan.space.seeds)
        tags = tags | {"assets_digest": self.assets[cells[0].model].trial.digest}
        return self.store.open_trial(cells, seeds, self.plan.dataset, self.invocation, tags)

    def _wait_for(self, writer: StoreWriter) -> None:
        if writer.wait(_BRIEFLY):
            return
        console.print(f"waiting for the tracking store to take what is left: {_unwritten(writer)}")
        if not writer.wait(self.options.store_patience):
            raise StoreAwayError(
                f"the tracking store lacks {_unwritten(writer)}, which wait in {self.storage.path}: "
                "run the same command again to write them"
            )

    def test(self, already_failed: dict[str, str]) -> dict[str, str]:
        runs = self.patiently(self.store.trial_runs)
        untested = [
            UntestedTrial(cells[0], runs[trial_hash])
            for trial_hash, cells in self.plan.trials.items()
            if trial_hash not in already_failed and not runs[trial_hash].is_tested
        ]
        console.print(f"testing {len(untested)} trials, reloaded from MLflow")
        test_splits = {model: value.test for model, value in self.assets.items()}
        with console.status("testing"):
            return run_tests(untested, test_splits, self.resources, self.patiently)


def _unwritten(writer: StoreWriter) -> str:
    waiting = writer.waiting()
    return f"{sum(waiting.values())} writes of {len(waiting)} trials"


def _unfinished(
    plan: Plan, runs: dict[str, TrialRun], storage: StudyStorage
) -> tuple[list[TrialConfig], list[TrialConfig]]:
    """The trials that lack training, and those that lack only the test."""
    to_train, to_test = [], []
    for trial_hash, cells in plan.trials.items():
        run = runs.get(trial_hash)
        if run is None or not run.is_trained:
            to_train.append(cells[0])
            continue
        storage.forget(trial_hash)  # a kill may have come between the upload and the removal
        if not run.is_tested:
            to_test.append(cells[0])
    done = len(plan.trials) - len(to_train) - len(to_test)
    if runs and (to_train or to_test):
        console.print(
            f"resuming: {done} of {len(plan.trials)} trials are finished, "
            f"{len(to_test)} lack their test, {len(to_train)} are to be trained"
        )
    return to_train, to_test


def _prepare(plan: Plan, models: set[str]) -> dict[str, ModelAssets]:
    first = {cells[0].model: cells[0] for cells in plan.trials.values()}
    with console.status("tokenising and loading weights"):
        return {model: prepare_assets(first[model], plan.splits) for model in sorted(models)}


def _register_best(plan: Plan, store: StudyStore) -> None:
    """Register the model of the trial with the highest val_acc, the earliest in the plan on ties."""
    runs = store.trial_runs()
    tested = [runs[h] for h in plan.trials if h in runs and runs[h].is_tested]
    if tested:
        best = max(tested, key=lambda run: run.metrics["best_val_acc"])
        uri = register_best(store.client, plan.study, best)
        line = f"best model     {uri}  ({best.name}, val_acc {best.metrics['best_val_acc']:.4f})"
        console.print(printable(line), markup=False)


def _announce(dashboard: str, options: SweepOptions, resources: Resources) -> None:
    if not resources.gpus:
        console.print("no GPU in use: trials run on the CPU")
    console.print(
        f"{resources.concurrent} trials at once, each with {resources.cpus:g} CPU"
        + (f" and {resources.gpus:g} GPU" if resources.gpus else "")
    )
    if dashboard:
        console.print(f"Ray dashboard  http://{dashboard}  (it asks for the token of `ray get-auth-token`)")
    if options.tracking_uri.startswith("http"):
        console.print(f"MLflow         {options.tracking_uri}", markup=False)
    else:
        console.print(f"MLflow         mlflow ui --backend-store-uri {options.tracking_uri}", markup=False)
