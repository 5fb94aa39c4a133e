"""report.html: one self-contained page, and report.md beside it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports.content import Picture, Section, TableContent
from reports.findings import Findings
from reports.prose import accuracy_text
from reports.render import cell_text, markdown_table, markdown_text


@dataclass(frozen=True)
class Page:
    """Everything that stands on the page."""

    study: str
    question: str
    findings: Findings
    pictures: dict[str, Sequence[Picture]]  # heading -> pictures
    inside: Section | None  # what `analyze` found
    facts: Sequence[tuple[str, str]]
    runs: TableContent


def html(page: Page) -> str:
    """The page with its pictures inside; whatever came from data is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell_text, "accuracy": accuracy_text, "data_uri": _data_uri}
    return environment.get_template("page.html.jinja").render(page=page)


def _data_uri(picture: Picture) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(picture.png).decode()


def markdown(page: Page, picture_folder: str) -> str:
    """The same in Markdown, its pictures as links into ``picture_folder``."""
    findings, text = page.findings, markdown_text
    lines = [f"# {text(page.study)}", "", text(page.question), ""]
    lines += [f"{text(paragraph)}\n" for paragraph in findings.headline]
    lines += [f"- {text(flag.sentence)}" for flag in findings.flags] + [""] * bool(findings.flags)
    lines += ["## Results", "", *map(markdown_table, findings.results)]
    for table in findings.tables.values():
        lines.append(markdown_table(table))
    for family in (findings.cells, findings.epochs):
        sentences = [f"- {text(verdict.sentence())}" for verdict in family.verdicts]
        lines += sentences + [""] * bool(sentences)
    for heading, pictures in page.pictures.items():
        lines += [f"## {text(heading)}", ""]
        for picture in pictures:
            lines += _picture(picture, picture_folder)
    if page.inside:
        lines += ["## A look inside", "", *(f"{text(sentence)}\n" for sentence in page.inside.prose)]
        for picture in page.inside.pictures:
            lines += _picture(picture, "inside")
        lines += [markdown_table(table) for table in page.inside.tables.values()]
    lines += [
        "## How it was made",
        "",
        *(f"- {text(what)}: {text(value)}" for what, value in page.facts),
        "",
    ]
    lines.append(markdown_table(page.runs))
    return "\n".join(lines)


def _picture(picture: Picture, folder: str) -> list[str]:
    alt = markdown_text(picture.alt).replace("[", "\\[").replace("]", "\\]")
    return [f"![{alt}]({folder}/{picture.name}.png)", "", markdown_text(picture.caption), ""]
