"""What the user's terminal shows of names and messages that others have given."""

import io
from types import SimpleNamespace

import pytest
from rich.table import Table

from errors import first_line, last_line, printable
from sweep import terminal
from sweep.recorder import worker_error

NAME = "evil[/red] [bold]x[/bold] :apple: [link=http://x]y[/link]"


@pytest.fixture
def screen(monkeypatch):
    """A terminal, as the text that was written to it."""
    console = type(terminal.console)(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    return console.file


def test_names_are_printed_as_they_are(screen):
    terminal.say(NAME, "red")
    table = Table(NAME, title=NAME, title_justify="left")
    table.add_row(NAME)
    terminal.show(table)
    assert [line.strip(" │┃") for line in screen.getvalue().splitlines() if "evil" in line] == 4 * [NAME]


def test_what_is_being_done_is_shown_as_it_is(screen):
    with terminal.working(NAME):
        pass
    with terminal.working("") as now:
        now(f"2 of {NAME}")
    assert screen.getvalue().count(NAME) == 2
    assert f"2 of {NAME}" in screen.getvalue()


def test_a_complaint_goes_where_results_do_not(capsys):
    terminal.complain(NAME)
    assert capsys.readouterr() == ("", f"{NAME}\n")


def test_what_another_program_prints_keeps_its_lines_and_steers_nothing(capsys):
    for part in ("a [1/2]\r\n\x1b[31mred\x1b[0m:", " b\tc\n", "\x1b]0;title\x07 \u202e"):
        terminal.pass_on(part)
    assert capsys.readouterr().out == "a [1/2]\nred: b      c\n\\x1b]0;title\\x07 \\u202e"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m\x9b\x7f\0", "a\\x1b[31m\\x9b\\x7f\\x00"),
        ("a\nb\rc\u2028d", "a\\nb\\rc\\u2028d"),
        ("\u202egnp\u2066\u200b\ufeff", "\\u202egnp\\u2066\\u200b\\ufeff"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_steers_or_deceives_is_written_out(text, shown):
    assert printable(text) == shown == printable(shown)


@pytest.mark.parametrize(
    "text", ["naïve", "とても　良い", "خیلی‌خوب", "👩‍👩‍👧 \U0001f600", "a\xa0b", "\\x1b"]
)
def test_what_people_write_stays(text):
    assert printable(text) == text


def test_messages_of_others_are_one_printable_line(tmp_path):
    error = RuntimeError("\x1b]0;first\x07\nlast\x1b[2J")
    assert (first_line(error), last_line(error)) == ("\\x1b]0;first\\x07", "last\\x1b[2J")
    (tmp_path / "error.txt").write_text("Traceback\nlib.OddError: \x1b]0;it broke\x07\n")
    trial = SimpleNamespace(error_file=str(tmp_path / "error.txt"))
    assert worker_error(trial) == "\\x1b]0;it broke\\x07"
