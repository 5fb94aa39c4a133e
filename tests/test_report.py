"""The report of a study that was really trained, rebuilt from its MLflow store, and of simulated ones."""

import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

import reports.sections
import tune_main
from benchmarks.null_studies import Truth, simulated_study
from reports import write_report
from reports.content import InsideSection, Picture, Section, Table, csv_text
from reports.report import facts, render, runs_table
from reports.results import (
    accuracy_pictures,
    answer_picture,
    result_tables,
    results_frame,
    seed_spread_table,
)
from reports.sections import Source, make_sections
from reports.sections.curves import curve_pictures
from reports.sections.differences import headline
from reports.sections.noise import noise_pictures
from reports.study_data import StudyData, read_study
from reports.verdicts import compare_cells
from search_spaces.plan import Forecast
from search_spaces.space import GRID
from tests.small_study import STUDY
from tracking import StudyRuns, StudyStore

HOSTILE = "<script>alert(1)</script> | $5 & `x`"


class Reader(HTMLParser):
    """What a browser would fetch, and the tags it would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.sources, self.links, self.alts = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.attributes += attributes
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        self.alts += [attributes.get("alt")] if tag == "img" else []


@pytest.fixture(scope="module")
def folder(small_study, tmp_path_factory):
    results = tmp_path_factory.mktemp("report")
    write_report(small_study, STUDY, str(results))
    return results / STUDY


@pytest.fixture(scope="module")
def study(small_study):
    return read_study(StudyStore(small_study, STUDY).read_runs())


@pytest.fixture(scope="module")
def seeded():
    truth = Truth(seeds=3, effects={1024: -25.0}, deviation=2.5)
    return simulated_study(truth, np.random.default_rng(0))


@pytest.fixture(scope="module")
def with_control_seeds(seeded):
    """The last seed belongs to the control cells alone."""
    cells = [
        cell for cell in seeded.plan.cells if cell.config.target_batch_size == 64 or cell.config.seed < 2
    ]
    trials = {cell.trial_hash: seeded.trials[cell.trial_hash] for cell in cells}
    return StudyData(seeded.plan.replace(cells=tuple(cells)), trials)


def test_control_cells_with_more_seeds_are_told_and_drawn_with_all_of_them(with_control_seeds):
    study = with_control_seeds
    spread = seed_spread_table(study).frame
    assert {batch: set(own["seeds"]) for batch, own in spread.groupby("target batch size")} == {
        64: {3},
        256: {2},
        1024: {2},
    }
    assert facts(study, [], compare_cells(study))["Seeds"] == "0, 1; of control cells also 2"
    for table in result_tables(study):
        assert table.frame["target batch size"].value_counts().to_dict() == {64: 3, 256: 2, 1024: 2}
    assert answer_picture(study)
    assert len(list(accuracy_pictures(study))) == 2 * len(study.axis_values("model"))


def test_what_was_expected_stands_beside_what_came(study):
    told = facts(study, [], compare_cells(study))
    time = "Training and validation, all trials"
    smallest = "Smallest difference found with a probability of 80 %"
    found = compare_cells(study).frame["smallest_detectable_points"]
    assert "expected" not in told[time] + told[smallest]
    assert found.min() == found.max()
    assert told[smallest] == f"{found.min():.1f} points"
    expected = Forecast(smallest_points=(2.34, 5.0), minutes=61.5)
    plan = study.plan.replace(forecast=expected)
    beside = facts(replace(study, plan=plan), [], compare_cells(study))
    assert beside[time] == f"{told[time]} (1 h 1 min expected)"
    assert beside[smallest] == f"{told[smallest]} (2.3 to 5.0 points expected)"


def test_one_comparison_that_could_have_found_nothing_is_not_hidden_by_the_others(study):
    plan = study.plan.replace(forecast=Forecast(smallest_points=(2.34, 5.0)))
    family, none = compare_cells(study), math.nan
    for found, said in (
        ([12.34, 2.0, 3.0], "2.0 to 12.3 points"),
        ([12.34, none, 3.0], "none, however large"),
        ([none, none, none], "none, however large"),
    ):
        verdicts = [
            replace(verdict, smallest_detectable_points=points)
            for verdict, points in zip(family.verdicts, found, strict=True)
        ]
        told = facts(replace(study, plan=plan), [], replace(family, verdicts=verdicts))
        told_smallest = told["Smallest difference found with a probability of 80 %"]
        assert told_smallest == f"{said} (2.3 to 5.0 points expected)"


def test_a_trial_whose_memory_ran_out_is_listed_with_the_size_that_fitted(study, small_study):
    """Its physical batch size was 16 and is halved in the first evaluation, and in the second again."""
    (halved, *others) = study.trials
    evaluations = study.trials[halved].evaluations.assign(physical_batch_size=[8.0, 4.0])
    trials = {**study.trials, halved: replace(study.trials[halved], evaluations=evaluations)}
    table = runs_table(replace(study, trials=trials), StudyStore(small_study, STUDY)).frame
    sizes = dict(zip(table["trial hash"], table["physical batch size"], strict=True))
    assert sizes == {halved: 4, **dict.fromkeys(others, 16)}


def tables(study):
    sections = make_sections(Source(study, StudyRuns([], {})))
    found = {name: table for section in sections for name, table in section.tables.items()}
    return {name: table for name, table in found.items() if table.rows}


def test_the_page_fetches_nothing_and_links_every_trial_to_its_run(folder, study):
    page = (folder / "report.html").read_text()
    reader = Reader(page)
    runs = [trial.run_id for trial in study.trials.values()]
    assert all(any(f"/runs/{run}?" in link for link in reader.links) for run in runs)
    assert len(reader.sources) >= len(list((folder / "pictures").glob("*.png")))
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert all(reader.alts)
    assert "viewport" in page
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_a_page_says_verdict_results_pictures_and_provenance_in_this_order(folder, name):
    text = re.sub("<nav>.*</nav>", "", (folder / name).read_text(), flags=re.DOTALL)
    order = ["one seed says nothing", "Results", "Training curves", "How it was made"]
    places = [text.index(heading) for heading in order]
    assert places == sorted(places)
    facts = (
        "192 train, 60 val, 60 test",
        "split seed 42",
        "precision fp32",
        "0 exact duplicates",
        "serving 8 cells",
    )
    assert [fact for fact in facts if fact not in text] == []


def test_every_picture_is_a_png_beside_the_page(folder):
    files = sorted((folder / "pictures").glob("*.png"))
    kinds = (
        "train_loss_by_step train_loss_by_examples train_loss_by_epoch train_acc_by_step "
        "train_acc_by_examples train_acc_by_epoch val_loss val_acc learning_rate test_acc "
        "val_acc_at_best_epoch"
    ).split()
    expected = {f"{model}_{kind}" for model in ("bert-tiny", "modernbert-tiny") for kind in kinds}
    expected |= {"test_accuracy"}
    assert expected <= {file.stem for file in files}
    for file in files:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            assert image.width > 800
            darkest, lightest = image.convert("L").getextrema()
            assert darkest < 100  # something is drawn
            assert lightest > 250


def test_intervals_stand_beside_accuracies(folder):
    frame = pd.read_csv(folder / "results.csv").dropna(subset=["test_acc"])
    assert len(frame) == 6
    assert (
        frame["test_acc"].between(frame["test_acc_low"], frame["test_acc_high"], inclusive="neither").all()
    )
    row = frame.iloc[0]
    text = (folder / "report.md").read_text()
    assert f"{row.test_acc:.4f} [{row.test_acc_low:.3f}, {row.test_acc_high:.3f}]" in text


def test_the_comparisons_are_those_that_the_space_declares(folder):
    """At 64, the baseline, rules agree; one of modernbert-tiny's trials is missing."""
    made = pd.read_csv(folder / "comparisons.csv").fillna({"model": ""})
    assert set(zip(made["model"], made["axis"], made["value"], strict=True)) == {
        ("bert-tiny", "target_batch_size", "32"),
        ("bert-tiny", "scaling_rule", "sqrt"),
    }
    assert made["accuracy_deviation"].isna().all()  # one seed
    assert made["sentence"].str.startswith("bert-tiny, ").all()
    assert "Preliminary: 3 of 6 comparisons." in (folder / "report.md").read_text()


def test_a_further_metric_has_curves_and_columns(study):
    trials = {
        name: replace(
            trial,
            evaluations=trial.evaluations[["epoch"]].assign(val_f1=trial.evaluations["val_acc"]),
            steps=pd.DataFrame(),
            metrics={**trial.metrics, "test_f1": 0.25, "last_test_f1": 0.5},
        )
        for name, trial in study.trials.items()
    }
    plan = study.plan.replace(metrics={**study.plan.metrics, "f1": "F1 score"})
    other = StudyData(plan, trials)
    pictures, rest = curve_pictures(other)
    assert not rest
    assert [picture.name for picture in pictures] == ["bert-tiny_val_f1", "modernbert-tiny_val_f1"]
    assert "Line chart of F1 score over epoch" in pictures[0].alt
    columns = results_frame(study).columns.to_list()
    assert results_frame(other).columns.to_list() == [*columns, "test_f1", "last_test_f1"]
    for table in result_tables(other, compact=True):
        assert table.columns[-2:] == ["test_f1", "last-epoch test_f1"]
        assert table.frame.iloc[0, -2:].to_list() == ["0.2500", "0.5000"]


def test_the_report_is_logged_and_the_command_writes_the_same_and_says_where(
    folder, small_study, tmp_path, capsys
):
    run = StudyStore(small_study, STUDY).read_runs().invocations[0]
    logged = MlflowClient(small_study).download_artifacts(run.run_id, "report.html", str(tmp_path))
    assert Path(logged).read_text() == (folder / "report.html").read_text()
    where = ["--tracking-uri", small_study, "--results-path", str(tmp_path)]
    assert tune_main.main(["report", "--name", STUDY, *where]) == 0
    assert f"report         {tmp_path}/{STUDY}/report.html" in capsys.readouterr().out
    for path in folder.rglob("*.*"):
        again = tmp_path / STUDY / path.relative_to(folder)
        assert again.read_bytes() == path.read_bytes(), path.name


def hostile_page(template):
    table = Table.of_frame(HOSTILE, pd.DataFrame({HOSTILE: [HOSTILE], "number": [0.123456]}), HOSTILE)
    picture = Picture(name="p", title=HOSTILE, caption=HOSTILE, alt=f'"{HOSTILE}', png=b"png")
    page = {
        "study": HOSTILE,
        "question": HOSTILE,
        "headline": [HOSTILE],
        "flags": [HOSTILE],
        "results": [table],
        "tables": {"comparisons": table},
        "sentences": [[HOSTILE]],
        "answer": picture,
        "galleries": [Section(heading=HOSTILE, pictures=[picture], folded=[picture])],
        "mlflow": {HOSTILE: HOSTILE},
        "logged_at": "http://127.0.0.1:5000",
        "inside": InsideSection(prose=[HOSTILE], pictures=[picture], tables={"t": table}),
        "facts": {HOSTILE: HOSTILE},
        "runs": Table.of_frame("Runs", pd.DataFrame({"run": ["javascript:alert(1)"]})),
    }
    return render(template, page)


def test_whatever_comes_from_data_is_escaped_in_the_page():
    reader = Reader(hostile_page("page.html.jinja"))
    assert "script" not in reader.tags
    assert not [link for link in reader.links if link.startswith("javascript")]


def test_markdown_tables_keep_their_columns_and_no_markup_gets_in():
    text = hostile_page("page.md.jinja")
    assert "<script" not in text
    found = [line for line in text.splitlines() if line.endswith("| 0.1235 |")]
    assert len(found) == 3
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in found)


def test_csv_files_do_not_calculate():
    frame = pd.DataFrame({"row id": [1, 2, 3, 4], "b": ["=1+1", -1.5, float("nan"), "fine"]})
    assert csv_text(frame) == "row_id,b\n1,'=1+1\n2,-1.5\n3,\n4,fine\n"


def test_seed_and_test_variation_are_reported_apart(seeded):
    assert "target batch size 1024 is worse than 64 by" in headline(compare_cells(seeded))[0]
    frame = tables(seeded)["seed_spread"].frame
    assert len(frame) == 6
    points = seeded.cells.groupby(list(GRID))
    for *point, seeds, mean, deviation, error in frame.itertuples(index=False):
        cells = points.get_group(tuple(point))
        accuracies = [seeded.trials[name].correct().mean() for name in cells["trial_hash"]]
        p = np.mean(accuracies)
        assert seeds == 3
        assert float(mean) == pytest.approx(p, abs=5e-5)
        assert float(deviation) == pytest.approx(100 * np.std(accuracies, ddof=1), abs=0.05)
        assert float(error) == pytest.approx(100 * (p * (1 - p) / 300) ** 0.5, abs=0.05)


@pytest.mark.parametrize("seeds", [1, 3])
def test_several_seeds_have_columns_an_interval_and_dots_and_one_seed_has_not(seeds):
    study = simulated_study(Truth(seeds=seeds), np.random.default_rng(0))
    several, found = seeds > 1, tables(study)
    assert ("one t test and interval over seeds" in found["comparisons"].note) == several
    assert ("seed_spread" in found) == several
    assert all(("seed" in table.columns) == several for table in result_tables(study))
    assert ("means over seeds" in answer_picture(study).caption) == several
    pictures = list(accuracy_pictures(study))
    assert [picture.name for picture in pictures] == ["tiny_test_acc", "tiny_val_acc_at_best_epoch"]
    assert ("each seed a dot" in pictures[0].caption) == several
    assert ("over seeds and test examples together" in pictures[0].caption) == several
    assert ("val examples alone" in pictures[1].caption) == several


def test_a_caption_says_where_a_cell_has_no_bar(seeded):
    (cell, *_) = seeded.points.values()
    one_left = {name: trial for name, trial in seeded.trials.items() if name not in cell[1:]}
    missing = "none where some training diverged or only one has been tested"
    for study, said in ((seeded, False), (replace(seeded, trials=one_left), True)):
        assert (missing in answer_picture(study).caption) == said
        tested, selected = accuracy_pictures(study)
        assert (missing in tested.caption) == said
        assert missing not in selected.caption
    truth = Truth(seeds=3, diverging={1024: 0.5})
    assert missing in answer_picture(simulated_study(truth, np.random.default_rng(0))).caption


def test_a_section_is_one_file(seeded, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from reports.content import Section\n"
        "PLACE = 25\n"
        "def section(source):\n"
        "    return Section(heading=source.study.plan.question)\n"
    )
    monkeypatch.setattr(reports.sections, "__path__", [*reports.sections.__path__, str(tmp_path)])
    headings = [section.heading for section in make_sections(Source(seeded, StudyRuns([], {})))]
    own, curves, noise = seeded.plan.question, "Training curves", "Why: the gradient noise scale"
    assert headings == ["", own, curves, noise]


def test_a_study_that_has_not_begun_has_tables_and_no_pictures(seeded):
    empty = StudyData(seeded.plan, {})
    assert headline(compare_cells(empty))[0].startswith("No comparison can be made")
    assert sum(len(table.frame) for table in result_tables(empty)) == len(empty.cells) == 18
    assert tables(empty) == {}
    assert answer_picture(empty) is None
    assert curve_pictures(empty) == ([], [])
    for pictures in (accuracy_pictures, noise_pictures):
        assert list(pictures(empty)) == []
