"""A study from options to tested models, along one path: own, read, plan what is left, train, test."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Thread

from ray.exceptions import RayError
from ray.tune import TuneError

from errors import StoppedError, UserError, last_line, printable
from sweep.cluster import Resources, check_shared, environment_tags, ray_session, resources_per_trial
from sweep.options import SweepOptions
from sweep.plan import Plan, bf16_available, make_plan, plan_summary, plan_table
from sweep.progress import Progress
from sweep.storage import StudyStorage, check_disk_space, writable_folder
from sweep.terminal import console, say
from sweep.testing import TestPhase
from sweep.training import Recorder, train
from tracking import InvocationRun, StudyStore, TrialRun, check_study_name
from trainables.assets import ModelAssets, prepare_assets
from trainables.evaluation import METRICS

_LAST_WRITES = 3.0  # seconds for MLflow to take what is left when the user wants to stop


@dataclass(frozen=True)
class StudyOutcome:
    """What became of a run of the command: the failed trials by name, each with its reason."""

    study: str
    failures: dict[str, str]


def show_plan(options: SweepOptions) -> None:
    """Print what ``run_study`` would do."""
    check_study_name(options.study)
    plan = make_plan(options, bf16_available(options))
    say(plan_summary(plan))
    console.print(plan_table(plan))


def run_study(options: SweepOptions) -> StudyOutcome:
    """Own the study, read it once, train and test what is left, and register the best model.

    Everything that can be wrong with the input raises UserError and leaves no run behind. Raises
    StoreAwayError where MLflow was away for too long; what it lacks waits in the storage.
    """
    check_study_name(options.study)
    plan = make_plan(options, bf16_available(options))
    storage = StudyStorage(options.storage_path, plan.study)
    writable_folder(Path(options.results_path) / plan.study, "--results-path")
    store = StudyStore(options.tracking_uri, plan.study, say=say, patience=options.store_patience)
    with storage.owned():
        say(plan_summary(plan))
        with _invocation(plan, store, storage) as invocation:
            sweep = Sweep(plan, options, store, storage, invocation)
            sweep.finish_what_is_left()
            invocation.finish("FAILED" if sweep.failures else "FINISHED")
    return StudyOutcome(plan.study, {plan.name(h): reason for h, reason in sweep.failures.items()})


@contextlib.contextmanager
def _invocation(plan: Plan, store: StudyStore, storage: StudyStorage) -> Iterator[InvocationRun]:
    """The parent run, with the plan and the test split in it; a refused one is taken back."""
    title = f"{plan.study} · {datetime.now():%Y-%m-%d %H:%M}"
    tags = {"space": plan.space.name, "question": plan.space.question, **storage.owner}
    invocation = store.start_invocation(title, plan.to_dict(), tags)
    try:
        test = plan.splits.test
        invocation.log_test_split(test.row_ids, test.labels, test.texts)
        yield invocation
    except UserError:
        invocation.discard()
        raise
    except BaseException:
        _in_time(lambda: invocation.finish("KILLED"))
        raise


@dataclass
class Sweep:
    """One run of the command; ``runs`` are the study's trials in MLflow, read once and kept up to date."""

    plan: Plan
    options: SweepOptions
    store: StudyStore
    storage: StudyStorage
    invocation: InvocationRun
    runs: dict[str, TrialRun] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # trial hash -> reason
    superseded: list[InvocationRun | TrialRun] = field(default_factory=list)  # under --fresh

    def finish_what_is_left(self) -> None:
        """The path; a study with nothing left to do takes it with empty lists."""
        self.read()
        to_train, to_test = self.left()
        assets = self._prepare({*to_train, *to_test})
        changed = self.changed(assets)
        to_train |= changed
        to_test -= changed
        if to_train or to_test:
            with ray_session(self.options.ray_address) as dashboard:
                resources = self._resources(to_train)
                self.start_anew(changed)  # nothing is refused from here on
                self._announce(dashboard, resources)
                self.train(to_train, assets, resources)
                self.test(to_train | to_test, assets, resources)
        self.register_best()

    def read(self) -> None:
        """Read the study, having made sure that nobody else is at work on it."""
        read = self.store.read_runs()
        earlier = [run for run in read.invocations if run.run_id != self.invocation.run_id]
        running = [run for run in earlier if run.is_running]
        for other in running:
            elsewhere = other.storage_id not in {"", self.storage.owner["storage_id"]}
            if elsewhere and not self.options.take_over:
                raise UserError(
                    f"study '{self.plan.study}' is being run by {other.process} with another "
                    "--storage-path: wait until it ends, or give --take-over if it was killed"
                )
        for run in [*running, *(run for run in read.trials.values() if run.is_running)]:
            run.end_killed()
        if self.options.fresh:
            self.superseded = [*earlier, *read.trials.values()]
        else:
            self.runs = dict(read.trials)

    def left(self) -> tuple[set[str], set[str]]:
        """The hashes of the trials that lack training, and of those that lack only the test."""
        planned = {trial_hash: self.runs.get(trial_hash) for trial_hash in self.plan.trials}
        to_train = {h for h, run in planned.items() if run is None or not run.is_trained}
        to_test = {h for h, run in planned.items() if run and run.is_trained and not run.is_tested}
        for trial_hash in planned.keys() - to_train - to_test:  # a kill may have left its checkpoint
            self.storage.trial_folder(trial_hash).remove()
        done, count = len(planned) - len(to_train) - len(to_test), len(planned)
        if done == count:
            say(f"all {count} trials are already trained and tested")
        elif self.runs:
            say(
                f"resuming: {done} of {count} trials are finished, {len(to_test)} lack their test, "
                f"{len(to_train)} are to be trained"
            )
        return to_train, to_test

    def _prepare(self, trial_hashes: set[str]) -> dict[str, ModelAssets]:
        configs = self.plan.configs
        first = {configs[h].model: configs[h] for h in sorted(trial_hashes)}
        with console.status("tokenising and loading weights"):
            return {model: prepare_assets(first[model], self.plan.splits) for model in sorted(first)}

    def changed(self, assets: Mapping[str, ModelAssets]) -> set[str]:
        """The hashes of trials whose model or tokens have changed since, finished ones among them.

        Their results say nothing about what is there now.
        """
        pairs = {h: (self.runs.get(h), assets.get(c.model)) for h, c in self.plan.configs.items()}
        return {
            trial_hash
            for trial_hash, (run, now) in pairs.items()
            if run and now and run.assets_digest not in {"", now.trial.digest}
        }

    def start_anew(self, changed: set[str]) -> None:
        """Supersede what no longer counts, and remove its checkpoints."""
        if self.options.fresh:
            self.store.supersede(self.superseded)
            self.storage.clear()
            say("starting anew: earlier runs stay in MLflow, and no longer count")
        for trial_hash in changed:
            run = self.runs.pop(trial_hash)
            say(f"{run.name}: its model or its tokens have changed: starting it anew")
            self.storage.trial_folder(trial_hash).remove()
            run.supersede()

    def _resources(self, to_train: set[str]) -> Resources:
        resources = resources_per_trial(self.options)
        check_shared(self.storage.path)
        configs = [self.plan.configs[trial_hash] for trial_hash in to_train]
        check_disk_space(self.plan, configs, resources.concurrent, self.storage, self.options.tracking_uri)
        return resources

    def _announce(self, dashboard: str, resources: Resources) -> None:
        if not resources.gpus:
            say("no GPU in use: trials run on the CPU")
        say(
            f"{resources.concurrent} trials at once, each with {resources.cpus:g} CPU"
            + (f" and {resources.gpus:g} GPU" if resources.gpus else "")
        )
        if dashboard:
            token = "it asks for the token of `ray get-auth-token`"
            say(f"Ray dashboard  http://{dashboard}  ({token})")
        uri = self.options.tracking_uri
        page = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
        say(f"MLflow         {page}")

    def train(self, to_train: set[str], assets: Mapping[str, ModelAssets], resources: Resources) -> None:
        """Train to the end, and wait until all of it is in MLflow."""
        if not to_train:
            return
        configs = {h: config for h, config in self.plan.configs.items() if h in to_train}
        trial_assets = {model: value.trial for model, value in assets.items()}
        names, epochs = {h: self.plan.name(h) for h in configs}, {h: c.epochs for h, c in configs.items()}
        metrics = ["train_loss", "train_acc", *(f"val_{name}" for name in METRICS)]
        tags = environment_tags(resources)
        writer = self.store.background()

        def open_run(trial_hash: str) -> TrialRun:
            digest = trial_assets[configs[trial_hash].model].digest
            return self.store.open_trial(
                self.plan.trials[trial_hash],
                len(self.plan.space.seeds),
                self.plan.dataset,
                self.invocation,
                tags | {"assets_digest": digest},
            )

        with Progress(names, epochs, metrics, resources.concurrent) as progress:
            recorder = Recorder(
                self.plan,
                open_run,
                assets=trial_assets,
                storage=self.storage,
                writer=writer,
                progress=progress,
            )
            try:
                train(
                    list(configs.values()),
                    trial_assets,
                    resources,
                    self.storage,
                    recorder=recorder,
                    max_failures=self.options.max_failures,
                )
                writer.finish()
            except (KeyboardInterrupt, OSError, RayError, TuneError) as error:
                recorder.interrupt()
                writer.wait(_LAST_WRITES)
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise StoppedError(
                    f"training stopped ({last_line(error)}): run the same command again to continue"
                ) from error
            finally:
                writer.stop()
        self.failures |= recorder.failures
        self.runs |= recorder.runs

    def test(self, trial_hashes: set[str], assets: Mapping[str, ModelAssets], resources: Resources) -> None:
        """Test every trained trial that lacks its test."""
        untested = {
            trial_hash: (config, self.runs[trial_hash])
            for trial_hash, config in self.plan.configs.items()
            if trial_hash in trial_hashes and trial_hash not in self.failures
        }
        say(f"testing {len(untested)} trials, reloaded from MLflow")
        splits = {model: value.test for model, value in assets.items()}
        phase = TestPhase(splits, resources, self.storage)
        with console.status("testing"):
            phase.run(untested)
        self.failures |= phase.failures

    def register_best(self) -> None:
        """Register the model of the trial with the highest val_acc, the earliest in the plan on ties."""
        found = [self.runs[h] for h in self.plan.trials if h in self.runs]
        tested = [run for run in found if run.is_tested]
        if tested:
            best = max(tested, key=lambda run: run.metrics["best_val_acc"])
            uri = self.store.register_best(best)
            val_acc = best.metrics["best_val_acc"]
            say(printable(f"best model     {uri}  ({best.name}, val_acc {val_acc:.4f})"))


def _in_time(call: Callable[[], None]) -> None:
    """Give a last call to MLflow some seconds: a server that hangs must not hold up Ctrl-C."""

    def attempt() -> None:
        with contextlib.suppress(Exception):
            call()

    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(_LAST_WRITES)
