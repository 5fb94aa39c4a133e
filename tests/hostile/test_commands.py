"""Any command line: it works, or it is one line and exit code 2; never another exception."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tune_main
from sweep.command_line import flag_of
from sweep.options import SweepOptions
from tests.helpers import outcome
from tests.hostile.junk import NASTY, any_text, texts
from tests.small_study import STUDY

SWEEP = ["--space", "fixed_lr", "--demo", "--dry-run"]
GOOD = (
    "64",
    "1",
    "0.5",
    "fixed",
    "bert-tiny",
    "fp32",
    "torch",
    "head_dropout=0.2",
    "epochs=0",
    "demo-reviews",
)
# none of them leaves this machine, and nothing listens at port 1
HTTP = ("http://127.0.0.1:1", "https://127.0.0.1:1/../x", "http://[::1", "http://127.0.0.1:99999")
SQL = ("sqlite:///", "sqlite:///nothing.db", "sqlite:////dev/null", "sqlite:///.")
OTHERS = ("postgresql://127.0.0.1:1/x", "mysql+nothing://127.0.0.1:1/x", "databricks", "file:.", "[/red]")
PLACES = NASTY + HTTP + SQL + OTHERS


FLAGS = [flag_of(SweepOptions, name) for name in SweepOptions.model_fields]


def pairs(values):
    pair = st.tuples(st.sampled_from(FLAGS), st.lists(values, max_size=2))
    return st.lists(pair.map(lambda pair: [pair[0], *pair[1]]), max_size=3)


def assert_works_or_says_why(argv):
    code, out, err = outcome(argv, encoding="ascii")
    if code == 0:
        assert out
        return
    assert code == 2
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    assert len(err) < 2000


@pytest.fixture(scope="module", autouse=True)
def empty_folder(tmp_path_factory):
    """Where the commands of this file run; nothing may be left in it."""
    folder = tmp_path_factory.mktemp("empty")
    with contextlib.chdir(folder):
        yield folder
    assert not list(folder.iterdir())


@given(pairs(st.sampled_from(GOOD) | texts))
def test_any_flags_of_a_sweep(flags):
    assert_works_or_says_why([*SWEEP, *itertools.chain(*flags), "--dry-run"])


@given(st.lists(texts | st.sampled_from([*FLAGS, *tune_main.COMMANDS]), max_size=5))
def test_any_words(argv):
    words = [word for word in argv if word not in {"-h", "--help"}]
    assert_works_or_says_why([*words, "--list-spaces", "--dry-run", "--no-such-flag"])


@given(
    st.sampled_from(["report", "analyze"]),
    st.fixed_dictionaries(
        {"--name": texts | st.just(STUDY)},
        optional={
            "--tracking-uri": st.sampled_from(PLACES) | any_text.filter(lambda text: "//" not in text),
            "--results-path": st.sampled_from(["/dev/null", "/dev/null/x"]),
        },
    ),
)
def test_any_study_in_any_place(command, arguments):
    arguments = {"--results-path": "/dev/null", **arguments}
    assert_works_or_says_why([command, *(f"{flag}={value}" for flag, value in arguments.items())])


ANALYZE = {
    "--rule": texts,
    "--layer": texts | st.sampled_from(["0", "3", "99"]),
    "--text": st.sampled_from(["", " ", "\0", "\udcff", "=1+1", "x" * 10_000]),
}
HEAD = {"--head": st.sampled_from(["0", "-1", "9" * 400])}


@pytest.mark.slow
@given(st.fixed_dictionaries(HEAD, optional=ANALYZE))
def test_any_look_inside(small_study, tmp_path_factory, arguments):
    results = tmp_path_factory.getbasetemp() / "looks"
    where = [f"--name={STUDY}", f"--tracking-uri={small_study}", f"--results-path={results}"]
    assert_works_or_says_why(["analyze", *where, *(f"{flag}={value}" for flag, value in arguments.items())])


@pytest.mark.slow
def test_a_place_that_cannot_be_written_to_is_named(small_study):
    where = [f"--tracking-uri={small_study}", "--results-path=/dev/null"]
    code, _, err = outcome(["report", f"--name={STUDY}", *where])
    assert code == 2
    assert "choose another --results-path" in err


@given(texts)
def test_any_model_to_verify(model):
    assert_works_or_says_why(["verify", "--models", model])
