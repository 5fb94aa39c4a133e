"""``analyze``: attention and errors of models that were really trained, read back from a real store."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import tune_main
from benchmarks.null_studies import Truth, simulated_study
from reports.content import INSIDE, read_section
from reports.inside import View, write_inside
from reports.inside.attention import Reading, readings, reload_model, text_statistics
from reports.inside.mistakes import (
    EVERY,
    NEGATION,
    choose_sentences,
    length_bins,
    mistakes,
    overlaps,
    read_answers,
    readable,
    shared_errors_sentences,
    wrong_sets,
)
from reports.inside.pictures import MOST_TOKENS, attention_map, decision_regions, project
from reports.prose import shorten
from reports.study_data import read_study
from search_spaces.plan import Plan
from tests.helpers import refusal
from tests.small_study import STUDY, UNTRAINED
from tracking import StudyStore
from trainables.exported_model import load_exported_model

CELL = ["model", "target_batch_size", "scaling_rule"]


@pytest.fixture(scope="module")
def analysed(small_study, tmp_path_factory):
    return write_inside(small_study, STUDY, str(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def runs(small_study):
    return StudyStore(small_study, STUDY).read_runs()


SINK = np.zeros((1, 3, 3))
SINK[:, :, 2] = 1


@pytest.mark.parametrize(
    ("weights", "special", "expected"),
    [
        (np.full((3, 4, 4), 0.25), [True, False, False, True], [0.5, 0.25, np.log(4), 1]),
        (SINK, [False, False, True], [1, 1, 0, 0]),
        # means over heads and looking tokens
        (
            np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.0, 1.0]]]),
            [True, False],
            [0.75 / 2, (0.75 + 1) / 2, np.log(2) / 4, 0.25],
        ),
    ],
    ids=["uniform", "a sink", "two heads"],
)
def test_attention_statistics_by_hand(weights, special, expected):
    assert list(text_statistics(weights, np.array(special)).values()) == pytest.approx(expected)


def test_eager_attention_gives_the_same_logits_and_weights_that_sum_to_one(runs, tmp_path):
    long, short = texts = ["the plot was not dull . the cast was superb .", "a dull film"]
    for run in runs.trials.values():
        eager = reload_model(run)
        batch = eager.token_tensors(texts).batch(torch.arange(2))
        (tmp_path / run.run_id).mkdir()
        plain = load_exported_model(run.download_model("best", tmp_path / run.run_id))
        with torch.no_grad():
            expected = plain.model(batch.input_ids, batch.attention_mask)
            actual = eager.model(batch.input_ids, batch.attention_mask)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        for reading in readings(eager, texts, View()):
            np.testing.assert_allclose(reading.weights.sum(axis=2), 1, atol=1e-5)
        # a text is read alike alone and in a padded batch
        view = View(layer=1, head=2)
        together, (alone,) = list(readings(eager, [long, short], view))[1], readings(eager, [short], view)
        assert together.tokens == alone.tokens
        assert together.weights.shape == (1, len(alone.tokens), len(alone.tokens))
        np.testing.assert_allclose(together.weights, alone.weights, atol=1e-6)
        assert together.special.tolist() == [True, *[False] * (len(alone.tokens) - 2), True]


def test_a_long_text_is_drawn_by_its_first_tokens_and_its_last():
    length = MOST_TOKENS + 10
    weights = np.arange(length**2, dtype=float).reshape(1, length, length)
    reading = Reading([f"${i}" for i in range(length)], np.zeros(length, bool), weights, 0, 0.75)
    tokens, drawn = attention_map(reading)
    assert len(tokens) == MOST_TOKENS
    assert tokens[-1] == rf"… \${length - 1}"
    assert drawn[0, -1] == length - 1


def test_sentences_are_the_short_ones_that_tell_trials_apart():
    texts = ["a b c d e", "f g h i", "j k l m", "n " * 40, "o p q r s t"]
    test = pd.DataFrame({"row_id": [9, 7, 5, 3, 1], "label": [0, 1, 0, 1, 1], "text": texts})
    wrong = {"t1": [False, False, True, False, True], "t2": [False, True, True, True, False]}
    answers = pd.concat([test.assign(trial_hash=name, wrong=own) for name, own in wrong.items()])
    chosen = choose_sentences(answers, ["bad", "good"])
    assert [(sentence.text, sentence.why) for sentence in chosen] == [
        ("f g h i", "trials disagree, label good"),
        ("a b c d e", "all trials are right, label bad"),
        ("j k l m", "all trials are wrong, label bad"),
    ]


def test_shared_and_lone_errors():
    marks = {64: [1, 1, 0, 0, 1], 256: [1, 0, 1, 0, 1], 1024: [1, 0, 0, 0, 0]}
    wrong = pd.DataFrame(marks, index=[10, 11, 12, 13, 14]).astype(bool)
    alone = {"64 alone": [11], "256 alone": [12]}
    assert wrong_sets(wrong) == {EVERY: [10], **alone, "1024 alone": [], "some, not all": [14]}
    assert wrong_sets(wrong[[64, 256]]) == {EVERY: [10, 14], **alone}


def test_another_seed_adds_no_mistakes():
    """Three trainings of a cell err on other texts each; what is counted are those of the first seed."""
    truth = Truth(seeds=3, scaling_rules=("fixed",), deviation=2.0)
    simulated = simulated_study(truth, np.random.default_rng(0))
    trials = {}
    for name, trial in simulated.trials.items():
        predicted = trial.predictions["best"].assign(margin=0.5)
        trials[name] = replace(trial, predictions={"best": predicted, "last": predicted})
    texts = pd.DataFrame({"row_id": range(300), "label": 1, "text": [f"review {i}" for i in range(300)]})
    answers = read_answers(replace(simulated, trials=trials), texts)

    first = simulated.cells[simulated.cells["seed"] == 0].set_index("target_batch_size")["trial_hash"]
    wrong = {batch: ~trials[name].correct() for batch, name in first.items()}
    assert answers.groupby("target_batch_size")["wrong"].agg(["size", "sum"]).to_dict("index") == {
        batch: {"size": 300, "sum": own.sum()} for batch, own in wrong.items()
    }
    assert not mistakes(answers).duplicated(["target_batch_size", "kind", "row_id"]).any()
    (sentence,) = shared_errors_sentences(overlaps(answers)[0])
    assert f"of {np.any([*wrong.values()], axis=0).sum()} test texts" in sentence


def test_one_batch_size_shares_no_errors(runs):
    answers = read_answers(read_study(runs), runs.invocations[0].test_split())
    one = answers[answers["target_batch_size"] == answers["target_batch_size"].iloc[0]]
    shared, examples = overlaps(one)
    assert shared.empty
    assert readable(examples, ("negative", "positive")).empty
    assert list(shared_errors_sentences(shared)) == []


def test_negations_are_found_as_words():
    found = ["It is not good", "Didn't work", "can’t", "NEVER again", "hardly a film", "nor this"]
    others = ["a notable knot", "nowadays", "the nth noble tenant", "another", "cannon"]
    assert [text for text in [*found, *others] if NEGATION.search(text)] == found


def test_length_bins_are_quartiles_named_by_what_is_in_them():
    bins = length_bins(pd.Series([1, 2, 3, 4, 5, 6, 7, 80]))
    assert bins.tolist() == ["1–2", "1–2", "3–4", "3–4", "5–6", "5–6", "7–80", "7–80"]
    assert length_bins(pd.Series([5, 5, 5])).tolist() == ["5", "5", "5"]


def test_texts_are_shortened_to_one_line():
    assert shorten("a\nb") == "a b"
    assert shorten("word " * 100).endswith("…")
    assert len(shorten("word " * 100)) <= 200


@pytest.mark.parametrize("count", [1, 2, 3, 20, 60])
def test_projections_are_finite_and_repeatable(count):
    features = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    points = project(features)
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(points, project(features))
    assert (project(np.ones((count, 8), np.float32)) == 0).all()  # equal texts lie on one point


def test_each_text_lies_in_the_region_of_its_prediction():
    classes, extent = decision_regions(np.array([[0.0, 0.0], [10.0, 10.0]]), np.array([0, 1]))
    assert (classes[0, 0], classes[-1, -1]) == (0, 1)
    assert extent == (-0.5, 10.5, -0.5, 10.5)


def test_every_file_is_written_and_every_picture_decodes(analysed):
    section, folder = analysed
    assert "On 180 of 180 predictions" in section.prose[0]  # the reloaded models repeat what they said
    described = json.loads((folder / "inside.json").read_text())
    for picture in described["pictures"]:
        assert picture["title"]
        assert picture["alt"]
        with Image.open(folder / f"{picture['name']}.png") as image:
            image.load()
            assert min(image.size) > 300
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    names = "attention mistakes error_overlap error_overlap_examples error_rates".split()
    assert list(described["tables"]) == names
    assert all(len(pd.read_csv(folder / f"{name}.csv")) for name in names)


def test_tables_have_a_row_per_tested_cell_and_agree_with_the_test_accuracy(analysed, runs):
    folder = analysed[1]
    attention = pd.read_csv(folder / "attention.csv")
    every = set(itertools.product(["bert-tiny", "modernbert-tiny"], [32, 64], ["fixed", "sqrt"]))
    tested = {cell for cell in every if cell[:2] != UNTRAINED}
    assert set(attention[CELL].itertuples(index=False, name=None)) == tested
    assert attention["relative_entropy"].between(0, 1 + 1e-6).all()
    rates = pd.read_csv(folder / "error_rates.csv").groupby(["property", *CELL])
    assert (rates["texts"].sum() == 60).all()
    errors = rates["errors"].sum()["negation"]
    for cell in Plan.model_validate(runs.invocations[0].plan()).cells:
        if run := runs.trials.get(cell.trial_hash):
            assert errors[cell.point] == round(60 * (1 - run.metrics["test_acc"]))


def test_mistakes_are_wrong_and_in_order(analysed):
    mistakes = pd.read_csv(analysed[1] / "mistakes.csv")
    assert (mistakes["label"] != mistakes["prediction"]).all()
    for (*_, kind), group in mistakes.groupby([*CELL, "kind"]):
        order = -group["probability"] if kind == "most confident" else group["margin"]
        assert order.is_monotonic_increasing


def test_the_section_comes_back_from_the_newest_parent_run(analysed, runs, tmp_path):
    section, _ = analysed
    again = read_section(runs.invocations[0].download_folder(INSIDE, tmp_path))
    assert (again.prose, again.pictures) == (section.prose, section.pictures)
    assert list(again.tables) == list(section.tables)
    for name, table in again.tables.items():
        assert table.texts() == section.tables[name].texts()


def test_analysing_again_gives_the_same_bytes(analysed, small_study, tmp_path):
    _, again = write_inside(small_study, STUDY, str(tmp_path))
    for path in analysed[1].iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_command_takes_sentences_rule_layer_and_head(small_study, tmp_path, capsys):
    folder = tmp_path / STUDY / "inside"
    where = ["--name", STUDY, "--tracking-uri", small_study, "--results-path", str(tmp_path)]
    view = ["--rule", "sqrt", "--layer", "1", "--head", "2"]
    texts = ["--text", "not $5 but $6 spent 🎬", "--text", "dull"]
    assert tune_main.main(["analyze", *where, *view, *texts]) == 0
    assert f"report         {tmp_path}/{STUDY}/report.html" in capsys.readouterr().out
    pictures = {p["name"]: p for p in json.loads((folder / "inside.json").read_text())["pictures"]}
    assert list(pictures) == ["attention_1", "attention_2", "landscape", "error_rates"]
    assert "layer 1, head 2, rule sqrt: given sentence" in pictures["attention_1"]["title"]
    # the files of this analysis go with the next one, and nobody else's
    own = [folder / name for name in ("mine.csv", "mine.png", "mine.json")]
    for path in own:
        path.write_text("mine")
    write_inside(small_study, STUDY, str(tmp_path), View(texts=["dull"]))
    assert not (folder / "attention_2.png").exists()
    assert [path.read_text() for path in own] == ["mine"] * 3


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (View(layer=3), "--layer 3 is not possible: bert-tiny has layers 1 to 2"),
        (View(layer=0), "--layer 0"),
        (View(head=3), "--head 3 is not possible: bert-tiny has heads 1 to 2"),
        (View(rule="sqr"), "did you mean sqrt"),
        (View(texts=[" "]), "--text is empty"),
    ],
)
def test_a_view_that_is_not_there_is_one_line(small_study, view, expected, tmp_path):
    assert expected in refusal(write_inside, small_study, STUDY, str(tmp_path), view)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_unknown_and_unfinished_studies_are_one_line(small_study, runs, tmp_path):
    def refused(study):
        return refusal(write_inside, small_study, study, str(tmp_path))

    assert "did you mean films" in refused("film")
    plan = runs.invocations[0].plan() | {"study": "empty"}
    invocation = StudyStore(small_study, "empty").start_invocation("title", plan, {})
    assert "run the study's command again, which stores it" in refused("empty")
    invocation.log_test_split(np.array([1]), np.array([0]), ["a film"])
    assert "no trial of study 'empty' has been tested yet" in refused("empty")


def test_other_test_texts_than_those_tested_on_are_refused(runs):
    study, split = read_study(runs), runs.invocations[0].test_split()
    reason = refusal(read_answers, study, split.assign(row_id=split["row_id"] + 1))
    assert "is not what its trials were tested on" in reason
