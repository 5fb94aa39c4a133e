"""A study from somebody else's tracking store: nothing runs, nothing escapes, all is escaped."""

import csv
import json
import re
from collections import OrderedDict
from copy import deepcopy
from pathlib import Path

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from mlflow.tracking._tracking_service import utils as mlflow_caches

from errors import all_printable, printable
from reports.content import read_section
from reports.prose import slug
from search_spaces import TrialConfig
from tests.helpers import outcome, refusal
from tests.hostile.junk import NASTY
from tests.small_study import STUDY, copy_study
from tests.test_markdown import parsed
from tests.test_report import Reader
from tracking import FORMAT, StudyStore

EVIL = '"><img src=x onerror=alert(1)><script>alert(1)</script>[x](javascript:alert(1))'
# the title of a window, colours, the cursor, another order of letters, what is not seen; Rich's own marks
STEERING = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202egnp\u2066\u200b[/red] [bold]:apple:"
HARMLESS = set(
    "html head meta title style body h1 h2 h3 p section ul li details summary div table thead tbody tr th "
    "td a nav code figure img figcaption dl dt dd".split()
)


class Strange:
    """A copy of the small study, its artifacts included, in which a stranger has changed things."""

    def __init__(self, source, folder):
        self.folder, self.uri = folder, copy_study(source, folder)
        self.results = folder / "results" / STUDY
        self.client = MlflowClient(self.uri)
        mlflow_caches._artifact_repos_cache.clear()  # by run, and each run is in several stores here
        runs = StudyStore(self.uri, STUDY).read_runs()
        self.trials, self.plan = runs.trials, runs.invocations[0].plan()
        self.test_split = runs.invocations[0].test_split()

    def write(self, plan, **tables):
        """A new invocation: a report is made of the newest one."""
        experiment = self.client.get_experiment_by_name(STUDY)
        tags = {"role": "invocation", "format": str(FORMAT)}
        run = self.client.create_run(experiment.experiment_id, tags=tags)
        self.client.log_dict(run.info.run_id, plan, "plan.json")
        for name, table in tables.items():
            path = self.folder / f"{name}.parquet"
            table.to_parquet(path)
            self.client.log_artifact(run.info.run_id, path)

    def report(self, command="report"):
        mlflow_caches._artifact_repos_cache.clear()
        where = ["--tracking-uri", self.uri, "--results-path", str(self.folder / "results")]
        return outcome([command, "--name", STUDY, *where])

    def assert_refused(self):
        """With one line that says what is wrong."""
        code, _, err = self.report()
        assert (code, err.count("\n")) == (2, 1)


@pytest.fixture(scope="module", autouse=True)
def own_artifacts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_caches, "_artifact_repos_cache", OrderedDict())
        yield


@pytest.fixture
def strange(small_study, tmp_path):
    return Strange(small_study, tmp_path)


@pytest.fixture
def trial(strange):
    return next(run for run in strange.trials.values() if run.is_tested)


class Reported(Strange):
    """What `analyze` and then `report` say and write if all that can be is foreign; beside own files."""

    def run(self):
        self._change()
        for place in (self.results, self.results / "pictures", self.results / "inside"):
            place.mkdir(parents=True, exist_ok=True)
            (place / "notes.csv").write_text("mine")
        before = self._files()
        self.said = [self.report(command) for command in ("analyze", "report")]
        self.written = self._files() - before
        return self

    def _files(self):
        return {path for path in self.folder.rglob("*") if path.is_file()}

    def _change(self):
        foreign = f"{EVIL}{STEERING}"
        plan = deepcopy(self.plan) | {"study": f"../../x{foreign}"}
        plan["space"]["question"] = f"=1+1 {foreign} \ud800\x1b[31m$x^{{"
        plan["metrics"] |= {STEERING: "x"}
        plan["dataset"] |= dict.fromkeys(("name", "source", "digest"), foreign)
        plan["dataset"] |= {"label_names": [f"=1+{foreign}", f"$x_{{{STEERING}"]}
        plan["dataset"] |= {
            "facts": {f"Class {foreign}": f"fact {foreign}"},
            "warnings": [f"warned {foreign}"],
        }
        names = {"bert-tiny": f"=x{foreign}", "modernbert-tiny": f"..{foreign} "}
        for cell in plan["cells"]:
            run = self.trials.get(TrialConfig(**cell["config"]).trial_hash)
            cell["config"]["model"] = names[cell["config"]["model"]]
            if run:
                known_by = TrialConfig(**all_printable(cell["config"])).trial_hash
                self.client.set_tag(run.run_id, "trial_hash", known_by)
        for run in self.trials.values():
            self.client.update_run(run.run_id, name=f"http://evil/{foreign}")
            for tag in ("hardware", "versions", "mlflow.runName"):
                self.client.set_tag(run.run_id, tag, f"http://evil/{foreign}")
        nasty = [text for text in NASTY if text.strip() and "\ud800" not in text and "\udcff" not in text]
        ends = ("", EVIL, STEERING)
        texts = [f"{nasty[i % len(nasty)]}{ends[i % 3]}" for i in range(len(self.test_split))]
        self.write(plan, test_split=self.test_split.assign(text=texts))


@pytest.fixture(scope="module")
def reported(small_study, tmp_path_factory):
    return Reported(small_study, tmp_path_factory.mktemp("strange")).run()


def assert_steers_nothing(text):
    assert not [line for line in text.split("\n") if line != printable(line)]


def test_what_strangers_write_is_shown_and_steers_no_terminal(reported):
    for code, out, err in reported.said:
        assert (code, err) == (0, "")
        assert "red] [bold]:apple:" in out
        assert_steers_nothing(out)


def test_what_strangers_write_stays_in_its_folder(reported):
    places = {reported.results, reported.folder / "mlruns"}
    assert all(places & set(path.parents) for path in reported.written)
    names = [path.name for path in (reported.results / "pictures").glob("*.png")]
    assert "test_accuracy.png" in names  # of all models
    of_one = {name.split("_", 1)[0] for name in names if name != "test_accuracy.png"}
    assert len(of_one) == 2  # two models, two sets of pictures


def test_what_strangers_write_is_harmless_on_the_page(reported):
    text = (reported.results / "report.html").read_text()
    assert_steers_nothing(text)
    page = Reader(text)
    assert set(page.tags) <= HARMLESS
    assert not {name for name in page.attributes if name.startswith("on")}
    addresses = [each for each in page.sources + page.links if not re.fullmatch(r"#[a-z]+(-\d)?", each)]
    assert all(a.startswith(("data:image/png;base64,", "http://127.0.0.1:5000/")) for a in addresses)
    assert "warned &#34;&gt;&lt;img" in text  # what was found in the data set is there
    assert "fact &#34;&gt;&lt;img" in text


def test_what_strangers_write_is_harmless_in_markdown(reported):
    text = (reported.results / "report.md").read_text()
    assert_steers_nothing(text)
    marks = [mark for mark in parsed(text) if not isinstance(mark, str)]
    assert {kind for kind, *_ in marks if not kind.endswith(("_open", "_close"))} == {"image"}
    assert not {kind for kind, *_ in marks} & {"link_open", "em_open", "strong_open", "s_open"}
    sources = [attributes["src"] for kind, _, attributes in marks if kind == "image"]
    assert all(re.fullmatch(r"(pictures|inside)/[\w.-]+\.png", source) for source in sources)


def test_what_strangers_write_calculates_in_no_table(reported):
    paths = [path for path in reported.results.rglob("*.csv") if path.name != "notes.csv"]
    assert {path.parent.name for path in paths} >= {STUDY, "inside"}
    for path in paths:
        assert_steers_nothing(path.read_text())
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [c for c in cells if c[:1] in set("=+@\t\r") and not c[1:].replace(".", "").isdigit()]


def test_a_file_of_ones_own_beside_a_report_stays_and_is_not_uploaded(reported):
    notes = [path for path in reported.results.rglob("notes.csv") if path.read_text() == "mine"]
    assert len(notes) == 3
    uploaded = {path.name for path in (reported.folder / "mlruns").rglob("*")}
    assert {"report.html", "test_accuracy.png"} <= uploaded
    assert "notes.csv" not in uploaded


def test_a_stored_section_steers_no_page(tmp_path):
    tables = {"x": TABLE | {"rows": [[STEERING]], "note": STEERING, "columns": [STEERING]}}
    pictures = [PICTURE | dict.fromkeys(("title", "caption", "alt"), STEERING)]
    (tmp_path / "p.png").write_bytes(b"png")
    stored = SECTION | {"prose": [STEERING], "tables": tables, "pictures": pictures}
    (tmp_path / "inside.json").write_text(json.dumps(stored))
    section = read_section(tmp_path)
    table, picture = section.tables["x"], section.pictures[0]
    shown = [*section.prose, table.note, *table.columns, *table.texts()[0], picture.alt, picture.caption]
    assert [*map(repr, shown)] == 6 * [repr(printable(STEERING))]


def in_cell(**changes):
    return lambda plan: plan | {"cells": [plan["cells"][0] | changes]}


def in_config(**changes):
    return lambda plan: in_cell(config=plan["cells"][0]["config"] | changes)(plan)


def in_dataset(**changes):
    return lambda plan: plan | {"dataset": plan["dataset"] | changes}


def every_model_in(*folders):
    """Each cell once for every folder that its model may lie in."""
    return lambda plan: (
        plan
        | {
            "cells": [
                cell | {"config": cell["config"] | {"model": f"{folder}/{cell['config']['model']}"}}
                for cell in plan["cells"]
                for folder in folders
            ]
        }
    )


BROKEN_PLANS = {
    "no cells": lambda plan: plan | {"cells": []},
    "two models of one name": every_model_in("a", "b"),
    "a cell that is a text": lambda plan: plan | {"cells": ["x"]},
    "an axis that is none": lambda plan: plan | {"space": plan["space"] | {"baselines": {"__class__": 1}}},
    "no data set": lambda plan: plan | {"dataset": None},
    "a size of zero": in_dataset(sizes={"train": 0, "val": 1, "test": 1}),
    "one class": in_dataset(label_names=["a"]),
    "classes that are numbers": in_dataset(label_names=[1, 2]),
    "a config that is a text": in_cell(config="x"),
    "a batch size too large": in_config(target_batch_size=10**30),
    "an unknown rule": in_config(scaling_rule="cubic"),
}


@pytest.mark.parametrize("case", BROKEN_PLANS)
def test_a_broken_plan_is_one_line(strange, case):
    strange.write(BROKEN_PLANS[case](deepcopy(strange.plan)))
    strange.assert_refused()


@pytest.mark.parametrize(
    "changes",
    [{"prediction": 7}, {"row_id": 1}, {"row_id": range(900, 960)}],
    ids=["unknown classes", "rows twice", "other rows"],
)
def test_predictions_that_no_trial_makes_are_one_line(strange, trial, changes):
    place = strange.client.get_run(trial.run_id).info.artifact_uri
    path = Path(place) / "test_predictions.parquet"
    pd.read_parquet(path).assign(**changes).to_parquet(path)
    strange.assert_refused()


@pytest.mark.parametrize(
    ("name", "value"), [("test_acc", 1e300), ("best_epoch", -5), ("best_evaluation", 0)]
)
def test_metrics_that_cannot_be_are_one_line(strange, trial, name, value):
    strange.client.log_metric(trial.run_id, name, value)
    strange.assert_refused()


SECTION = {"prose": ["fine"], "pictures": [], "tables": {}}
PICTURE = {"name": "p", "title": "t", "caption": "c", "alt": "a"}
TABLE = {"title": "t", "columns": ["a"], "rows": [["=1+1"]], "note": ""}
BROKEN_SECTIONS = {
    "a picture outside": SECTION | {"pictures": [PICTURE | {"name": "../../secret"}]},
    "a table outside": SECTION | {"tables": {"../../x": TABLE}},
    "a table at the root": SECTION | {"tables": {"/tmp/x": TABLE}},
    "a picture that is absent": SECTION | {"pictures": [PICTURE | {"name": "q"}]},
    "a ragged table": SECTION | {"tables": {"x": TABLE | {"rows": [["a", "b"]]}}},
    "a list": [],
    "numbers as prose": SECTION | {"prose": [1]},
}


@pytest.mark.parametrize("case", BROKEN_SECTIONS)
def test_a_broken_section_is_one_line(case, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "a" / "inside"
    folder.mkdir(parents=True)
    (folder / "p.png").write_bytes(b"png")
    (folder / "inside.json").write_text(json.dumps(BROKEN_SECTIONS[case]))
    assert "run analyze again" in refusal(read_section, folder)


def test_pictures_of_two_models_never_share_a_file():
    names = ["a/b", "a-b", "a b", "..", "../a", "a", "", "é", "è", "x" * 300, "x" * 301, "\0", "NUL", EVIL]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all(len(s) < 100 and "/" not in s and s.strip(".") for s in slugs)
