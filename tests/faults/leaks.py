"""Whether anything grows over hundreds of trials: ``python -m tests.faults.leaks``.

Runs one study of many one-epoch trials in one worker, and looks at the worker and at the command after
each trial. Exit code 1 if what they held at least has grown by more than 2 % (an upload gives back what it
takes, a leak does not), or if checkpoints took more disk than the command had announced. Pools of threads
and connections fill up to their limit, so files and threads are judged from the middle on.
"""

import argparse
import contextlib
import re
import signal
import sys
import tempfile
from pathlib import Path

import pandas as pd
import psutil

from tests.faults import processes
from tests.faults.study import Command

_FIRST, _SPAN = 10, 20
_FLAT = 0.02
_STUDY = (
    "--space fixed_lr --name leaks --demo --models bert-tiny --target-batch-sizes 64 --epochs 1 "
    "--train-size 320 --eval-size 60 --max-length 32 --precision fp32 --max-concurrent 1 --seed"
).split()


def use_of(name: str, process: psutil.Process) -> dict[str, float]:
    """What a process holds now; memory without what it shares with Ray's object store."""
    memory = process.memory_info()
    return {
        f"{name}: megabytes": (memory.rss - memory.shared) / 1e6,
        f"{name}: files": process.num_fds(),
        f"{name}: threads": process.num_threads(),
    }


class Watch:
    """Looks at a study after each of its trials; ``uses`` has a row for each."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.uses: list[dict[str, float]] = []
        self.workers: set[int] = set()
        self.most_checkpoint_bytes = 0

    def follow(self) -> int:
        """Until the command ends; returns its exit code."""
        while self.command.is_running:
            seen = self._seen()
            with contextlib.suppress(psutil.Error, OSError):  # processes end, checkpoints go
                self._look(seen)
            with contextlib.suppress(TimeoutError):
                self.command.wait_until(lambda seen=seen: self._seen() > seen, 0.5, "a trial")
        return self.command.wait()

    def _seen(self) -> int:
        return self.command.said().count("epoch 1/1")

    def _look(self, seen: int) -> None:
        files = (self.command.folder / "ray_results").rglob("evaluation-*/*")
        checkpoint_bytes = sum(path.stat().st_size for path in files if path.is_file())
        self.most_checkpoint_bytes = max(self.most_checkpoint_bytes, checkpoint_bytes)
        family = processes.family(self.command.folder)
        workers = [process for process in family if process.name().startswith("ray::ResourceTrainable")]
        if seen > len(self.uses) and len(workers) == 1:
            self.workers.add(workers[0].pid)
            driver = psutil.Process(self.command.process.pid)
            use = use_of("worker", workers[0]) | use_of("command", driver)
            self.uses += [use] * (seen - len(self.uses))


def courses(uses: pd.DataFrame) -> pd.DataFrame:
    """The least that was held early, in the middle and late, and the growth since it had to be flat."""
    spans = {"trials 11 to 30": _FIRST, "middle 20": (len(uses) - _SPAN) // 2, "last 20": len(uses) - _SPAN}
    table = pd.DataFrame({name: uses[start:][:_SPAN].min() for name, start in spans.items()})
    is_memory = table.index.str.endswith("megabytes")
    flat = table["middle 20"].where(~is_memory, table["trials 11 to 30"])
    return table.assign(growth=table["last 20"] / flat - 1)


def announced_bytes(output: str) -> float:
    """From ``disk: checkpoints 0.08 GB at most, …``."""
    found = re.search(r"^disk: checkpoints ([0-9.]+) GB", output, re.MULTILINE)
    assert found, output
    return float(found[1]) * 1e9


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory(prefix="leaks-") as folder:
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, signal.default_int_handler)
        with Command(Path(folder), study=[*_STUDY, *map(str, range(trials))]) as command:
            watch = Watch(command.start())
            code = watch.follow()
            announced = announced_bytes(command.output())
    found = courses(pd.DataFrame(watch.uses))
    took = watch.most_checkpoint_bytes
    print(f"{trials} trials, {len(watch.workers)} worker, exit code {code}")
    print(found.to_string(formatters={"growth": "{:+.1%}".format}, float_format="{:.1f}".format))
    print(f"checkpoints took at most {took / 1e6:.2f} MB of {announced / 1e6:.0f} MB announced")
    grew = (found["growth"] > _FLAT).any()
    return int(code != 0 or len(watch.workers) != 1 or grew or took > announced)


if __name__ == "__main__":
    sys.exit(main())
