"""Whether anything grows over hundreds of trials: ``python -m tests.faults.leaks``.

Runs one study of many one-epoch trials with one worker, which takes them all, and looks at the worker
and at the command after each: resident memory, open files, threads; and at the disk that checkpoints
take. Compares what they held at least over trials 11 to 30, over the middle twenty and over the last
twenty: an upload under way takes some and gives it back, a leak does not. Pools of threads and of
connections fill as they happen to be needed, up to their limit, so files and threads are judged from the
middle on, memory from trial 11. Exit code 1 where something has grown by more than 2 %, or checkpoints
took more than the command had announced.
"""

import argparse
import contextlib
import re
import signal
import sys
import tempfile
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import psutil

from tests.faults import processes
from tests.faults.study import Command

_FIRST, _SPAN = 10, 20
_FLAT = 0.02
_WORKER = "ray::ResourceTrainable"


@dataclass(frozen=True)
class Use:
    """What a process holds, or several together."""

    megabytes: float
    files: int
    threads: int


def use_of(process: psutil.Process) -> Use:
    """What a process holds now; memory without what it shares with Ray's object store."""
    memory = process.memory_info()
    return Use((memory.rss - memory.shared) / 1e6, process.num_fds(), process.num_threads())


class Watch:
    """Looks at a study after each of its trials."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.worker: list[Use] = []
        self.driver: list[Use] = []
        self.workers: set[int] = set()
        self.most_checkpoint_bytes = 0

    def follow(self) -> int:
        """Until the command ends; returns its exit code."""
        while self.command.is_running:
            seen = self.command.said().count("epoch 1/1")
            with contextlib.suppress(psutil.Error, OSError):  # processes end, checkpoints go
                self._look(seen)
            with contextlib.suppress(TimeoutError):
                processes.wait_until(
                    lambda seen=seen: (
                        self.command.said().count("epoch 1/1") > seen or not self.command.is_running
                    ),
                    0.5,
                    "a trial",
                )
        return self.command.wait()

    def _look(self, seen: int) -> None:
        storage = self.command.folder / "ray_results"
        sizes = [path.stat().st_size for path in storage.rglob("epoch-*/*") if path.is_file()]
        self.most_checkpoint_bytes = max(self.most_checkpoint_bytes, sum(sizes))
        if seen <= len(self.worker):
            return
        workers = [p for p in processes.family(self.command.folder) if p.name().startswith(_WORKER)]
        if len(workers) == 1:
            self.workers.add(workers[0].pid)
            self.worker += [use_of(workers[0])] * (seen - len(self.worker))
            self.driver += [use_of(psutil.Process(self.command.process.pid))] * (seen - len(self.driver))


@dataclass(frozen=True)
class Course:
    """The least that was held of something early, in the middle and late."""

    what: str
    early: float
    middle: float
    late: float

    @property
    def growth(self) -> float:
        """The share by which it has grown since it had to be flat."""
        return self.late / (self.early if self.what == "megabytes" else self.middle) - 1


def courses(uses: list[Use]) -> list[Course]:
    """One for each kind of use."""
    middle = (len(uses) - _SPAN) // 2
    spans = [uses[start:][:_SPAN] for start in (_FIRST, middle, len(uses) - _SPAN)]
    return [
        Course(field.name, *(min(astuple(use)[i] for use in span) for span in spans))
        for i, field in enumerate(fields(Use))
    ]


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    trials = parser.parse_args().trials
    study = (
        "--space fixed_lr --name leaks --demo --models bert-tiny --target-batch-sizes 64 --epochs 1 "
        "--train-size 320 --eval-size 60 --max-length 32 --precision fp32 --max-concurrent 1 --seed"
    )
    with tempfile.TemporaryDirectory(prefix="leaks-") as folder:
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, signal.default_int_handler)
        command = Command(Path(folder), study=[*study.split(), *map(str, range(trials))])
        watch = Watch(command)
        command.start()
        try:
            code = watch.follow()
        finally:
            command.kill()
        print(f"{trials} trials, {len(watch.workers)} worker, exit code {code}")
        found = {"worker": courses(watch.worker), "command": courses(watch.driver)}
        print("| process | what | trials 11 to 30 | middle 20 | last 20 | growth |")
        print("|---|---|---:|---:|---:|---:|")
        for process, its in found.items():
            for of in its:
                row = (process, of.what, f"{of.early:.1f}", f"{of.middle:.1f}", f"{of.late:.1f}")
                print(f"| {' | '.join(row)} | {of.growth:+.1%} |")
        print(f"checkpoints took at most {watch.most_checkpoint_bytes / 1e6:.2f} MB")
        announced = next(line for line in command.output().splitlines() if line.startswith("disk:"))
        print(f"announced: {announced}")
    grew = any(of.growth > _FLAT for its in found.values() for of in its)
    too_much = watch.most_checkpoint_bytes > announced_bytes(announced)
    return int(code != 0 or len(watch.workers) != 1 or grew or too_much)


def announced_bytes(line: str) -> float:
    """From ``disk: checkpoints 0.08 GB at most, …``."""
    found = re.search(r"checkpoints ([0-9.]+) GB", line)
    assert found, line
    return float(found[1]) * 1e9


if __name__ == "__main__":
    sys.exit(main())
