"""Verdicts as rows of a table."""

import math
from collections.abc import Sequence
from typing import Any

from reports.csv_files import csv_text
from reports.evidence.comparisons import COORDINATES
from reports.evidence.verdicts import Verdict


def verdict_rows(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """A flat dict per verdict; all have the same keys, in one order."""
    return [_row(verdict) for verdict in verdicts]


def verdicts_csv(verdicts: Sequence[Verdict]) -> str:
    """All verdicts as one CSV with unrounded numbers; missing values are empty."""
    rows = verdict_rows(verdicts)
    if not rows:
        return ""
    return csv_text(list(rows[0]), (row.values() for row in rows))


def _row(verdict: Verdict) -> dict[str, Any]:
    comparison, seeds = verdict.comparison, verdict.seeds
    coordinates = {name: comparison.fixed.get(name, "") for name in COORDINATES}
    return {
        **coordinates,
        "axis": comparison.axis,
        "value": comparison.value,
        "baseline": comparison.baseline,
        "outcome": verdict.outcome,
        "test_examples": verdict.test_examples,
        "accuracy": verdict.accuracy,
        "accuracy_low": verdict.accuracy_interval.low,
        "accuracy_high": verdict.accuracy_interval.high,
        "baseline_accuracy": verdict.baseline_accuracy,
        "baseline_accuracy_low": verdict.baseline_interval.low,
        "baseline_accuracy_high": verdict.baseline_interval.high,
        "difference_points": verdict.difference,
        "difference_points_low": verdict.interval.low,
        "difference_points_high": verdict.interval.high,
        "gained": verdict.gained,
        "lost": verdict.lost,
        "p": verdict.p,
        "p_examples": verdict.p_examples,
        "p_seeds": seeds.p if seeds else math.nan,
        "p_holm": verdict.p_holm,
        "smallest_detectable_points": verdict.smallest_detectable,
        "seeds": seeds.seeds if seeds else 1,
        "seed_deviation_points": 100 * seeds.deviation if seeds else math.nan,
        "seed_points_low": 100 * seeds.interval.low if seeds else math.nan,
        "seed_points_high": 100 * seeds.interval.high if seeds else math.nan,
        "accuracy_deviation": seeds.accuracy_deviation if seeds else math.nan,
        "baseline_accuracy_deviation": seeds.baseline_deviation if seeds else math.nan,
        "sentence": verdict.sentence(),
    }
