"""Foreign text in Markdown: whatever it holds, a reader sees its letters and no markup of its own."""

from functools import cache

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from errors import printable
from reports.content import InsideSection, Picture, Section, Table
from reports.report import render
from tests.hostile.junk import LINKS, MARKDOWN, any_text
from tracking.markdown import markdown_address, markdown_text

TEMPLATES = ("page.md.jinja", "description.md.jinja")
READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
marks = st.text(st.sampled_from("[]()!<>&#;*_`~|\\-+=:. \"'@/x1é"), min_size=1, max_size=12)
foreign = (st.sampled_from([*LINKS, *MARKDOWN]) | marks | any_text).map(
    lambda text: " ".join(printable(text).split())
)


def page_with(text):
    """A page that has a text wherever names and texts of others come to stand."""
    table = Table.of_frame(text, pd.DataFrame({text: [text, "a", text], "b": [text, 0.5, "c"]}), text)
    picture = Picture(name="p", title=text, caption=text, alt=text)
    return {
        "study": text,
        "question": text,
        "headline": [text, text],
        "flags": [text, text],
        "results": [table],
        "tables": {"comparisons": table},
        "sentences": [[text, text]],
        "answer": picture,
        "galleries": [Section(heading=text, pictures=[picture], folded=[picture])],
        "mlflow": {text: text},
        "logged_at": "http://127.0.0.1:5000/#/a?b=c",
        "inside": InsideSection(prose=[text], pictures=[picture], tables={"t": table}),
        "facts": {text: text},
        "runs": table,
    }


def parsed(markdown):
    """What a reader of Markdown makes of it: marks with their attributes, and the texts between them."""
    found = []
    for token in _tokens(READER.parse(markdown)):
        if token.type in {"text", "text_special"}:
            is_further = found and isinstance(found[-1], str)
            found[-1:] = [found[-1] + token.content] if is_further else [*found[-1:], token.content]
        else:
            attributes = {name: value for name, value in token.attrs.items() if name != "alt"}
            found.append((token.type, token.tag, attributes))
    return found


def _tokens(tokens):
    for token in tokens:
        if token.type != "inline":
            yield token
        yield from _tokens(token.children or [])


@cache
def pattern(template):
    return parsed(render(template, page_with("WORD")))


@pytest.mark.parametrize("template", TEMPLATES)
@given(text=foreign.filter(bool))
@example("a](http://evil/p.png) ![x](http://evil/q.png")
@example("[x]: http://evil/p.png")
@example("<http://evil/p.png> <b>x</b> &#60;b&#62;")
@example("1. x")
@example("C:\\con \\| \\")
def test_foreign_text_has_no_markup_and_loses_no_letter(template, text):
    expected = [part.replace("WORD", text) if isinstance(part, str) else part for part in pattern(template)]
    assert parsed(render(template, page_with(text))) == expected


@pytest.mark.parametrize(
    "text",
    [
        "0.5167 [0.393, 0.638] | – | −10.4 to +10.4".replace(" | ", " "),
        "val_acc@best epoch of bert-tiny, 5 % (epoch 2) at 64 · fixed=sqrt",
        "Special tokens are [CLS], [SEP] and their like; p = 0.012, p < 1e-300",
        'tr(Σ)/‖G‖² of Q&A, R & D: it\'s "good"! #7, −1.5 or -1.5',
        "python tune_main.py --space fixed_lr --set head_dropout=0.2 http://127.0.0.1:5000/#/experiments/1",
    ],
)
def test_ordinary_text_stays_readable_in_the_source(text):
    assert markdown_text(text) == text


def test_an_address_ends_where_it_ends():
    address = "http://127.0.0.1:5000/#/experiments/1/runs/2?workflowType=machine_learning"
    assert markdown_address(address) == address
    link = f"[a]({markdown_address('http://x/) ![b](http://evil/p.png) <i>')})"
    kinds = [part if isinstance(part, str) else part[0] for part in parsed(link)]
    assert kinds == ["paragraph_open", "link_open", "a", "link_close", "paragraph_close"]
