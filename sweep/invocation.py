"""One invocation under way: take the study over, train, test, register the best."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from threading import Thread
from types import MappingProxyType

from ray.exceptions import RayError
from ray.tune import TuneError

from search_spaces import StoppedError, StoreAwayError, TrialConfig, last_line, printable
from sweep.assets import ModelAssets
from sweep.cluster import Resources
from sweep.console import console
from sweep.environment import environment_tags
from sweep.final_test import Patiently, UntestedTrial, run_tests
from sweep.launch import train
from sweep.options import SweepOptions
from sweep.plan import Plan
from sweep.progress import Progress
from sweep.recorder import Recorder
from sweep.storage import StudyStorage
from sweep.store_writer import StoreWriter
from tracking import InvocationRun, Patience, StudyStore, TrialRun, register_best

_BRIEFLY = 3.0  # seconds for a store to take what is left when the user wants to stop


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
class Sweep:
    """One invocation under way; its phases return trial hash -> reason for what failed."""

    plan: Plan
    options: SweepOptions
    store: StudyStore
    storage: StudyStorage
    invocation: InvocationRun
    assets: dict[str, ModelAssets]
    resources: Resources
    patiently: Patiently
    changed: Mapping[str, TrialRun]  # runs that are to start anew

    def run(self, to_train: Sequence[TrialConfig]) -> dict[str, str]:
        """Train, test what is untested, register the best; returns what failed."""
        try:
            with self.invocation.heartbeat(_taken_over):
                failures = self.train(self._take_over(to_train))
                failures |= self.test(failures)
                self.patiently(lambda: register_best_trial(self.plan, self.store))
        except BaseException:
            _briefly(lambda: self.invocation.finish("KILLED"))
            raise
        self.patiently(lambda: self.invocation.finish("FAILED" if failures else "FINISHED"))
        return failures

    def _take_over(self, to_train: Sequence[TrialConfig]) -> list[TrialConfig]:
        """Make sure that nobody else is at work, and leave behind what is not to be gone on with.

        Returns what is left to be trained: until now another machine may have been at work.
        """
        say = partial(console.print, markup=False)
        self.patiently(lambda: self.store.check_alone(self.invocation, say))
        self.patiently(lambda: self.store.end_killed_invocations(self.invocation))
        if self.options.fresh:
            self.patiently(lambda: self.store.start_anew(self.invocation))
            self.storage.clear()
            console.print("starting anew: earlier runs stay in MLflow, and no longer count")
            return list(to_train)
        for trial_hash, run in self.changed.items():
            say(f"{run.name}: its model or its tokens have changed: starting it anew")
            self.storage.forget(trial_hash)
            self.patiently(run.leave_behind)
        runs = self.patiently(self.store.trial_runs)
        return [c for c in to_train if c.trial_hash not in runs or not runs[c.trial_hash].is_trained]

    def train(self, configs: Sequence[TrialConfig]) -> dict[str, str]:
        """Train to the end, and wait until all of it is in MLflow."""
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
            except (KeyboardInterrupt, OSError, RayError, TuneError) as error:
                recorder.interrupt()
                writer.wait(_BRIEFLY)
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise StoppedError(
                    f"training stopped ({last_line(error)}): run the same command again to continue"
                ) from error
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
        """Test every trained trial of the plan that lacks its test."""
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


def _taken_over() -> None:
    console.print("another machine has taken this study over, because MLflow had not heard of this one")
    os.kill(os.getpid(), signal.SIGINT)  # as if the user had stopped it


def _briefly(call: Callable[[], None]) -> None:
    """Give a call to the store some seconds; what it leaves open the next invocation ends."""

    def attempt() -> None:
        with suppress(Exception):
            call()

    thread = Thread(target=attempt, daemon=True)  # a server that hangs must not hold up Ctrl-C
    thread.start()
    thread.join(_BRIEFLY)


def _unwritten(writer: StoreWriter) -> str:
    waiting = writer.waiting()
    return f"{sum(waiting.values())} writes of {len(waiting)} trials"


def register_best_trial(plan: Plan, store: StudyStore) -> None:
    """Register the model of the trial with the highest val_acc, the earliest in the plan on ties."""
    runs = store.trial_runs()
    tested = [runs[h] for h in plan.trials if h in runs and runs[h].is_tested]
    if tested:
        best = max(tested, key=lambda run: run.metrics["best_val_acc"])
        uri = register_best(store.client, plan.study, best)
        line = f"best model     {uri}  ({best.name}, val_acc {best.metrics['best_val_acc']:.4f})"
        console.print(printable(line), markup=False)
