"""The report of a study, rebuilt from MLflow alone."""

import math
from pathlib import Path
from typing import Any

from reports.tables import Row, csv_text, markdown, terminal_tables
from tracking import StudyStore, TrialRun, check_store_exists


def write_report(tracking_uri: str, study: str, results_path: str) -> tuple[list[Any], Path]:
    """Write ``results/<study>/`` and log it to the newest parent run.

    Returns the tables for the terminal and the folder. Raises UserError for an unknown study.
    """
    check_store_exists(tracking_uri)
    store = StudyStore(tracking_uri, study)
    invocation = store.latest_invocation()
    plan = invocation.plan()
    rows = _rows(plan, store.trial_runs())
    folder = Path(results_path) / study
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(_markdown(plan, rows), encoding="utf-8")
    (folder / "results.csv").write_text(csv_text(rows), encoding="utf-8")
    invocation.log_folder(folder)
    return terminal_tables(rows), folder


def _rows(plan: dict[str, Any], runs: dict[str, TrialRun]) -> list[Row]:
    return [_row(cell, runs.get(cell["trial_hash"])) for cell in plan["cells"]]


def _row(cell: dict[str, Any], run: TrialRun | None) -> Row:
    metrics = run.metrics if run else {}
    return Row(
        scaling_rule=cell["scaling_rule"],
        model=cell["model"],
        target_batch_size=cell["target_batch_size"],
        seed=cell["seed"],
        learning_rate=cell["learning_rate"],
        best_val_acc=metrics.get("best_val_acc", math.nan),
        best_epoch=metrics.get("best_epoch", math.nan),
        test_acc=metrics.get("test_acc", math.nan),
        last_test_acc=metrics.get("last_test_acc", math.nan),
        run_id=run.run_id if run else "",
        trial_hash=cell["trial_hash"],
    )


def _markdown(plan: dict[str, Any], rows: list[Row]) -> str:
    dataset = plan["dataset"]
    sizes = dataset["sizes"]
    return "\n".join(
        [
            f"# {plan['study']}",
            "",
            plan["question"],
            "",
            markdown(rows),
            f"Data: {dataset['name']}, {sizes['train']:,} train, {sizes['val']:,} val, "
            f"{sizes['test']:,} test examples; {dataset['duplicates_dropped']:,} exact duplicates "
            "dropped.",
            "",
        ]
    )
