"""What a study found, in words and tables: everything the report says apart from its pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from reports.charts.noise import CAPTION as NOISE_CAPTION
from reports.charts.noise import noise_scale
from reports.content import TableContent, Value
from reports.evidence.flags import Flag, flags, generalisation_gaps
from reports.evidence.headline import headline
from reports.evidence.statistics import Interval
from reports.evidence.verdicts import Family, Verdict, compare_cells, compare_epochs
from reports.prose import accuracy_text, interval_text, number, p_text, signed
from reports.study_data import StudyData
from reports.tables import Row, result_rows, result_tables


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
        "seed_spread": _seed_spread(study),
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
    columns = {
        "comparison": _subject,
        "difference (points)": lambda v: signed(v.difference),
        "95 % interval over test examples": lambda v: interval_text(v.interval, 1, signed),
        "95 % interval over seeds": _over_seeds,
        "gained / lost": lambda v: f"{v.gained} / {v.lost}",
        "p (Holm)": lambda v: p_text(v.p_holm).removeprefix("= "),
        "smallest detectable (points)": lambda v: number(v.smallest_detectable).replace("nan", "–"),
        "verdict": lambda v: v.outcome,
    }
    if family.seeds < 2:
        del columns["95 % interval over seeds"]
    rows = [[text(verdict) for text in columns.values()] for verdict in family.verdicts]
    return TableContent(title, list(columns), rows, _comparisons_note(family))


def _comparisons_note(family: Family) -> str:
    test = "exact McNemar test"
    if family.seeds > 1:
        test = (
            "exact sign-flip test over test examples and paired t-test over seeds, whichever is less sure"
        )
    return " ".join(
        [
            f"Differences of test accuracy, paired example by example: {test}, bootstrap interval,",
            f"Holm's adjustment over these {len(family.verdicts)} comparisons. Gained and lost: those that",
            "only the one or only the other side classified correctly. Smallest detectable: at 80 % power,",
            "at the level of Holm's first step.",
            family.scope(),
            *family.notes,
            *family.left_out_sentences(),
        ]
    )


def _subject(verdict: Verdict) -> str:
    comparison = verdict.comparison
    return f"{comparison.subject}: {comparison.claimed} against {comparison.baseline}"


def _over_seeds(verdict: Verdict) -> str:
    if not verdict.seeds:
        return "–"
    return interval_text(Interval(*(100 * end for end in verdict.seeds.interval)), 1, signed)


def _seed_spread(study: StudyData) -> TableContent:
    """How far trainings of one cell lie apart, beside how far test examples alone would scatter them."""
    columns = [
        "model",
        "target batch size",
        "scaling rule",
        "seeds",
        "mean test_acc",
        "standard deviation over seeds (points)",
        "standard error over test examples (points)",
    ]
    accuracies: dict[tuple[str, int, str], list[float]] = {}
    for cell in study.cells:
        if (trial := study.trial(cell)) and trial.is_tested:
            point = (cell.model, cell.target_batch_size, cell.scaling_rule)
            accuracies.setdefault(point, []).append(float(trial.correct().mean()))
    examples = study.plan["dataset"]["sizes"]["test"]
    rows: list[list[Value]] = [
        [*point, len(values), *_spread(values, examples)]
        for point, values in accuracies.items()
        if len(values) > 1
    ]
    note = (
        "Two kinds of chance, apart: another seed gives another training, another test split gives "
        "other examples. The standard error is that of one training's accuracy."
    )
    return TableContent("Seeds and test examples", columns, rows, note)


def _spread(accuracies: Sequence[float], examples: int) -> tuple[str, str, str]:
    mean = fmean(accuracies)
    error = math.sqrt(mean * (1 - mean) / examples)
    return accuracy_text(mean), f"{100 * stdev(accuracies):.1f}", f"{100 * error:.1f}"


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
