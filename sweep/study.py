"""A study from options to tested models: own it, read it, and carry out one stage after the other."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errors import UserError
from search_spaces import SearchSpace, Stage
from search_spaces.plan import Forecast, Plan
from search_spaces.stages import Outcome, Proposal, Values
from sweep.cluster import (
    Resources,
    announce,
    check_cluster,
    check_shared,
    environment_tags,
    ray_session,
    resources_per_trial,
)
from sweep.footprint import check_disk_space
from sweep.hardware import bf16_available, check_driver
from sweep.invocation import invocation_of
from sweep.options import SweepOptions
from sweep.plan import PlannedStudy, colour_coordinates, make_plan
from sweep.plan_summary import plan_summary
from sweep.search import OptunaCopy, Proposer, check_same_search
from sweep.storage import StudyStorage, writable_folder
from sweep.terminal import say, working
from sweep.testing import TestPhase, register_best
from sweep.training import train
from tracking import InvocationRun, StudyStore, TrialRun, colour_tag
from trainables.assets import ModelAssets, prepare_assets


@dataclass(frozen=True)
class StudyOutcome:
    """What became of a run of the command: the failed trials by name, each with its reason."""

    study: str
    failures: dict[str, str]


def run_study(
    options: SweepOptions, forecast: Callable[[Plan], Forecast] = lambda plan: Forecast()
) -> StudyOutcome:
    """Own the study, read it once, train and test what is missing, and register the best model.

    ``forecast`` gives what is expected before training, which the report shows beside the results. Wrong
    input raises UserError and leaves no run behind. Raises StoreAwayError if MLflow was away for too long;
    results that it lacks wait in the storage.
    """
    check_driver(options)
    planned = make_plan(options, bf16_available(options))
    planned = planned.expecting(forecast(planned.plan))
    study = planned.plan.study
    storage = StudyStorage(options.storage_path, study)
    writable_folder(Path(options.results_path) / study, "--results-path")
    store = StudyStore(options.tracking_uri, study, say=say, patience=options.store_patience)
    with storage.owned():
        say(plan_summary(planned))
        with invocation_of(planned, store, storage) as invocation:
            sweep = Sweep(planned, options, store, storage, invocation)
            sweep.run()
            invocation.finish("FAILED" if sweep.failures else "FINISHED")
    return StudyOutcome(study, sweep.failures)


@dataclass
class Sweep:
    """One run of the command; ``runs`` are the study's trials in MLflow, read once and kept up to date."""

    planned: PlannedStudy
    options: SweepOptions
    store: StudyStore
    storage: StudyStorage
    invocation: InvocationRun
    runs: dict[str, TrialRun] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # of the trials that have ended
    failures: dict[str, str] = field(default_factory=dict)  # a trial's name -> reason
    superseded: list[InvocationRun | TrialRun] = field(default_factory=list)  # under --fresh
    generations: dict[int, list[Values]] = field(default_factory=dict)  # of a search, as MLflow has them
    assets: dict[str, ModelAssets] = field(default_factory=dict)
    resources: Resources | None = None  # once Ray runs

    @property
    def plan(self) -> Plan:
        return self.planned.plan

    def run(self) -> None:
        """Carry out each stage; stop after one that is not over because a trial failed."""
        self.read()
        copy = OptunaCopy(self.options.optuna_storage, self.plan.study)
        stages = self.planned.stages(
            proposer=self._proposer,
            known=self.generations,
            keep=self.invocation.log_generation,
            note=copy.update,
        )
        self._read_outcomes(with_curves=not all(stage.keeps_models for stage in stages))
        with contextlib.ExitStack() as self._session:
            for number, stage in enumerate(stages):
                self._plan_cells(stages[: number + 1])
                self.finish(stage, stages[number:])
                if not stage.is_over(self.outcomes, self._ended(stage)):
                    break
        register_best(self.plan, self.runs, self.store, stages[-1].meets_others)

    def _proposer(self, space: SearchSpace) -> Proposer:
        return Proposer(space, 1 / len(self.plan.dataset.label_names))

    def _ended(self, stage: Stage) -> set[str]:
        """The hashes of the trials that a stage need not train."""
        if not stage.keeps_models:
            return set(self.outcomes)
        return {trial_hash for trial_hash, run in self.runs.items() if run.is_trained}

    def finish(self, stage: Stage, stages: Sequence[Stage]) -> None:
        """Train and test what a stage lacks; ``stages`` are this stage and those after it."""
        to_train, to_test = self.unfinished(stage)
        if stage.is_over(self.outcomes, self._ended(stage)) and not to_test:
            stage.note(self.outcomes)
            return
        known = stage.proposed(self.outcomes)
        unknown = len(known) < stage.trials  # any model may come
        models = set(self.plan.space.models) if unknown else {p.config.model for p in to_train + to_test}
        self._prepare(models, known)
        changed = self.changed(stage, known)
        to_train += [each for each in known if each.trial_hash in changed]
        to_test = [each for each in to_test if each.trial_hash not in changed]
        resources = self._machines(stages, changed)
        self.start_anew(changed)  # nothing is refused from here on
        if to_train or unknown:
            try:
                self.train(stage, resources)
            finally:
                stage.note(self.outcomes)
        if stage.keeps_models:
            self.test([*to_test, *to_train], resources)

    def _plan_cells(self, stages: Sequence[Stage]) -> None:
        """Add to the plan the cells that have just become known."""
        planned = self.planned.with_cells(stages, self.outcomes)
        if planned.plan.cells != self.plan.cells:
            self.planned = planned
            self.invocation.log_plan(self.plan.model_dump(mode="json"))
            for line in stages[-1].lines(self.outcomes):
                say(line)

    def read(self) -> None:
        """Read the study, after a check that no other command works on it."""
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
        # ignore invocations that ended before their first proposal
        check_same_search(self.invocation.tags, [run.tags for run in earlier if run.generations])
        for run in reversed(earlier):  # the newest last; a generation is proposed once
            self.generations = run.generations | self.generations

    def _read_outcomes(self, with_curves: bool) -> None:
        """How the trials of earlier commands ended; a search judges by whole curves of val_acc."""
        found = {trial_hash: run.outcome(with_curves) for trial_hash, run in self.runs.items()}
        self.outcomes = {trial_hash: outcome for trial_hash, outcome in found.items() if outcome}

    def unfinished(self, stage: Stage) -> tuple[list[Proposal], list[Proposal]]:
        """The known trials of a stage that lack training, and those that lack only the test."""
        known, ended = stage.proposed(self.outcomes), self._ended(stage)
        to_train = stage.unfinished(self.outcomes, ended)
        to_test: list[Proposal] = []
        if stage.keeps_models:
            trained = [each for each in known if each.trial_hash in ended]
            to_test = [each for each in trained if not self.runs[each.trial_hash].is_tested]
        left = {each.trial_hash for each in to_train + to_test}
        done = [each for each in known if each.trial_hash not in left]
        for each in done:  # a kill may have left its checkpoint
            self.storage.trial_folder(each.trial_hash).remove()
        if line := stage.progress(len(done), len(to_test), any(p.trial_hash in self.runs for p in known)):
            say(line)
        return to_train, to_test

    def _prepare(self, models: Iterable[str], known: Iterable[Proposal]) -> None:
        """Load and tokenise what trials of these models read, once per model."""
        missing = sorted(set(models) - self.assets.keys())
        if not missing:
            return
        if self.options.ray_address:
            check_cluster(self.options.ray_address)  # else its absence would show after minutes of work
        configs = {each.config.model: each.config for each in known}
        with working("tokenising and loading weights"):
            for model in missing:
                config = configs.get(model) or self.planned.resolve(self.plan.shared.replace(model=model))
                self.assets[model] = prepare_assets(config, self.planned.splits)

    def changed(self, stage: Stage, known: Iterable[Proposal]) -> set[str]:
        """The hashes of trials, also finished ones, whose model or tokens have changed since.

        Their results do not describe the present model. UserError if later proposals depend on them.
        """
        changed = {}
        for each in known:
            run, now = self.runs.get(each.trial_hash), self.assets.get(each.config.model)
            if run and now and run.tags.get("assets_digest") != now.trial.digest:
                changed[each.trial_hash] = each.name
        if changed and not stage.keeps_models:
            names = ", ".join(sorted(changed.values()))
            raise UserError(
                f"the models or tokens of {names} have changed since: give --fresh, or another --name"
            )
        return set(changed)

    def start_anew(self, changed: set[str]) -> None:
        """Supersede runs that do not count, and remove their checkpoints."""
        if self.options.fresh and not self.runs:
            self.store.supersede(self.superseded)
            self.storage.clear()
            say("starting anew: earlier runs stay in MLflow, and no longer count")
        for trial_hash in changed:
            run = self.runs.pop(trial_hash)
            self.outcomes.pop(trial_hash, None)
            say(f"{run.name}: its model or its tokens have changed: starting it anew")
            self.storage.trial_folder(trial_hash).remove()
            run.supersede()

    def _machines(self, stages: Sequence[Stage], changed: set[str]) -> Resources:
        """Start Ray if it does not run yet, and check the room for what is trained and kept."""
        if self.resources is None:
            dashboard = self._session.enter_context(
                ray_session(self.options.ray_address, self.options.dashboard_host)
            )
            self.resources = resources_per_trial(self.options)
            check_shared(self.storage.path)
            announce(dashboard, self.resources, self.store.pages())
        footprint, ended = self.planned.footprint, self._ended(stages[0]) - changed
        check_disk_space(
            footprint,
            footprint.in_training(stages, self.outcomes, ended),
            self.resources.concurrent,
            self.storage,
            self.options.tracking_uri,
            kept=footprint.kept(stages, self.outcomes, ended),
        )
        return self.resources

    def train(self, stage: Stage, resources: Resources) -> None:
        """Train a stage to its end."""
        assets = {model: value.trial for model, value in self.assets.items()}
        tags = environment_tags(resources)

        def open_run(proposal: Proposal) -> TrialRun:
            config = proposal.config
            colour = colour_tag(*colour_coordinates(self.plan.space, config))
            return self.store.open_trial(
                proposal.cells,
                proposal.name,
                self.plan.dataset,
                self.invocation,
                {"assets_digest": assets[config.model].digest, **tags, **proposal.tags, **colour},
            )

        recorder = train(
            stage,
            self.outcomes,
            self._ended(stage),
            self.plan,
            open_run,
            assets=assets,
            resources=resources,
            storage=self.storage,
            writer=self.store.background(),
            max_failures=self.options.max_failures,
        )
        self.runs |= recorder.writer.runs
        self.failures |= recorder.failures_by_name()

    def test(self, proposals: Iterable[Proposal], resources: Resources) -> None:
        """Test the trials that are trained."""
        names, untested = {}, {}
        for each in proposals:
            run = self.runs.get(each.trial_hash)
            if run and run.is_trained:
                names[each.trial_hash] = each.name
                untested[each.trial_hash] = (each.config, run)
        say(f"testing {len(untested)} trials, reloaded from MLflow")
        splits = {model: value.test for model, value in self.assets.items()}
        phase = TestPhase(splits, resources, self.storage)
        with working("testing"):
            phase.run(untested)
        self.failures |= {names[trial_hash]: reason for trial_hash, reason in phase.failures.items()}
