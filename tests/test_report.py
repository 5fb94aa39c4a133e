"""The report of a study that was really trained, rebuilt from its MLflow store alone."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tune_main
from errors import UserError
from reports import write_report
from reports.charts.noise import noise_scale
from reports.content import Picture, Section, TableContent
from reports.csv_files import csv_text
from reports.findings import find
from reports.page import Page, html, markdown
from reports.render import markdown_table
from reports.study_data import read_study
from tests.helpers import message
from tests.small_study import STUDY
from tracking import StudyStore

HOSTILE = "<script>alert(1)</script> | $5 & `x`"


class Reader(HTMLParser):
    """What a browser would fetch, and the tags it would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.links, self.alts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        self.alts += [attributes.get("alt")] if tag == "img" else []


@pytest.fixture(scope="module")
def folder(small_study, tmp_path_factory):
    results = tmp_path_factory.mktemp("report")
    write_report(small_study, STUDY, str(results))
    return results / STUDY


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def study(small_study):
    store = StudyStore(small_study, STUDY)
    return read_study(store, store.latest_invocation().plan())


def test_the_page_fetches_nothing(page):
    reader = Reader(page)
    assert reader.sources
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert all(reader.alts)
    assert "viewport" in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_says_verdict_results_pictures_and_provenance_in_this_order(page):
    order = [
        "one seed says nothing",
        "Results",
        "What the numbers say",
        "Training curves",
        "How it was made",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    for text in (
        "192 train, 60 val, 60 test",
        "split seed 42",
        "precision fp32",
        "Exact duplicates dropped",
    ):
        assert text in page


def test_every_trial_links_to_its_run(page, small_study):
    runs = StudyStore(small_study, STUDY).trial_runs().values()
    links = Reader(page).links
    assert all(any(link.endswith(run.run_id) for link in links) for run in runs)


def test_every_picture_is_a_png_beside_the_page(folder, page):
    files = sorted((folder / "pictures").glob("*.png"))
    names = [file.stem for file in files]
    for model in ("bert-tiny", "modernbert-tiny"):
        for kind in (
            "train_loss_by_step train_loss_by_examples train_loss_by_epoch train_acc_by_step "
            "train_acc_by_examples train_acc_by_epoch val_loss val_acc learning_rate test_acc "
            "val_acc_at_best_epoch noise_scale"
        ).split():
            assert f"{model}_{kind}" in names
    for file in files:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            assert image.width > 800
            darkest, lightest = image.convert("L").getextrema()
            assert darkest < 100  # something is drawn
            assert lightest > 250
    assert len(Reader(page).sources) >= len(files)


def test_intervals_stand_beside_accuracies(folder):
    frame = pd.read_csv(folder / "results.csv").dropna(subset=["test_acc"])
    assert len(frame) == 6
    assert (frame["test_acc_low"] < frame["test_acc"]).all()
    assert (frame["test_acc"] < frame["test_acc_high"]).all()
    text = (folder / "report.md").read_text()
    row = frame.iloc[0]
    assert f"{row.test_acc:.4f} [{row.test_acc_low:.3f}, {row.test_acc_high:.3f}]" in text


def test_the_comparisons_are_those_that_the_space_declares(study):
    """At 64, the baseline, rules agree; one of modernbert-tiny's trials is missing."""
    found = find(study)
    made = {(v.comparison.model, v.comparison.axis, v.comparison.value) for v in found.cells.verdicts}
    assert made == {
        ("bert-tiny", "target_batch_size", 32),
        ("bert-tiny", "scaling_rule", "sqrt"),
    }
    assert found.cells.left_out


def test_curves_are_read_back_whole(study):
    for trial in study.trials.values():
        assert trial.epochs.index.to_list() == [1, 2]
        steps = -(-192 // trial.target_batch_size)
        assert trial.steps.index.to_list() == list(range(1, 2 * steps + 1))
        assert set(trial.steps["learning_rate_per_step"]) == {trial.learning_rate}
        assert trial.correct().mean() == pytest.approx(trial.metrics["test_acc"])


def test_the_noise_scale_of_a_training_averages_before_it_divides(study):
    for trial in study.trials.values():
        variance, norm = (
            np.mean(trial.epochs[name]) for name in ("gradient_variance", "gradient_norm_squared")
        )
        expected = variance / norm if norm > 0 else float("nan")
        assert noise_scale(trial) == pytest.approx(expected, nan_ok=True)


def test_the_report_is_logged_to_the_newest_parent_run(folder, small_study, tmp_path):
    run = StudyStore(small_study, STUDY).latest_invocation()
    logged = run.client.download_artifacts(run.run_id, "report.html", str(tmp_path))
    assert Path(logged).read_text() == (folder / "report.html").read_text()


def test_the_report_is_the_same_every_time(folder, small_study, tmp_path):
    write_report(small_study, STUDY, str(tmp_path))
    for path in folder.rglob("*.*"):
        again = tmp_path / STUDY / path.relative_to(folder)
        assert again.read_bytes() == path.read_bytes(), path.name


def test_the_command_prints_tables_verdict_and_where_the_page_is(small_study, tmp_path, capsys):
    where = ["--tracking-uri", small_study, "--results-path", str(tmp_path)]
    assert tune_main.main(["report", "--name", STUDY, *where]) == 0
    printed = capsys.readouterr().out
    assert printed.count("scaling rule:") == 2
    assert "one seed says nothing about another training" in " ".join(printed.split())
    assert (tmp_path / STUDY / "report.html").exists()


def test_an_unknown_study_is_one_line(small_study, tmp_path):
    with pytest.raises(UserError) as raised:
        write_report(small_study, "flims", str(tmp_path))
    assert "did you mean films" in message(raised)
    assert not list(tmp_path.iterdir())


def hostile_page(study):
    inside = Section(
        [HOSTILE],
        [Picture("p", HOSTILE, HOSTILE, f'"{HOSTILE}', b"png")],
        {"t": TableContent(HOSTILE, [HOSTILE], [[HOSTILE]], HOSTILE)},
    )
    runs = TableContent("Runs", ["run"], [["javascript:alert(1)"]])
    return Page(HOSTILE, HOSTILE, find(study), {HOSTILE: []}, inside, [(HOSTILE, HOSTILE)], runs)


def test_whatever_comes_from_data_is_escaped_in_the_page(study):
    reader = Reader(html(hostile_page(study)))
    assert "script" not in reader.tags
    assert not [link for link in reader.links if link.startswith("javascript")]


def test_markdown_tables_keep_their_columns():
    text = markdown_table(TableContent("t", ["a", "b"], [[HOSTILE, 0.123456]]))
    row = text.splitlines()[4]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert "<script" not in row
    assert "0.1235" in row


def test_markdown_holds_the_same_sections(study):
    text = markdown(hostile_page(study), "pictures")
    assert "## A look inside" in text
    assert "## How it was made" in text


def test_csv_files_do_not_calculate():
    text = csv_text(["a"], [["=1+1"], [-1.5], [float("nan")], ["fine"]])
    assert text == 'a\n\'=1+1\n-1.5\n""\nfine\n'
