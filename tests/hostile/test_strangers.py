"""A study from somebody else's tracking store: nothing runs, nothing escapes, all is escaped."""

import csv
import json
import pickle
import re
import shutil
import sqlite3
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

import tune_main
from errors import UserError
from reports.content import read_section
from reports.prose import slug
from tests.helpers import message
from tests.hostile.junk import NASTY
from tests.hostile.models import Payload
from tests.small_study import STUDY
from tracking import StudyStore

EVIL = '"><img src=x onerror=alert(1)><script>alert(1)</script>[x](javascript:alert(1))'
HARMLESS = set(
    "html head meta title style body h1 h2 h3 p section ul li details summary div table thead tbody tr th "
    "td a figure img figcaption dl dt dd".split()
)


class Strange:
    """A copy of the small study, in which a stranger has changed things."""

    def __init__(self, source, folder):
        database = source.removeprefix("sqlite:///")
        shutil.copyfile(database, folder / "mlflow.db")
        self.folder, self.uri = folder, f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.uri)
        store = StudyStore(self.uri, STUDY)
        self.trials = store.trial_runs()
        self.plan_of_old = store.latest_invocation().plan()

    def write(self, plan, **artifacts):
        """A new invocation: the newest one is what a report is made of."""
        experiment = self.client.get_experiment_by_name(STUDY)
        location = {"mlflow.runName": EVIL, "role": "invocation"}
        run = self.client.create_run(experiment.experiment_id, tags=location)
        self.client.log_dict(run.info.run_id, plan, "plan.json")
        for name, path in artifacts.items():
            self.client.log_artifacts(run.info.run_id, str(path), name)
        return run.info.run_id

    def report(self, command="report"):
        where = ["--tracking-uri", self.uri, "--results-path", str(self.folder / "results")]
        return tune_main.main([command, "--name", STUDY, *where])

    def files(self):
        return {path for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(small_study, tmp_path_factory):
    """The small study with artifacts of its own, so that no other test sees what is added here."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(Path(small_study.removeprefix("sqlite:///")).parent, folder, dirs_exist_ok=True)
    old = str(Path(small_study.removeprefix("sqlite:///")).parent)
    with sqlite3.connect(folder / "mlflow.db") as database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
        ):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (old, str(folder)))
    database.close()
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def strange(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Strange(trained, tmp_path)


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.addresses = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value for name, value in attrs if name in {"href", "src"}]


def renamed(plan, names):
    """The plan with its models called otherwise."""
    plan = json.loads(json.dumps(plan))
    for cell in plan["cells"]:
        cell["model"] = names[cell["model"]]
    return plan


def test_hostile_names_are_escaped_in_every_file_and_stay_in_their_folder(strange):
    names = {"bert-tiny": f"../../{EVIL}", "modernbert-tiny": f"../../{EVIL} "}
    plan = renamed(strange.plan_of_old, names)
    plan |= {"study": f"../../x{EVIL}", "question": f"=1+1 {EVIL} \ud800\x1b[31m$x^{{"}
    plan["dataset"] |= {"name": EVIL, "source": EVIL, "digest": EVIL, "label_names": [f"=1+{EVIL}", "$x_{"]}
    for run in strange.trials.values():
        strange.client.set_tag(run.run_id, "hardware", EVIL)
    strange.write(plan)
    before = strange.files()
    assert strange.report() == 0
    results = strange.folder / "results" / STUDY
    written = strange.files() - before
    assert {path for path in written if results not in path.parents} == set()
    pictures = [path.name for path in written if path.suffix == ".png"]
    assert len({name.split("_", 1)[0] for name in pictures}) == 2  # two models, two sets of pictures
    page = Seen((results / "report.html").read_text())
    assert page.tags <= HARMLESS
    assert not {name for name in page.attributes if name.startswith("on")}
    assert all(a.startswith(("data:image/png;base64,", "http://127.0.0.1:5000/")) for a in page.addresses)
    text = (results / "report.md").read_text()
    assert "<img" not in text
    assert "<script" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    for path in results.glob("*.csv"):
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [c for c in cells if c[:1] in set("=+@\t\r") and not c[1:].replace(".", "").isdigit()]


def test_hostile_texts_and_labels_are_harmless_in_an_analysis(strange):
    plan = strange.plan_of_old
    plan["dataset"]["label_names"] = ["=no()", EVIL]
    run = strange.write(plan)
    split = StudyStore(strange.uri, STUDY).invocations()[-1].test_split()
    nasty = [text for text in NASTY if text.strip() and "\ud800" not in text and "\udcff" not in text]
    split["text"] = [f"{nasty[i % len(nasty)]}{EVIL * (i % 2)}" for i in range(len(split))]
    split.to_parquet("test_split.parquet")
    strange.client.log_artifact(run, "test_split.parquet")
    assert strange.report("analyze") == 0
    results = strange.folder / "results" / STUDY
    page = Seen((results / "report.html").read_text())
    assert page.tags <= HARMLESS
    assert not {name for name in page.attributes if name.startswith("on")}
    with (results / "inside" / "mistakes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(row[name][:1] not in set("=+-@\t\r\n") for row in rows for name in ("text", "label"))
    assert any(row["text"].startswith("'=") or row["label"].startswith("'=") for row in rows)


def changed_cell(plan, change):
    return plan | {"cells": [plan["cells"][0] | change]}


BROKEN_PLANS = {
    "a list": lambda plan: [],
    "no cells": lambda plan: plan | {"cells": []},
    "no data set": lambda plan: plan | {"dataset": None},
    "a size of zero": lambda plan: plan | {"dataset": plan["dataset"] | {"sizes": {"train": 0}}},
    "a cell that is a text": lambda plan: plan | {"cells": ["x"]},
    "a batch size that is a text": lambda plan: (
        plan | {"cells": [plan["cells"][0] | {"target_batch_size": "64"}]}
    ),
    "a batch size too large": lambda plan: (
        plan | {"cells": [plan["cells"][0] | {"target_batch_size": 10**30}]}
    ),
    "a learning rate that is none": lambda plan: (
        plan | {"cells": [plan["cells"][0] | {"learning_rate": None}]}
    ),
    "a config without settings": lambda plan: changed_cell(plan, {"config": {}}),
    "an axis that is none": lambda plan: plan | {"baselines": {"__class__": 1}},
    "one class": lambda plan: plan | {"dataset": plan["dataset"] | {"label_names": ["a"]}},
    "classes that are numbers": lambda plan: plan | {"dataset": plan["dataset"] | {"label_names": [1, 2]}},
}


@pytest.mark.parametrize("case", BROKEN_PLANS)
def test_a_broken_plan_is_one_line(strange, case, capsys):
    strange.write(BROKEN_PLANS[case](strange.plan_of_old))
    assert strange.report() == 2
    assert capsys.readouterr().err.count("\n") == 1


def some_trial(strange):
    return next(run for run in strange.trials.values() if run.is_tested)


def with_own_artifacts(strange, run):
    """Artifacts of the run in a folder of this test alone."""
    folder = strange.folder / "artifacts"
    shutil.copytree(run.client.download_artifacts(run.run_id, ""), folder)
    database = sqlite3.connect(strange.folder / "mlflow.db")
    with database:
        database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (str(folder), run.run_id))
    database.close()
    return folder


def predictions(change):
    def write(path):
        frame = pd.read_parquet(path)
        change(frame).to_parquet(path)

    return write


def garbage(path):
    path.write_bytes(b"PAR1 and nothing of the kind PAR1")


def pickled_type(path):
    """What older releases of pyarrow unpickled when they read the file."""
    table = pq.read_table(path)
    proof = path.parent.parent / "executed"
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload(proof)),
    }
    field = pa.field("row_id", pa.int64(), metadata=metadata)
    fields = [field if f.name == "row_id" else f for f in table.schema]
    pq.write_table(pa.table(table.columns, schema=pa.schema(fields)), path)


BROKEN_PREDICTIONS = {
    "garbage": garbage,
    "no labels": predictions(lambda f: f.drop(columns="label")),
    "texts as labels": predictions(lambda f: f.assign(label="a")),
    "unknown classes": predictions(lambda f: f.assign(prediction=7)),
    "rows twice": predictions(lambda f: f.assign(row_id=1)),
    "other rows": predictions(lambda f: f.assign(row_id=f["row_id"] + 10**6)),
    "probabilities above 1": predictions(lambda f: f.assign(probability=2.0)),
    "none": lambda path: path.unlink(),
}


@pytest.mark.parametrize("case", BROKEN_PREDICTIONS)
def test_broken_predictions_are_one_line(strange, case, capsys):
    folder = with_own_artifacts(strange, some_trial(strange))
    BROKEN_PREDICTIONS[case](folder / "test_predictions.parquet")
    assert strange.report() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_code_in_predictions_is_not_run(strange):
    run = some_trial(strange)
    pickled_type(with_own_artifacts(strange, run) / "test_predictions.parquet")
    assert len(run.predictions("best")) == 60
    assert not (strange.folder / "executed").exists()


@pytest.mark.parametrize("name", ["test_acc", "best_val_acc", "best_epoch"])
def test_metrics_that_cannot_be_are_one_line(strange, name, capsys):
    strange.client.log_metric(some_trial(strange).run_id, name, 1e300 if name != "best_epoch" else -5)
    assert strange.report() == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("uri", ["file:///etc", "/etc", "http://127.0.0.1:1/x", "models:/../x", ""])
def test_a_model_is_taken_from_this_store_alone(strange, uri, tmp_path):
    run = some_trial(strange)
    strange.client.set_tag(run.run_id, "best_model", uri)
    with pytest.raises(UserError) as raised:
        StudyStore(strange.uri, STUDY).trial_runs()[run.tags["trial_hash"]].download_model("best", tmp_path)
    assert "no model of this MLflow store" in message(raised)


def test_a_models_files_lie_within_it(strange, tmp_path):
    run = some_trial(strange)
    model = strange.client.get_logged_model(run.tags["best_model"].removeprefix("models:/"))
    path = Path(model.artifact_location.removeprefix("file://")) / "MLmodel"
    before = path.read_text()
    data = next(line for line in before.splitlines() if line.strip().startswith("data:"))
    path.write_text(before.replace(data, data.split("data:")[0] + "data: ../../../../../etc"))
    try:
        with pytest.raises(UserError, match="outside itself"):
            run.download_model("best", tmp_path / "downloaded")
    finally:
        path.write_text(before)


SECTION = {"prose": ["fine"], "pictures": [], "tables": {}}
PICTURE = {"name": "p", "title": "t", "caption": "c", "alt": "a"}
TABLE = {"title": "t", "columns": ["a"], "rows": [["=1+1"]], "note": ""}
BROKEN_SECTIONS = {
    "a picture outside": SECTION | {"pictures": [PICTURE | {"name": "../../secret"}]},
    "a table outside": SECTION | {"tables": {"../../x": TABLE}},
    "a table at the root": SECTION | {"tables": {"/tmp/x": TABLE}},
    "a picture of more": SECTION | {"pictures": [PICTURE | {"png": "x"}]},
    "a ragged table": SECTION | {"tables": {"x": TABLE | {"rows": [["a", "b"]]}}},
    "a list": [],
    "numbers as prose": SECTION | {"prose": [1]},
}


@pytest.mark.parametrize("case", BROKEN_SECTIONS)
def test_a_broken_section_is_one_line_and_writes_nothing(strange, case, tmp_path, capsys):
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "a" / "inside"
    folder.mkdir(parents=True)
    (folder / "p.png").write_bytes(b"png")
    (folder / "inside.json").write_text(json.dumps(BROKEN_SECTIONS[case]))
    with pytest.raises(UserError, match="run analyze again"):
        read_section(folder, "inside")


def test_pictures_of_two_models_never_share_a_file():
    names = ["a/b", "a-b", "a b", "..", "../a", "a", "", "é", "è", "x" * 300, "x" * 301, "\0", "NUL", EVIL]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all(len(s) < 100 and "/" not in s and s.strip(".") for s in slugs)
