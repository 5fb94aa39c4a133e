"""``analyze``: attention and errors of models that were really trained, read back from a real store."""

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from PIL import Image

import tune_main
from errors import UserError
from reports.content import INSIDE, TableContent, read_section
from reports.inside import View, write_inside
from reports.inside.attention import text_statistics
from reports.inside.attention_pictures import MOST_TOKENS, attention_map
from reports.inside.embedding import decision_regions, project
from reports.inside.error_rates import has_negation, length_bins
from reports.inside.errors import EVERY, shorten, with_margin, wrong_sets
from reports.inside.reloaded import Reading, reload_model, unpadded
from reports.inside.sentences import choose_sentences
from reports.study_data import read_study
from tests.helpers import message
from tests.small_study import STUDY, UNTRAINED
from tracking import InvocationRun, StudyStore
from trainables.exported_model import load_exported_model


@pytest.fixture(scope="module")
def uri(small_study):
    return small_study


@pytest.fixture(scope="module")
def analysed(uri, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    section, folder = write_inside(uri, STUDY, str(results))
    return section, folder


@pytest.fixture(scope="module")
def models(uri):
    return {run.name: reload_model(run) for run in StudyStore(uri, STUDY).trial_runs().values()}


# -- attention --------------------------------------------------------------------------------------


def test_uniform_attention_has_the_entropy_of_its_length():
    uniform = text_statistics(np.full((3, 4, 4), 0.25), np.array([True, False, False, True]))
    assert uniform.special_token_share == pytest.approx(0.5)
    assert uniform.top_token_share == pytest.approx(0.25)
    assert uniform.entropy == pytest.approx(np.log(4))
    assert uniform.relative_entropy == pytest.approx(1)


def test_a_sink_takes_all():
    weights = np.zeros((1, 3, 3))
    weights[:, :, 2] = 1
    sink = text_statistics(weights, np.array([False, False, True]))
    assert vars(sink) == {
        "special_token_share": 1,
        "top_token_share": 1,
        "entropy": 0,
        "relative_entropy": 0,
    }


def test_statistics_are_means_over_heads_and_looking_tokens():
    weights = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.0, 1.0]]])
    each = text_statistics(weights, np.array([True, False]))
    assert each.special_token_share == pytest.approx((0.75 + 0) / 2)
    assert each.top_token_share == pytest.approx((0.75 + 1) / 2)
    assert each.entropy == pytest.approx(np.log(2) / 4)


def test_padding_is_cut_off_exactly():
    weights = torch.rand(2, 3, 5, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    first, second = unpadded(weights, mask)
    assert torch.equal(first, weights[0])
    assert torch.equal(second, weights[1, :, :2, :2])
    spoilt = weights.clone()
    spoilt[1, :, 2:] = spoilt[1, :, :, 2:] = 1e9
    assert torch.equal(unpadded(spoilt, mask)[1], second)


def test_eager_attention_gives_the_same_logits_and_weights_that_sum_to_one(uri, tmp_path):
    for run in StudyStore(uri, STUDY).trial_runs().values():
        eager = reload_model(run)
        texts = ["the plot was not dull .", "a film"]
        batch = eager.exported.token_tensors(texts).batch(torch.arange(2))
        (tmp_path / run.run_id).mkdir()
        plain = load_exported_model(run.download_model("best", tmp_path / run.run_id))
        assert plain.model.encoder.config._attn_implementation == "sdpa"
        assert eager.exported.model.encoder.config._attn_implementation == "eager"
        with torch.no_grad():
            expected = plain.model(batch.input_ids, batch.attention_mask)
            actual = eager.exported.model(batch.input_ids, batch.attention_mask)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        for reading in eager.readings(texts, None, None):
            np.testing.assert_allclose(reading.weights.sum(axis=2), 1, atol=1e-5)


def test_a_text_is_read_alike_alone_and_in_a_padded_batch(models):
    for model in models.values():
        long, short = "the plot was not dull . the cast was superb .", "a dull film"
        together = list(model.readings([long, short], 1, 2))[1]
        alone = next(model.readings([short], 1, 2))
        assert together.tokens == alone.tokens
        assert together.weights.shape == (1, len(alone.tokens), len(alone.tokens))
        np.testing.assert_allclose(together.weights, alone.weights, atol=1e-6)
        assert together.special.tolist() == [True, *[False] * (len(alone.tokens) - 2), True]


def test_a_long_text_is_drawn_by_its_first_tokens_and_its_last():
    length = MOST_TOKENS + 10
    weights = np.arange(length**2, dtype=float).reshape(1, length, length)
    tokens = [f"${i}" for i in range(length)]
    drawn = attention_map(Reading(tokens, np.zeros(length, bool), weights, 0, 0.75), ["bad", "good"])
    assert len(drawn.tokens) == MOST_TOKENS
    assert drawn.tokens[-1] == rf"… \${length - 1}"
    assert drawn.weights[0, -1] == length - 1
    assert drawn.heading == "predicts bad (0.75)"


def test_sentences_are_the_short_ones_that_tell_trials_apart():
    texts = ["a b c d e", "f g h i", "j k l m", "n " * 40, "o p q r s t"]
    test = pd.DataFrame({"label": [0, 1, 0, 1, 1], "text": texts}, index=[9, 7, 5, 3, 1])
    right = {"t1": [True, True, False, True, False], "t2": [True, False, False, False, True]}
    chosen = choose_sentences(test, pd.DataFrame(right, index=test.index), ["bad", "good"])
    assert [(sentence.text, sentence.why) for sentence in chosen] == [
        ("f g h i", "trials disagree, label good"),
        ("a b c d e", "all trials are right, label bad"),
        ("j k l m", "all trials are wrong, label bad"),
    ]


# -- errors -----------------------------------------------------------------------------------------


def test_shared_and_lone_errors():
    correct = pd.DataFrame(
        {
            64: [False, False, True, True, False],
            256: [False, True, False, True, False],
            1024: [False, True, True, True, True],
        },
        index=[10, 11, 12, 13, 14],
    )
    assert wrong_sets(correct) == {
        EVERY: [10],
        "64 alone": [11],
        "256 alone": [12],
        "1024 alone": [],
        "some, not all": [14],
    }
    assert wrong_sets(correct[[64, 256]]) == {EVERY: [10, 14], "64 alone": [11], "256 alone": [12]}


@pytest.mark.parametrize(
    "text", ["It is not good", "Didn't work", "can’t", "NEVER again", "hardly a film", "nor this"]
)
def test_negations_are_found(text):
    assert has_negation(text)


@pytest.mark.parametrize(
    "text", ["a notable knot", "nowadays", "the nth noble tenant", "another", "cannon"]
)
def test_words_that_only_contain_a_negation_are_none(text):
    assert not has_negation(text)


def test_length_bins_are_quartiles_named_by_what_is_in_them():
    bins = length_bins(pd.Series([1, 2, 3, 4, 5, 6, 7, 80]))
    assert bins.tolist() == ["1–2", "1–2", "3–4", "3–4", "5–6", "5–6", "7–80", "7–80"]
    assert length_bins(pd.Series([5, 5, 5])).tolist() == ["5", "5", "5"]


def test_margins_of_older_studies_follow_from_two_classes_only(uri):
    store = StudyStore(uri, STUDY)
    trial = next(iter(read_study(store, store.latest_invocation().plan()).trials.values()))
    best = trial.predictions["best"]
    older = replace(trial, predictions={"best": best.drop(columns="margin")})
    np.testing.assert_allclose(with_margin(older, 2)["margin"], best["margin"], atol=1e-12)
    with pytest.raises(UserError) as raised:
        with_margin(older, 3)
    assert "3 classes" in message(raised)


def test_texts_are_shortened_to_one_line():
    assert shorten("a\nb") == "a b"
    assert len(shorten("word " * 100)) <= 200
    assert shorten("word " * 100).endswith("…")


def test_a_formula_in_a_review_is_no_formula_in_the_csv():
    table = TableContent("t", ["row id", "text"], [[1, "=1+1"], [2, "fine"]])
    assert table.csv_text() == "row_id,text\n1,'=1+1\n2,fine\n"


@pytest.mark.parametrize("count", [1, 2, 20, 60])
def test_projections_are_finite_and_repeatable(count):
    features = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    points = project(features)
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(points, project(features))


def test_equal_features_do_not_break_the_picture():
    assert (project(np.ones((60, 8), np.float32)) == 0).all()


def test_each_text_lies_in_the_region_of_its_prediction():
    points = np.array([[0.0, 0.0], [10.0, 10.0]])
    regions = decision_regions(points, np.array([0, 1]))
    assert regions.classes[0, 0] == 0
    assert regions.classes[-1, -1] == 1


# -- the whole --------------------------------------------------------------------------------------


def test_every_file_is_written_and_every_picture_decodes(analysed):
    section, folder = analysed
    assert [picture.name for picture in section.pictures][-2:] == ["landscape", "error_rates"]
    described = json.loads((folder / "inside.json").read_text())
    for picture in described["pictures"]:
        assert picture["title"]
        assert picture["alt"]
        with Image.open(folder / f"{picture['name']}.png") as image:
            image.load()
            assert min(image.size) > 300
    names = "attention mistakes error_overlap error_overlap_examples error_rates".split()
    assert list(described["tables"]) == names
    assert all(len(pd.read_csv(folder / f"{name}.csv")) for name in names)


def test_reloaded_models_repeat_their_tested_predictions(analysed):
    assert "On 180 of 180 predictions" in analysed[0].prose[0]


def test_tables_have_a_row_per_tested_cell_and_agree_with_the_test_accuracy(analysed, uri):
    folder = analysed[1]
    attention = pd.read_csv(folder / "attention.csv")
    cells = set(
        zip(attention["model"], attention["target_batch_size"], attention["scaling_rule"], strict=True)
    )
    every = set(itertools.product(["bert-tiny", "modernbert-tiny"], [32, 64], ["fixed", "sqrt"]))
    assert cells == {cell for cell in every if cell[:2] != UNTRAINED}
    assert attention["relative_entropy"].between(0, 1 + 1e-6).all()
    rates = pd.read_csv(folder / "error_rates.csv")
    totals = rates.groupby(["model", "target_batch_size", "scaling_rule", "property"])[
        ["texts", "errors"]
    ].sum()
    assert (totals["texts"] == 60).all()
    errors = totals.xs("negation", level="property")["errors"]
    store = StudyStore(uri, STUDY)
    for cell in store.latest_invocation().plan()["cells"]:
        run = store.trial_runs().get(cell["trial_hash"])
        if run:
            key = (cell["model"], cell["target_batch_size"], cell["scaling_rule"])
            assert errors[key] == round(60 * (1 - run.metrics["test_acc"]))


def test_mistakes_are_wrong_and_in_order(analysed):
    mistakes = pd.read_csv(analysed[1] / "mistakes.csv")
    assert (mistakes["label"] != mistakes["prediction"]).all()
    for (*_, kind), group in mistakes.groupby(["model", "target_batch_size", "scaling_rule", "kind"]):
        if kind == "most confident":
            assert group["probability"].is_monotonic_decreasing
        else:
            assert group["margin"].is_monotonic_increasing


def test_the_section_comes_back_from_the_newest_parent_run(analysed, uri, tmp_path):
    section, _ = analysed
    invocation = StudyStore(uri, STUDY).latest_invocation()
    again = read_section(invocation.download_folder(INSIDE, tmp_path), INSIDE)
    assert [p.png for p in again.pictures] == [p.png for p in section.pictures]
    assert {k: t.csv_text() for k, t in again.tables.items()} == {
        k: t.csv_text() for k, t in section.tables.items()
    }
    assert list(again.prose) == list(section.prose)


def test_analysing_again_gives_the_same_bytes(analysed, uri, tmp_path):
    section, folder = analysed
    _, again = write_inside(uri, STUDY, str(tmp_path))
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    for picture in section.pictures:
        with Image.open(io.BytesIO(picture.png)) as image:
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


def test_the_command_takes_sentences_rule_layer_and_head(uri, tmp_path, capsys):
    (tmp_path / STUDY / "inside").mkdir(parents=True)
    (tmp_path / STUDY / "inside" / "mine.csv").write_text("left alone")
    where = ["--name", STUDY, "--tracking-uri", uri, "--results-path", str(tmp_path)]
    what = [
        "--rule",
        "sqrt",
        "--layer",
        "1",
        "--head",
        "2",
        "--text",
        "not $5 but $6 spent 🎬",
        "--text",
        "dull",
    ]
    argv = ["analyze", *where, *what]
    assert tune_main.main(argv) == 0
    assert f"report         {tmp_path}/{STUDY}/report.html" in capsys.readouterr().out
    folder = tmp_path / STUDY / "inside"
    pictures = {p["name"]: p for p in json.loads((folder / "inside.json").read_text())["pictures"]}
    assert list(pictures) == ["attention_1", "attention_2", "landscape", "error_rates"]
    assert "layer 1, head 2, rule sqrt: given sentence" in pictures["attention_1"]["title"]
    assert (folder / "mine.csv").read_text() == "left alone"


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
def test_a_view_that_is_not_there_is_one_line(uri, view, expected, tmp_path):
    with pytest.raises(UserError) as raised:
        write_inside(uri, STUDY, str(tmp_path), view)
    assert expected in message(raised)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_mlflow_that_does_not_answer_for_a_moment_costs_no_analysis(uri, tmp_path, monkeypatch):
    log_folder, away = InvocationRun.log_folder, [True]

    def answer_the_second_time(run, folder, under=None):
        if away:
            away.pop()
            raise MlflowException("no answer", TEMPORARILY_UNAVAILABLE)
        log_folder(run, folder, under)

    monkeypatch.setattr(InvocationRun, "log_folder", answer_the_second_time)
    section, _ = write_inside(uri, STUDY, str(tmp_path))
    stored = StudyStore(uri, STUDY).latest_invocation().download_folder(INSIDE, tmp_path)
    assert not away
    assert read_section(stored, INSIDE) == section


def test_unknown_and_unfinished_studies_are_one_line(uri, tmp_path):
    with pytest.raises(UserError) as raised:
        write_inside(uri, "film", str(tmp_path))
    assert "did you mean films" in message(raised)
    store = StudyStore(uri, "empty")
    plan = StudyStore(uri, STUDY).latest_invocation().plan() | {"study": "empty"}
    invocation = store.start_invocation("title", plan, {})
    with pytest.raises(UserError) as raised:
        write_inside(uri, "empty", str(tmp_path))
    assert "run the study's command again, which stores it" in message(raised)
    invocation.log_test_split(np.array([1]), np.array([0]), ["a film"])
    with pytest.raises(UserError) as raised:
        write_inside(uri, "empty", str(tmp_path))
    assert "no trial of study 'empty' has been tested yet" in message(raised)


def test_analyze_without_a_store_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tune_main.main(["analyze", "--name", "nothing"]) == 2
    assert "there is no mlflow.db here" in capsys.readouterr().err
    assert not list(Path().iterdir())
