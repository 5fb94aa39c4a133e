"""The report of a study, rebuilt from MLflow alone."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reports.charts import accuracy_pictures, curve_pictures, noise_pictures
from reports.content import (
    INSIDE,
    PATIENCE,
    Picture,
    Section,
    TableContent,
    make_folder,
    read_section,
    write_section,
)
from reports.evidence.verdict_rows import verdicts_csv
from reports.findings import Findings, find
from reports.page import Page, html, markdown
from reports.provenance import facts, run_table
from reports.study_data import StudyData, read_study
from reports.tables import result_tables, results_csv
from tracking import Patience, StudyStore, check_store_exists

_PICTURES = "pictures"


@dataclass(frozen=True)
class Report:
    """What the terminal shows of a report, and where the rest lies."""

    headline: Sequence[str]  # paragraphs
    results: Sequence[TableContent]
    page: Path


def write_report(tracking_uri: str, study: str, results_path: str) -> Report:
    """Write ``results/<study>/`` and log it to the newest parent run.

    Raises UserError for an unknown study, and StoreAwayError where MLflow stops to answer meanwhile.
    """
    check_store_exists(tracking_uri)
    store = StudyStore(tracking_uri, study)
    patience = Patience(store.answers, lambda line: None)
    return patience.call(lambda: _write_report(store, study, results_path), PATIENCE)


def _write_report(store: StudyStore, study: str, results_path: str) -> Report:
    invocation = store.latest_invocation()
    data = read_study(store, invocation.plan())
    folder = Path(results_path) / study
    make_folder(folder / _PICTURES)
    page = Page(
        study=data.name,
        question=data.plan["question"],
        findings=find(data),
        pictures=_pictures(data),
        inside=_inside(store),
        facts=facts(data, store),
        runs=run_table(data, store),
    )
    _write(page, data, folder)
    invocation.log_folder(folder)
    results = result_tables(page.findings.rows, data.plan["dataset"]["sizes"], compact=True)
    return Report(page.findings.headline, results, folder / "report.html")


def _inside(store: StudyStore) -> Section | None:
    """What the newest analysis found, of whichever invocation it was."""
    with tempfile.TemporaryDirectory() as temporary:
        for invocation in store.invocations():
            if folder := invocation.download_folder(INSIDE, Path(temporary)):
                return read_section(folder, INSIDE)
    return None


def _pictures(study: StudyData) -> dict[str, Sequence[Picture]]:
    pictures = {
        "Accuracy by target batch size": list(accuracy_pictures(study)),
        "Training curves": list(curve_pictures(study)),
        "Why: the gradient noise scale": list(noise_pictures(study)),
    }
    return {heading: found for heading, found in pictures.items() if found}


def _write(page: Page, study: StudyData, folder: Path) -> None:
    for pictures in page.pictures.values():
        for picture in pictures:
            (folder / _PICTURES / f"{picture.name}.png").write_bytes(picture.png)
    if page.inside:
        write_section(page.inside, folder / INSIDE, INSIDE)
    texts = {"report.html": html(page), "report.md": markdown(page, _PICTURES)}
    texts |= _csv_files(page.findings, study)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _csv_files(findings: Findings, study: StudyData) -> dict[str, str]:
    # verdicts have more to say in a file, unrounded, than fits into their tables
    families = {"comparisons": findings.cells, "last_against_best_epoch": findings.epochs}
    files = {"results.csv": results_csv(findings.rows, study.plan["dataset"]["sizes"])}
    for name, table in findings.tables.items():
        family = families.get(name)
        files[f"{name}.csv"] = verdicts_csv(family.verdicts) if family else table.csv_text()
    return files
