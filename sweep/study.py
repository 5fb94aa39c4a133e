"""A study from the command line to tested models."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from errors import UserError
from search_spaces import trial_name
from sweep.assets import ModelAssets, prepare_assets
from sweep.cluster import Resources, check_shared, ray_session, resources_per_trial
from sweep.console import console
from sweep.disk_space import check_disk_space
from sweep.final_test import Patiently
from sweep.hardware import bf16_available
from sweep.invocation import Sweep, end_others, register_best_trial, start_invocation
from sweep.missing import changed_runs, forget_trained, unfinished
from sweep.options import SweepOptions
from sweep.physical_batch import with_measured_sizes
from sweep.plan import Plan, make_plan, plan_tables
from sweep.storage import StudyStorage, writable_folder
from tracking import Patience, StudyStore, check_study_name


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
    with storage.lock(), storage.scratch():
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
    to_train, to_test = unfinished(plan, runs)
    if not to_train and not to_test:
        console.print(f"all {len(plan.trials)} trials are already trained and tested")
        invocation = start_invocation(plan, store, storage.holder, patiently)
        try:
            end_others(invocation, store, patiently)
        except UserError:
            patiently(invocation.leave_behind)
            raise
        forget_trained(plan, runs, storage)
        patiently(lambda: register_best_trial(plan, store))
        patiently(lambda: invocation.finish("FINISHED"))
        return {}
    if runs:
        console.print(
            f"resuming: {len(plan.trials) - len(to_train) - len(to_test)} of {len(plan.trials)} trials are "
            f"finished, {len(to_test)} lack their test, {len(to_train)} are to be trained"
        )
    assets = _prepare(plan, {config.model for config in [*to_train, *to_test]})
    for trial_hash in changed_runs(plan, runs, assets):
        del runs[trial_hash]
    to_train, _ = unfinished(plan, runs)
    with ray_session(options.ray_address) as dashboard:
        resources = resources_per_trial(options)
        check_shared(storage.path)
        check_disk_space(
            plan, to_train, resources.concurrent, storage, options.tracking_uri, anew=options.fresh
        )
        _announce(dashboard, options, resources)
        plan = with_measured_sizes(plan, to_train, assets, resources, storage.root)
        invocation = start_invocation(plan, store, storage.holder, patiently)
        sweep = Sweep(plan, options, store, storage, invocation, assets, resources, patiently)
        failures = sweep.run()
    seeds = len(plan.space.seeds)
    return {trial_name(plan.trials[h], seeds): reason for h, reason in failures.items()}


def _prepare(plan: Plan, models: set[str]) -> dict[str, ModelAssets]:
    first = {cells[0].model: cells[0] for cells in plan.trials.values()}
    with console.status("tokenising and loading weights"):
        return {model: prepare_assets(first[model], plan.splits) for model in sorted(models)}


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
