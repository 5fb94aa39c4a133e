"""What a study found, in words and tables: everything the report says apart from its pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.charts.noise import CAPTION as NOISE_CAPTION
from reports.charts.noise import noise_scale
from reports.content import TableContent, Value
from reports.flags import Flag, flags, generalisation_gaps
from reports.headline import headline
from reports.prose import accuracy_text, interval_text, number, p_text, signed
from reports.study_data import StudyData
from reports.tables import Row, result_rows, result_tables
from reports.verdicts import Family, Verdict, compare_cells, compare_epochs


@dataclass(frozen=True)
class Findings:
    """The words and numbers of a report."""

    headline: Sequence[str]  # paragraphs
    flags: Sequence[Flag]
    rows: Sequence[Row]
    results: Sequence[TableContent]
    cells: Family
    epochs: Family
    tables: dict[str, TableContent]  # file name -> the tables beyond the results


def find(study: StudyData) -> Findings:
    """Everything that can be said of a study as far as it has come."""
    rows = result_rows(study)
    cells, epochs = compare_cells(study), compare_epochs(study)
    tables = {
        "comparisons": _comparisons(cells, "Which differences are real"),
        "last_against_best_epoch": _comparisons(epochs, "Last epoch against best epoch"),
        "generalisation_gap": _gaps(study),
        "noise_scale": _noise(study),
    }
    return Findings(
        headline=headline(cells),
        flags=flags(study),
        rows=rows,
        results=result_tables(rows, study.plan["dataset"]["sizes"]),
        cells=cells,
        epochs=epochs,
        tables={name: table for name, table in tables.items() if table.rows},
    )


def _comparisons(family: Family, title: str) -> TableContent:
    columns = [
        "comparison",
        "difference (points)",
        "95 % interval",
        "gained / lost",
        "p (Holm)",
        "smallest detectable (points)",
        "verdict",
    ]
    note = " ".join(
        [
            "Differences of test accuracy, paired example by example: exact McNemar test, bootstrap",
            f"interval, Holm's adjustment over these {len(family.verdicts)} comparisons. Gained and lost:",
            "test examples that only the one or only the other side classified correctly. Smallest",
            "detectable: at 80 % power, at the level of Holm's first step.",
            *_seed_note(family),
            family.scope(),
            *family.notes,
            *family.left_out_sentences(),
        ]
    )
    return TableContent(title, columns, [_comparison_row(v) for v in family.verdicts], note)


def _seed_note(family: Family) -> list[str]:
    if family.seeds < 2:
        return []
    return ["With several seeds the paired test is the exact sign-flip test of the summed scores."]


def _comparison_row(verdict: Verdict) -> tuple[str, ...]:
    comparison = verdict.comparison
    return (
        f"{comparison.subject}: {comparison.claimed} against {comparison.baseline}",
        signed(verdict.difference),
        interval_text(verdict.interval, 1, signed),
        f"{verdict.gained} / {verdict.lost}",
        p_text(verdict.p_holm).removeprefix("= "),
        number(verdict.smallest_detectable).replace("nan", "–"),
        verdict.outcome,
    )


def _gaps(study: StudyData) -> TableContent:
    columns = ["model", "target batch size", "scaling rule", "train_acc", "val_acc", "gap"]
    rows: list[list[Value]] = [
        [g.model, g.target_batch_size, g.scaling_rule, *map(accuracy_text, (g.train_acc, g.val_acc, g.gap))]
        for g in generalisation_gaps(study)
        if not math.isnan(g.gap)
    ]
    note = (
        "At the best epoch. train_acc is taken while the weights move and with dropout on, so the gap "
        "is smaller than that of the epoch's final weights."
    )
    return TableContent("Generalisation gap: train_acc − val_acc", columns, rows, note)


def _noise(study: StudyData) -> TableContent:
    """Over the whole training; a trial whose batch was never cut into equal micro-batches has none."""
    columns = ["trial", "target batch size", "noise scale (examples)"]
    values = [(trial, noise_scale(trial)) for trial in study.trials.values()]
    rows = [(t.name, t.target_batch_size, f"{value:,.0f}") for t, value in values if not math.isnan(value)]
    return TableContent("Gradient noise scale", columns, rows, NOISE_CAPTION)
