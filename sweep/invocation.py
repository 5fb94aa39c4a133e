"""One invocation under way: take the study over, train, test, register the best."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from threading import Event, Thread

from ray.exceptions import RayError
from ray.tune import TuneError

from errors import StoppedError, StoreAwayError, UserError, last_line, printable
from search_spaces import TrialConfig
from sweep.assets import ModelAssets
from sweep.cluster import Resources
from sweep.console import console
from sweep.environment import environment_tags
from sweep.final_test import Patiently, UntestedTrial, run_tests
from sweep.launch import train
from sweep.missing import changed_runs, forget_trained, unfinished
from sweep.options import SweepOptions
from sweep.plan import Plan
from sweep.progress import Progress
from sweep.recorder import Recorder
from sweep.storage import StudyStorage
from sweep.store_writer import StoreWriter
from tracking import InvocationRun, Patience, StudyStore, TrialRun, register_best

_BRIEFLY = 3.0  # seconds for a store to take what is left when the user wants to stop


def start_invocation(
    plan: Plan, store: StudyStore, holder: Mapping[str, str], patiently: Patiently
) -> InvocationRun:
    """Open the parent run, with the plan, the test split and who carries it out in it."""
    title = f"{plan.study} · {datetime.now():%Y-%m-%d %H:%M}"
    tags = {"space": plan.space.name, "question": plan.space.question, **holder}
    invocation: InvocationRun = patiently(lambda: store.start_invocation(title, plan.to_dict(), tags))
    test = plan.splits.test
    patiently(lambda: invocation.log_test_split(test.row_ids, test.labels, test.texts))
    return invocation


def end_others(invocation: InvocationRun, store: StudyStore, patiently: Patiently) -> None:
    """End what killed invocations left running; UserError where one with another storage is at work."""
    say = partial(console.print, markup=False)
    patiently(lambda: store.check_alone(invocation, say))
    patiently(lambda: store.end_killed_invocations(invocation))


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
    _lost: Event = field(default_factory=Event)  # to another machine, which took this one for dead

    def run(self) -> dict[str, str]:
        """Take over, train, test what is untested, register the best; returns what failed."""
        try:
            with self.invocation.heartbeat(self._lose):
                failures = self.train(self._take_over())
                failures |= self.test(failures)
                self.patiently(lambda: register_best_trial(self.plan, self.store))
        except BaseException as error:
            if self._lost.is_set():
                raise StoppedError(
                    "another machine has taken this study over, because MLflow had not heard of this one"
                ) from error
            if isinstance(error, UserError):  # it was refused before it did anything
                self.patiently(self.invocation.leave_behind)
            else:
                _briefly(lambda: self.invocation.finish("KILLED"))
            raise
        self.patiently(lambda: self.invocation.finish("FAILED" if failures else "FINISHED"))
        return failures

    def _lose(self) -> None:
        self._lost.set()
        os.kill(os.getpid(), signal.SIGINT)  # whatever the main thread waits for

    def _take_over(self) -> list[TrialConfig]:
        """Make sure that nobody else is at work, and leave behind what is not to be gone on with.

        Returns what is to be trained: until now another machine may have been at work.
        """
        end_others(self.invocation, self.store, self.patiently)
        if self.options.fresh:
            self.patiently(lambda: self.store.start_anew(self.invocation))
            self.storage.clear()
            console.print("starting anew: earlier runs stay in MLflow, and no longer count")
        runs = self.patiently(self.store.trial_runs)
        for trial_hash, run in changed_runs(self.plan, runs, self.assets).items():
            console.print(
                f"{run.name}: its model or its tokens have changed: starting it anew", markup=False
            )
            self.storage.forget(trial_hash)
            self.patiently(run.leave_behind)
            del runs[trial_hash]
        forget_trained(self.plan, runs, self.storage)
        to_train, to_test = unfinished(self.plan, runs)
        if any(config.model not in self.assets for config in [*to_train, *to_test]):
            raise StoppedError("another machine has started the study anew: run the same command again")
        return to_train

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
                if not self._lost.is_set():  # else the runs are no longer this invocation's
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
        seen = time.monotonic()  # a slow store is not away, however long it takes
        while not writer.wait(_BRIEFLY):
            if self.store.answers():
                seen = time.monotonic()
            elif time.monotonic() - seen > self.options.store_patience:
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
