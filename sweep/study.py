"""A study from options to tested models, along one path: own, read, plan what is left, train, test."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from errors import StoppedError, UserError
from search_spaces import SearchSpace, TrialConfig
from sweep.cluster import (
    Resources,
    announce,
    check_cluster,
    check_shared,
    environment_tags,
    ray_session,
    resources_per_trial,
)
from sweep.hardware import bf16_available, check_driver
from sweep.invocation import invocation_of
from sweep.options import SweepOptions
from sweep.optuna_copy import OptunaCopy
from sweep.plan import Plan, make_plan
from sweep.plan_summary import plan_summary
from sweep.search import Proposer, Search, Values, check_same_search
from sweep.storage import StudyStorage, check_disk_space, writable_folder
from sweep.terminal import say, working
from sweep.testing import TestPhase, register_best
from sweep.training import train
from tracking import InvocationRun, StudyStore, TrialRun, check_study_name
from trainables.assets import ModelAssets, prepare_assets


@dataclass(frozen=True)
class StudyOutcome:
    """What became of a run of the command: the failed trials by name, each with its reason."""

    study: str
    failures: dict[str, str]


def run_study(
    options: SweepOptions, forecast: Callable[[Plan], Mapping[str, Any]] = lambda plan: {}
) -> StudyOutcome:
    """Own the study, read it once, train and test what is left, and register the best model.

    ``forecast`` says what is expected of the study; its report will say so beside what came.
    Everything that can be wrong with the input raises UserError and leaves no run behind. Raises
    StoreAwayError where MLflow was away for too long; what it lacks waits in the storage.
    """
    check_study_name(options.study)
    check_driver(options)
    plan = make_plan(options, bf16_available(options))
    plan = replace(plan, forecast=forecast(plan))
    storage = StudyStorage(options.storage_path, plan.study)
    writable_folder(Path(options.results_path) / plan.study, "--results-path")
    store = StudyStore(options.tracking_uri, plan.study, say=say, patience=options.store_patience)
    with storage.owned():
        say(plan_summary(plan))
        with invocation_of(plan, store, storage) as invocation:
            sweep = Sweep(plan, options, store, storage, invocation)
            sweep.finish_what_is_left()
            invocation.finish("FAILED" if sweep.failures else "FINISHED")
    return StudyOutcome(plan.study, sweep.failures)


@dataclass
class Sweep:
    """One run of the command; ``runs`` are the study's trials in MLflow, read once and kept up to date."""

    plan: Plan
    options: SweepOptions
    store: StudyStore
    storage: StudyStorage
    invocation: InvocationRun
    runs: dict[str, TrialRun] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # a trial's name -> reason
    superseded: list[InvocationRun | TrialRun] = field(default_factory=list)  # under --fresh
    generations: dict[int, list[Values]] = field(default_factory=dict)  # of a search, that are in MLflow
    assets: dict[str, ModelAssets] = field(default_factory=dict)
    resources: Resources | None = None  # once Ray runs

    def __post_init__(self) -> None:
        self.copy = OptunaCopy(self.options.optuna_storage, self.plan.study)

    def finish_what_is_left(self) -> None:
        """The path; a study with nothing left to do takes it with empty lists."""
        self.read()
        with contextlib.ExitStack() as self._session:
            if isinstance(self.plan.space, SearchSpace):
                search = self.search(self.plan.space)
                if not search.is_finished:
                    return
                self.confirm(search)
            self.finish_cells()
        register_best(self.plan, self.runs, self.store)

    def finish_cells(self) -> None:
        """Train and test what the plan's cells lack."""
        to_train, to_test = self.left()
        configs = self.plan.configs
        self._prepare(config for h, config in configs.items() if h in to_train | to_test)
        changed = self.changed(configs)
        to_train |= changed
        to_test -= changed
        if to_train or to_test:
            left = [config for h, config in configs.items() if h in to_train]
            resources = self._machines(left, left)
            self.start_anew(changed)  # nothing is refused from here on
            if left:
                self.train(left, self.plan, resources)
            self.test(to_train | to_test, resources)

    def search(self, space: SearchSpace) -> Search:
        """Train what the search lacks; returns it with the outcomes of its trials."""
        search = Search(
            space,
            Proposer(space, 1 / len(self.plan.splits.label_names)),
            resolve=self.plan.searched,
            known=self.generations,
            outcomes={h: known for h, run in self.runs.items() if (known := run.outcome())},
            keep=self._keep,
        )
        self.copy.update(search)
        for trial_hash in search.outcomes.keys() - self.plan.trials.keys():
            self.storage.trial_folder(trial_hash).remove()  # a kill may have left its checkpoint
        if search.is_finished:
            say(f"all {space.trials} trials of the search have ended")
            return search
        if ended := space.trials - search.left:
            say(f"resuming: {ended} of {space.trials} trials of the search have ended")
        self._prepare(self.plan.shared.replace(model=model) for model in space.models)
        if changed := self.changed({each.config.trial_hash: each.config for each in search.proposals}):
            names = ", ".join(sorted(map(search.name, changed)))
            raise UserError(
                f"the models or tokens of {names} have changed since: give --fresh, or another --name"
            )
        resources = self._machines(self.plan.in_training, self.plan.kept)
        self.start_anew(set())
        try:
            self.train(search, search, resources)
        finally:
            self.copy.update(search)
        return search

    def _keep(self, search: Search, generation: int, proposals: list[Values]) -> None:
        self.invocation.log_generation(generation, proposals)
        self.copy.update(search)

    def confirm(self, search: Search) -> None:
        """Plan to train the best of a search again, with fresh seeds."""
        best = search.winner()
        if best is None:
            raise StoppedError(
                "no trial of the search came to its last epoch: search smaller learning rates"
            )
        self.plan = self.plan.confirming(best.config)
        self.invocation.log_plan(self.plan.to_dict())
        val_acc = search.outcomes[best.config.trial_hash].best_val_acc
        seeds = ", ".join(str(cell.seed) for cell in self.plan.cells)
        say(f"best of {search.space.trials}: {best.name}, val_acc {val_acc:.4f}")
        say(f"trained again with seeds {seeds}")

    def read(self) -> None:
        """Read the study, having made sure that nobody else is at work on it."""
        read = self.store.read_runs(any_format=self.options.fresh)
        earlier = [run for run in read.invocations if run.run_id != self.invocation.run_id]
        running = [run for run in earlier if run.is_running]
        for other in running:
            elsewhere = other.storage_id != self.storage.owner["storage_id"]
            if elsewhere and not self.options.take_over:
                raise UserError(
                    f"study '{self.plan.study}' is being run by {other.process} with another "
                    "--storage-path: wait until it ends, or give --take-over if it was killed"
                )
        for run in [*running, *(run for run in read.trials.values() if run.is_running)]:
            run.end_killed()
        if self.options.fresh:
            self.superseded = [*earlier, *read.trials.values()]
            return
        self.storage.check_format()
        self.runs = dict(read.trials)
        if isinstance(self.plan.space, SearchSpace):
            # one that was stopped before it proposed anything has begun nothing
            check_same_search(self.invocation.tags, [run.tags for run in earlier if run.generations])
            for run in reversed(earlier):  # the newest last; a generation is proposed once
                self.generations = run.generations | self.generations

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
        elif any(planned.values()):
            say(
                f"resuming: {done} of {count} trials are finished, {len(to_test)} lack their test, "
                f"{len(to_train)} are to be trained"
            )
        return to_train, to_test

    def _prepare(self, configs: Iterable[TrialConfig]) -> None:
        """Load and tokenise what these trials read, each model once."""
        first = {config.model: config for config in configs if config.model not in self.assets}
        if first and self.options.ray_address:
            check_cluster(self.options.ray_address)  # else its absence would show after minutes of work
        with working("tokenising and loading weights"):
            self.assets |= {
                model: prepare_assets(first[model], self.plan.splits) for model in sorted(first)
            }

    def changed(self, configs: Mapping[str, TrialConfig]) -> set[str]:
        """The hashes of trials whose model or tokens have changed since, finished ones among them.

        Their results say nothing about what is there now.
        """
        pairs = {h: (self.runs.get(h), self.assets.get(c.model)) for h, c in configs.items()}
        return {
            trial_hash
            for trial_hash, (run, now) in pairs.items()
            if run and now and run.tags.get("assets_digest") != now.trial.digest
        }

    def start_anew(self, changed: set[str]) -> None:
        """Supersede what no longer counts, and remove its checkpoints."""
        if self.options.fresh and not self.runs:
            self.store.supersede(self.superseded)
            self.storage.clear()
            say("starting anew: earlier runs stay in MLflow, and no longer count")
        for trial_hash in changed:
            run = self.runs.pop(trial_hash)
            say(f"{run.name}: its model or its tokens have changed: starting it anew")
            self.storage.trial_folder(trial_hash).remove()
            run.supersede()

    def _machines(self, to_train: Sequence[TrialConfig], kept: Sequence[TrialConfig]) -> Resources:
        """Start Ray, the first time, and see that there is room for what is trained and kept."""
        if self.resources is None:
            dashboard = self._session.enter_context(
                ray_session(self.options.ray_address, self.options.dashboard_host)
            )
            self.resources = resources_per_trial(self.options)
            check_shared(self.storage.path)
            announce(dashboard, self.resources, self.store.pages())
        at_once = self.resources.concurrent
        uri = self.options.tracking_uri
        check_disk_space(self.plan, to_train, at_once, self.storage, uri, kept=kept)
        return self.resources

    def train(
        self, trials: Sequence[TrialConfig] | Search, group: Plan | Search, resources: Resources
    ) -> None:
        """Train to the end; ``group`` says what the trials are called and what they are for."""
        assets = {model: value.trial for model, value in self.assets.items()}
        tags = environment_tags(resources)

        def open_run(config: TrialConfig) -> TrialRun:
            trial_hash, digest = config.trial_hash, assets[config.model].digest
            return self.store.open_trial(
                group.cells_of(trial_hash),
                group.name(trial_hash),
                self.plan.dataset,
                self.invocation,
                {"assets_digest": digest, **tags, **group.tags(trial_hash), **self.plan.colour_tag(config)},
            )

        recorder = train(
            trials,
            self.plan,
            open_run,
            assets=assets,
            resources=resources,
            storage=self.storage,
            writer=self.store.background(),
            max_failures=self.options.max_failures,
        )
        self.runs |= recorder.runs
        self._fail(recorder.failures, group.name)

    def _fail(self, failures: Mapping[str, str], name: Callable[[str], str]) -> None:
        self.failures |= {name(trial_hash): reason for trial_hash, reason in failures.items()}

    def test(self, trial_hashes: set[str], resources: Resources) -> None:
        """Test every trained trial that lacks its test."""
        untested = {
            trial_hash: (config, self.runs[trial_hash])
            for trial_hash, config in self.plan.configs.items()
            if trial_hash in trial_hashes and trial_hash in self.runs and self.runs[trial_hash].is_trained
        }
        say(f"testing {len(untested)} trials, reloaded from MLflow")
        splits = {model: value.test for model, value in self.assets.items()}
        phase = TestPhase(splits, resources, self.storage)
        with working("testing"):
            phase.run(untested)
        self._fail(phase.failures, self.plan.name)
