"""The report of a study, rebuilt from MLflow alone: a page, the same in Markdown, CSV files, pictures."""

import base64
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports.content import (
    INSIDE,
    InsideSection,
    Picture,
    Table,
    csv_text,
    make_folder,
    read_section,
    write_section,
)
from reports.prose import counted, span
from reports.results import result_tables, results_frame
from reports.sections import Source, make_sections
from reports.study_data import StudyData, read_study
from reports.verdicts import DIVERGED, ComparisonFamily
from search_spaces.space import GRID
from search_spaces.trial_config import OWN, TrialConfig
from tracking import InvocationRun, Say, StudyStore, check_store_exists, nobody
from tracking.markdown import markdown_address, markdown_text

_PICTURES = "pictures"
_TEMPLATES = {"report.html": "page.html.jinja", "report.md": "page.md.jinja"}
_REPORT_TAB = "/artifacts/report.html"  # of a parent run's page in MLflow
_SHARED_SETTINGS = "optimizer scheduler epochs head_dropout max_length precision engine".split()


@dataclass(frozen=True)
class Report:
    """What the terminal shows of a report, and where the rest lies."""

    headline: Sequence[str]  # paragraphs
    results: Sequence[Table]
    outside: str  # a line about finished trials that the plan leaves out; empty without any
    page: Path
    pages: Mapping[str, str]  # of MLflow: name -> what to start, or an address


def write_report(
    tracking_uri: str,
    study: str,
    results_path: str,
    target_val_acc: float | None = None,
    say: Say = nobody,
) -> Report:
    """Write ``results/<study>/`` and log it to the newest parent run.

    ``target_val_acc``: also say what training to this val_acc takes. ``say`` gets a line for each wait.
    Raises UserError for an unknown study, and StoreAwayError if MLflow does not answer.
    """
    check_store_exists(tracking_uri)
    store = StudyStore(tracking_uri, study, say)
    runs, pages = store.read_runs(), store.pages()
    newest, data = runs.invocations[0], read_study(runs)
    source, outside = Source(data, runs, target_val_acc), outside_line(data, store)
    sections, inside = make_sections(source), _inside(runs.invocations)
    lead = next(section for section in sections if section.headline)
    tables = {name: each for section in sections for name, each in section.tables.items()}
    tables = {name: each for name, each in tables.items() if each.rows}
    asked_first = sorted(sections, key=lambda section: not section.is_asked_for)
    page = {
        "study": data.plan.study,
        "question": data.plan.question,
        "headline": lead.headline,
        "answer": lead.answer,
        "flags": [flag for section in sections for flag in section.flags],
        "results": result_tables(data),
        "tables": tables,
        "sentences": [sentences for section in sections for sentences in section.sentences],
        "galleries": [section for section in asked_first if section.pictures or section.folded],
        "inside": inside,
        "facts": facts(data, runs.invocations, source.comparisons)
        | ({"Outside this plan": outside} if outside else {}),
        "runs": runs_table(data, store),
        "mlflow": pages,
        "logged_at": store.run_url(newest.run_id, _REPORT_TAB),
    }
    files = {f"{name}.csv": table.csv() for name, table in tables.items()}
    if not (every_cell := results_frame(data)).empty:
        files["results.csv"] = csv_text(every_cell)
    files |= {name: render(template, page) for name, template in _TEMPLATES.items()}
    pictures = [lead.answer] if lead.answer else []
    pictures += [each for section in sections for each in (*section.pictures, *section.folded)]
    folder = Path(results_path) / study
    _write(folder, files, pictures, inside)
    with tempfile.TemporaryDirectory() as uploaded:  # other files of the folder stay here
        _write(Path(uploaded), files, pictures, inside)
        newest.log_folder(Path(uploaded))
    newest.describe(render("description.md.jinja", page))
    shown = [each for section in sections if section.is_asked_for for each in section.tables.values()]
    results = [*result_tables(data, compact=True), *shown]
    return Report(lead.headline, results, outside, folder / "report.html", pages)


def render(template: str, page: Mapping[str, Any]) -> str:
    """Fill in a template beside this module; HTML templates escape everything that comes from data."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: str(name).endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"text": markdown_text, "address": markdown_address, "data_uri": _data_uri}
    return environment.get_template(template).render(page=page).strip() + "\n"


def _data_uri(picture: Picture) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(picture.png).decode()


def _write(
    folder: Path, files: Mapping[str, str], pictures: Iterable[Picture], inside: InsideSection | None
) -> None:
    make_folder(folder / _PICTURES)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for picture in pictures:
        (folder / _PICTURES / f"{picture.name}.png").write_bytes(picture.png)
    if inside:
        write_section(inside, folder / INSIDE)


def _inside(invocations: Iterable[InvocationRun]) -> InsideSection | None:
    """What the newest analysis under any invocation found; None without an analysis."""
    with tempfile.TemporaryDirectory() as temporary:
        for invocation in invocations:
            if folder := invocation.download_folder(INSIDE, Path(temporary)):
                return read_section(folder)
    return None


def runs_table(study: StudyData, store: StudyStore) -> Table:
    """A row per trial: its name, hash, learning rate, physical batch size and the address of its run."""
    columns: dict[str, Callable[[str], Any]] = {
        "trial": lambda name: study.trials[name].name,
        "trial hash": str,
        "learning rate": lambda name: f"{study.trials[name].config.learning_rate:.3g}",
        "physical batch size": lambda name: study.trials[name].physical_batch_size,
        "run": lambda name: store.run_url(study.trials[name].run_id),
    }
    note = "" if store.tracking_uri.startswith("http") else "The links work while mlflow ui runs."
    return Table.of("Runs", study.trials, columns, note=note)


def outside_line(study: StudyData, store: StudyStore) -> str:
    """How many finished trials the newest plan of the study leaves out, and the address of their report."""
    count, reports = study.outside
    if not count:
        return ""
    addresses = [store.run_url(run_id, _REPORT_TAB) for run_id in reports]
    where = f"their report: {', '.join(addresses)}" if addresses else "no report of them was written"
    return f"{counted(count, 'finished trial')} of this study; {where}"


def facts(
    study: StudyData, invocations: Iterable[InvocationRun], family: ComparisonFamily
) -> dict[str, str]:
    """How the study was made, in the order of the page, with expectations beside results."""
    dataset, config = study.plan.dataset, study.plan.shared
    sizes, trials = dataset.sizes, study.trials.values()
    tags = pd.DataFrame(
        [trial.tags for trial in trials], columns=["hardware", "versions", "gpus_per_trial"]
    )
    seconds = pd.Series([sum(trial.evaluations.get("epoch_seconds", [])) for trial in trials], dtype=float)
    gpus = pd.to_numeric(tags["gpus_per_trial"], errors="coerce").replace(math.inf, 0)
    gpu_hours = (seconds * gpus).sum() / 3600
    minutes = study.plan.forecast.minutes
    found = {
        "Data": f"{dataset.name} ({dataset.source}), digest {dataset.digest[:12]}",
        "Splits": f"{sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test; "
        f"split seed {config.split_seed}{', stratified by label' if _is_stratified(config) else ''}",
        **dataset.facts,
        "Training": ", ".join(f"{name} {getattr(config, name)}" for name in _SHARED_SETTINGS),
        "Budget": f"equal {study.plan.budget}; evaluations {config.evaluation_count}",
        "Seeds": _seeds(study),
        "Trials": f"{len(study.trials)}, serving {len(study.cells)} cells",
        "Hardware": "; ".join(tags["hardware"].dropna().unique()),
        "Versions": "; ".join(tags["versions"].dropna().unique()),
        "Wall time": _duration(sum(invocation.seconds for invocation in invocations)),
        "Training and validation, all trials": _beside(
            _duration(seconds.sum()), None if minutes is None else _duration(60 * minutes)
        ),
        "Smallest difference found with a probability of 80 %": _smallest(study, family),
        "GPU hours": f"{gpu_hours:.2f}" if gpu_hours else "none: trained on the CPU",
    }
    return {what: value for what, value in found.items() if value}


def _is_stratified(config: TrialConfig) -> bool:
    return config.splits != OWN and config.group_column is None


def _seeds(study: StudyData) -> str:
    """``1, 2, 3; of control cells also 4, 5, 6``."""
    points, cells = len(study.cells[list(GRID)].drop_duplicates()), study.cells["seed"].value_counts()
    everywhere = ", ".join(str(seed) for seed in study.axis_values("seed") if cells[seed] == points)
    further = ", ".join(str(seed) for seed in study.axis_values("seed") if cells[seed] < points)
    return f"{everywhere}; of control cells also {further}" if further else everywhere


def _smallest(study: StudyData, family: ComparisonFamily) -> str:
    found = [each.smallest_detectable_points for each in family.verdicts if each.outcome != DIVERGED]
    if not found:
        return ""
    expected = study.plan.forecast.smallest_points
    return _beside(
        "none, however large" if any(map(math.isnan, found)) else f"{span(min(found), max(found))} points",
        None if expected is None else f"{span(*expected)} points",
    )


def _beside(found: str, expected: str | None) -> str:
    return f"{found} ({expected} expected)" if found and expected else found


def _duration(seconds: float) -> str:
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
