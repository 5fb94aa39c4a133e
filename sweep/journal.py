"""Epoch reports on disk before they are anywhere else: what MLflow may not have, a re-run can give it."""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tracking import is_other_training, now_ms

Report = dict[str, Any]


class Journal:
    """One file per trial, one line per epoch, each with a checksum.

    An epoch is stamped once, with the ``timestamp`` (ms since 1970) of its first entry. MLflow ignores
    a metric that it already has with the same step, value and timestamp, so whatever the journal holds
    can be written any number of times, also after a write of which nobody knows whether it arrived.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, trial_hash: str, reports: Sequence[Report]) -> list[Report]:
        """Append the epochs that are new, and return all of ``reports`` as they stand in the journal.

        An epoch that was trained again to another val_loss is a new one, in the place of the old.
        """
        known = {report["epoch"]: report for report in self.epochs(trial_hash)}
        now = now_ms()
        stamped = {
            r["epoch"]: r | {"timestamp": now}
            for r in reports
            if r["epoch"] not in known or is_other_training(known[r["epoch"]]["val_loss"], r["val_loss"])
        }
        if stamped:
            self._append(trial_hash, list(stamped.values()))
        known |= stamped
        return [known[report["epoch"]] for report in reports]

    def epochs(self, trial_hash: str) -> list[Report]:
        """The latest entry of each epoch, in their order; lines cut off or damaged do not count."""
        path = self._path(trial_hash)
        lines = path.read_bytes().splitlines() if path.exists() else []
        found = {report["epoch"]: report for line in lines if (report := _parsed(line)) is not None}
        return [found[epoch] for epoch in sorted(found)]

    def forget(self, trial_hash: str) -> None:
        """Remove the entries of a trial that is safe in MLflow."""
        self._path(trial_hash).unlink(missing_ok=True)

    def _path(self, trial_hash: str) -> Path:
        return self.folder / f"{trial_hash}.jsonl"

    def _append(self, trial_hash: str, reports: list[Report]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # a line that a crash cut short must not swallow the next one
        lines = b"\n" + b"".join(_line(report) for report in reports)
        with self._path(trial_hash).open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


def _line(report: Report) -> bytes:
    text = json.dumps(report).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> Report | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    report: Report = json.loads(text)
    return report
