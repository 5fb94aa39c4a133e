"""The report of a study, rebuilt from MLflow alone: a page, the same in Markdown, CSV files, pictures."""

import base64
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import searches
from reports.accuracy_pictures import accuracy_pictures, answer_picture
from reports.charts import curve_pictures, noise_pictures
from reports.content import (
    INSIDE,
    Gallery,
    Picture,
    Section,
    Table,
    csv_text,
    make_folder,
    read_section,
    write_section,
)
from reports.flags import flags
from reports.search_pictures import search_pictures
from reports.searches import read_search
from reports.sentences import headline, scope, sentences
from reports.steps_to_target import steps_picture, steps_table
from reports.study_data import StudyData, read_study
from reports.tables import (
    REPORT_TAB,
    facts,
    finding_tables,
    outside_line,
    result_tables,
    results_frame,
    runs_table,
)
from reports.verdicts import Family, compare_cells, compare_epochs
from search_spaces import SearchSpace
from tracking import InvocationRun, Say, StudyStore, check_store_exists, nobody
from tracking.markdown import markdown_address, markdown_text
from tracking.study_store import StudyRuns

_PICTURES = "pictures"
_TEMPLATES = {"report.html": "page.html.jinja", "report.md": "page.md.jinja"}


@dataclass(frozen=True)
class Report:
    """What the terminal shows of a report, and where the rest lies."""

    headline: Sequence[str]  # paragraphs
    results: Sequence[Table]
    outside: str  # a line about finished trials that the plan leaves out; empty where there are none
    page: Path
    pages: Mapping[str, str]  # of MLflow: what to start or open, and the addresses of its views


def render(template: str, page: Mapping[str, Any]) -> str:
    """A template beside this module, filled in; in HTML, whatever came from data is escaped."""
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


def write_report(
    tracking_uri: str,
    study: str,
    results_path: str,
    target_val_acc: float | None = None,
    say: Say = nobody,
) -> Report:
    """Write ``results/<study>/`` and log it to the newest parent run.

    With ``target_val_acc`` it also says what training to this val_acc takes. ``say`` is told what is
    waited for.
    Raises UserError for an unknown study, and StoreAwayError where MLflow does not answer.
    """
    check_store_exists(tracking_uri)
    store = StudyStore(tracking_uri, study, say)
    runs, pages = store.read_runs(), store.pages()
    newest, data = runs.invocations[0], read_study(runs)
    outside = outside_line(data, store)
    families = {"comparisons": compare_cells(data), "last_against_best_epoch": compare_epochs(data)}
    found = _findings(data, families, runs, target_val_acc)
    inside = _inside(runs.invocations)
    page = {
        "study": data.plan.study,
        "question": data.plan.question,
        "headline": found.headline,
        "flags": found.flags,
        "results": result_tables(data),
        "tables": found.tables,
        "sentences": [sentences(family) for family in families.values()],
        "answer": found.answer,
        "galleries": [gallery for gallery in found.galleries if gallery.pictures or gallery.folded],
        "inside": inside,
        "facts": facts(data, runs.invocations, families["comparisons"])
        | ({"Outside this plan": outside} if outside else {}),
        "runs": runs_table(data, store),
        "mlflow": pages,
        "logged_at": store.run_url(newest.run_id, REPORT_TAB),
    }
    frames = {name: table.frame for name, table in found.tables.items()} | {"results": results_frame(data)}
    # verdicts have more to say in a file, unrounded, than fits into their tables
    frames |= {name: each.verdicts.assign(sentence=sentences(each)) for name, each in families.items()}
    files = {f"{name}.csv": csv_text(frame) for name, frame in frames.items() if not frame.empty}
    files |= {name: render(template, page) for name, template in _TEMPLATES.items()}
    folder, pictures = Path(results_path) / study, list(_pictures(found.answer, found.galleries))
    _write(folder, files, pictures, inside)
    with tempfile.TemporaryDirectory() as uploaded:  # without what else lies in the folder
        _write(Path(uploaded), files, pictures, inside)
        newest.log_folder(Path(uploaded))
    newest.describe(render("description.md.jinja", page))
    shown = [found.tables[name] for name in ("steps_to_target",) if name in found.tables]
    results = [*result_tables(data, compact=True), *shown]
    return Report(found.headline, results, outside, folder / "report.html", pages)


def _write(
    folder: Path, files: Mapping[str, str], pictures: Iterable[Picture], inside: Section | None
) -> None:
    make_folder(folder / _PICTURES)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for picture in pictures:
        (folder / _PICTURES / f"{picture.name}.png").write_bytes(picture.png)
    if inside:
        write_section(inside, folder / INSIDE)


@dataclass
class _Findings:
    """What the report of a grid says; that of a search, and a goal, say more."""

    headline: list[str]
    flags: list[str]
    tables: dict[str, Table]
    answer: Picture | None
    galleries: list[Gallery]


def _findings(
    data: StudyData, families: Mapping[str, Family], runs: StudyRuns, goal: float | None
) -> _Findings:
    found = _Findings(
        [scope(data), *headline(families["comparisons"])],
        flags(data),
        finding_tables(data, families),
        answer_picture(data),
        _galleries(data),
    )
    if isinstance(data.plan.space, SearchSpace):
        search = read_search(data.plan.space, runs)
        found.headline = searches.headline(search, data)
        found.flags = searches.flags(search, data.plan.dataset.sizes["val"]) + found.flags
        found.tables = {"best_trials": searches.best_table(search)} | found.tables
        pictures = list(search_pictures(search))
        found.answer = pictures[0] if pictures else None
        found.galleries.insert(0, Gallery("The search", pictures[1:]))
    if goal is not None:
        found.tables["steps_to_target"] = steps_table(data, goal)
        if picture := steps_picture(data, goal):
            found.galleries.insert(0, Gallery(picture.title.capitalize(), [picture]))
    return found


def _galleries(study: StudyData) -> list[Gallery]:
    first, rest = curve_pictures(study)
    return [
        Gallery("Training curves", first, [*accuracy_pictures(study), *rest]),
        Gallery("Why: the gradient noise scale", list(noise_pictures(study))),
    ]


def _pictures(answer: Picture | None, galleries: Iterable[Gallery]) -> Iterator[Picture]:
    if answer:
        yield answer
    for gallery in galleries:
        yield from gallery.pictures
        yield from gallery.folded


def _inside(invocations: Iterable[InvocationRun]) -> Section | None:
    """What the newest analysis found, of whichever invocation it was."""
    with tempfile.TemporaryDirectory() as temporary:
        for invocation in invocations:
            if folder := invocation.download_folder(INSIDE, Path(temporary)):
                return read_section(folder)
    return None
