import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.helpers import (
    CPU,
    TINY_MODELS,
    assert_identical,
    learnt,
    tiny_config,
    train,
    trained,
    weights,
    without_dropout,
)
from trainables.batches import TokenArrays, TokenTensors
from trainables.checkpoint import Checkpoint
from trainables.evaluation import METRICS, Metric, evaluate
from trainables.trial import CURVE_POINTS, NonFiniteLossError, Trial, best_evaluation


def new_trial(assets, **overrides):
    config = tiny_config(**overrides)
    return Trial(config, assets[config.model], CPU)


def saved(trial, folder):
    folder.mkdir()
    trial.save(folder)
    return folder


@pytest.fixture(scope="module", params=TINY_MODELS)
def finished(request, assets):
    return trained(tiny_config(model=request.param), assets[request.param])


def test_one_seed_learns_the_same_bit_for_bit_and_another_something_else(assets, finished):
    torch.manual_seed(1234)  # the state of the global generator must not matter
    again, other = (
        trained(finished.config.replace(seed=seed), assets[finished.config.model]) for seed in (42, 43)
    )
    assert learnt(again) == learnt(finished)
    assert_identical(weights(again), weights(finished))
    assert learnt(other) != learnt(finished)
    assert not torch.equal(weights(other)["classifier.weight"], weights(finished)["classifier.weight"])


def test_a_trial_starts_from_the_pretrained_weights_and_the_head_of_its_seed(assets):
    start = weights(new_trial(assets))
    for target, physical in ((256, 16), (64, 7)):
        trial = new_trial(assets, target_batch_size=target, physical_batch_size=physical)
        assert_identical(weights(trial), start)
    other = weights(new_trial(assets, seed=43))
    assert not torch.equal(other["classifier.weight"], start["classifier.weight"])
    assert torch.equal(other["classifier.bias"], torch.zeros(2))
    for name, array in assets["bert-tiny"].encoder.weights.items():
        for weight in (start, other):
            assert torch.equal(weight[f"encoder.{name}"], torch.from_numpy(array))


RECIPES = [
    {"model": "bert-tiny", "engine": "torch"},
    {"model": "bert-tiny", "engine": "accelerate", "scheduler": "linear", "warmup_ratio": 0.25},
    {"model": "modernbert-tiny", "engine": "torch", "scheduler": "linear", "warmup_ratio": 0.25},
    {"model": "modernbert-tiny", "engine": "accelerate", "scheduler": "cosine", "optimizer": "adamw"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: "-".join(map(str, r.values())))
def test_a_trial_stopped_after_every_epoch_ends_where_an_uninterrupted_one_does(assets, tmp_path, recipe):
    recipe = recipe | {"epochs": 3, "weight_decay": 0.01}
    uninterrupted = train(new_trial(assets, **recipe))
    stopped = new_trial(assets, **recipe)
    for epoch in (1, 2):
        stopped.run_to_evaluation()
        folder = saved(stopped, tmp_path / f"epoch-{epoch}")
        stopped = new_trial(assets, **recipe)
        stopped.restore(folder)
        assert stopped.evaluation == epoch
    train(stopped)
    assert learnt(stopped) == learnt(uninterrupted)
    assert_identical(weights(stopped), weights(uninterrupted))
    assert_identical(stopped.optimizer.state_dict()["state"], uninterrupted.optimizer.state_dict()["state"])
    assert stopped.scheduler.state_dict() == uninterrupted.scheduler.state_dict()


def test_the_best_epochs_weights_survive_a_restart(assets, tmp_path):
    # so small a learning rate moves nothing but the head's bias: val_acc ties and epoch 1 stays best
    recipe = {"epochs": 3, "base_lr": 1e-12}
    trial = new_trial(assets, **recipe)
    trial.run_to_evaluation()
    after_first = weights(trial)
    trial.run_to_evaluation()
    folder = saved(trial, tmp_path / "second")
    restored = new_trial(assets, **recipe)
    restored.restore(folder)
    restored.run_to_evaluation()
    assert best_evaluation(restored.history) == 1
    checkpoint = Checkpoint.load(saved(restored, tmp_path / "third"))
    assert_identical(checkpoint.best_weights, after_first)
    assert not torch.equal(checkpoint.weights["classifier.bias"], after_first["classifier.bias"])


def test_best_epoch_has_the_highest_val_acc_and_is_the_earliest_on_ties():
    cases = {(): 0, (0.7,): 1, (0.7, 0.8, 0.75): 2, (0.8, 0.7, 0.8): 1, (0.1, 0.2, 0.3): 3, (0.5,) * 3: 1}
    for accuracies, best in cases.items():
        history = [{"epoch": i, "val_acc": accuracy} for i, accuracy in enumerate(accuracies, start=1)]
        assert best_evaluation(history) == best


def test_a_report_says_when_it_was_made_and_how_fast_training_was(finished):
    for report in finished.history:
        assert abs(report["reported_at"] / 1000 - time.time()) < 3600  # ms since 1970, of this test run
        assert report["epoch_seconds"] > 200 / report["examples_per_second"] > 0


def test_a_metric_declared_in_one_place_is_in_every_report(assets, monkeypatch):
    def recall(logits, labels):
        return (logits.argmax(dim=1)[labels == 1] == 1).double().mean().item()

    monkeypatch.setitem(METRICS, "recall", Metric("recall of the second class", recall))
    trial = new_trial(assets, epochs=1)
    report = trial.run_to_evaluation()
    positive = assets["bert-tiny"].val.labels == 1
    assert report["val_recall"] == evaluate(trial.model, trial.val, "fp32").predictions[positive].mean()


def test_a_report_counts_the_val_examples_whose_answer_changed(assets):
    config = tiny_config(epochs=2)
    trial = Trial(config, assets[config.model], CPU)
    found = []
    while not trial.is_finished:
        trial.run_to_evaluation()
        found.append(evaluate(trial.model, trial.val, config.precision).correct)
    assert "val_flips" not in trial.history[0]
    assert trial.history[1]["val_flips"] == (found[0] != found[1]).sum()


def test_a_part_of_the_training_split_is_evaluated_with_dropout_off(assets, monkeypatch):
    few = replace(assets["bert-tiny"], val=assets["bert-tiny"].train)  # then the part is the whole split
    report = Trial(tiny_config(), few, CPU).run_to_evaluation()
    assert report["train_eval_loss"] == report["val_loss"]
    assert report["train_eval_acc"] == report["val_acc"] != report["train_acc"]

    def which(logits, labels):
        return float((labels * torch.arange(len(labels))).sum() + 1000 * len(labels))

    monkeypatch.setitem(METRICS, "which", Metric("which examples these are", which))
    trials = (new_trial(assets, **changes) for changes in ({}, {"seed": 43}, {"target_batch_size": 16}))
    seen = [[report["train_eval_which"] for report in train(trial).history] for trial in trials]
    assert seen == [[seen[0][0]] * 2] * 3  # at every evaluation of every trial
    assert seen[0][0] // 1000 >= 60  # as many as the val split has


def one_text(assets, times):
    """All splits are of one text, so many times."""
    arrays = assets.train
    tokens, same = arrays.tokens[: arrays.offsets[1]], np.zeros(times, np.int64)
    offsets = np.arange(times + 1) * len(tokens)
    repeated = TokenArrays(np.tile(tokens, times), offsets, arrays.labels[same], np.arange(times))
    return replace(assets, train=repeated, val=repeated)


def test_dropout_draws_other_masks_in_every_window_of_every_epoch(assets):
    """One text again and again, at a learning rate that moves nothing: only its dropout can differ."""
    few = one_text(assets["bert-tiny"], times=12)
    config = tiny_config(target_batch_size=1, reference_batch_size=1, epochs=12, base_lr=1e-30)

    def losses(config, few):
        return [row[1] for report in trained(config, few).history for row in report["step_curve"]]

    found = losses(config, few)
    assert len(found) == len(set(found)) == 12 * 12
    assert len(set(losses(config.replace(head_dropout=0.0, epochs=2), without_dropout(few)))) == 1


def test_a_bf16_trial_is_evaluated_in_bf16(assets):
    trial = new_trial(assets, precision="bf16", epochs=1)
    report = trial.run_to_evaluation()
    found = {precision: evaluate(trial.model, trial.val, precision) for precision in ("bf16", "fp32")}
    assert report["val_loss"] == found["bf16"].metrics["loss"] != found["fp32"].metrics["loss"]
    trial.model.eval()
    for precision, evaluation in found.items():
        batch = trial.val.batch(torch.arange(len(trial.val)))
        is_bf16 = precision == "bf16"
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            logits = trial.model(batch.input_ids, batch.attention_mask).double()
        assert evaluation.metrics["loss"] == pytest.approx(
            F.cross_entropy(logits, batch.labels).item(), rel=1e-5
        )


@pytest.mark.parametrize(("target", "width", "rows"), [(64, 1, 4), (4, 1, 50), (3, 2, 34)])
def test_step_curve_is_thinned_and_averages_to_the_report(assets, target, width, rows):
    sizes = {"target_batch_size": target, "physical_batch_size": 64}
    trial = train(new_trial(assets, model="modernbert-tiny", **sizes))
    first, second = (report["step_curve"] for report in trial.history)
    steps = trial.steps_per_epoch
    assert len(first) == len(second) == rows <= CURVE_POINTS
    ends = np.array([row[0] for row in first])
    assert ends.tolist() == [min(start + width, steps) for start in range(0, steps, width)]
    assert [row[0] for row in second] == [end + steps for end in ends]  # steps are counted across epochs
    examples = np.diff(np.minimum(ends * target, 200), prepend=0)
    for report in trial.history:
        _, losses, accuracies, _ = np.array(report["step_curve"]).T
        assert np.average(losses, weights=examples) == pytest.approx(report["train_loss"], rel=1e-12)
        assert np.average(accuracies, weights=examples) == pytest.approx(report["train_acc"], rel=1e-12)


def test_learning_rate_follows_its_scheduler(assets):
    trial = train(new_trial(assets, scheduler="linear", warmup_ratio=0.5))
    curve = [row[3] for report in trial.history for row in report["step_curve"]]
    assert curve == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert trial.optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"engine": "torch"}, r"train_loss is nan at step 2 \(epoch 1\)"),
        ({"engine": "accelerate"}, r"train_loss is nan at step 2 \(epoch 1\)"),
        ({"target_batch_size": 256}, "val_loss is nan after epoch 1"),  # seen nowhere else
    ],
)
def test_divergence_names_the_step_and_adds_nothing_to_the_history(assets, overrides, reason):
    trial = new_trial(assets, base_lr=1e30, **overrides)
    with pytest.raises(NonFiniteLossError, match=reason):
        trial.run_to_evaluation()
    assert trial.history == []


def test_divergence_in_a_later_epoch_counts_steps_from_the_first(assets):
    trial = new_trial(assets)
    trial.run_to_evaluation()
    with torch.no_grad():
        trial.model.classifier.bias.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match=r"at step 5 \(epoch 2\)"):
        trial.run_to_evaluation()
    assert trial.evaluation == 1


@torch.no_grad()
def logits_one_by_one(classifier, arrays):
    texts = np.split(arrays.tokens, arrays.offsets[1:-1])
    rows = [torch.from_numpy(tokens)[None].long() for tokens in texts]
    return torch.cat([classifier(ids, torch.ones_like(ids)) for ids in rows])


@pytest.mark.parametrize("model", TINY_MODELS)
def test_evaluation_equals_one_text_at_a_time_unsorted(assets, model):
    tiny = assets[model]
    classifier = tiny.encoder.build(tiny.classes, dropout=0.5, seed=0).double().eval()
    classifier.classifier.bias.data -= logits_one_by_one(classifier, tiny.train).mean(dim=0)
    logits = logits_one_by_one(classifier, tiny.train)
    predictions, labels = logits.argmax(dim=1), torch.from_numpy(tiny.train.labels)
    assert 20 < predictions.sum() < 180  # or their order would go untested
    result = evaluate(classifier.train(), TokenTensors(tiny.train, tiny.pad_token, CPU), "fp32")
    np.testing.assert_allclose(result.probabilities, logits.softmax(dim=1), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(result.predictions, predictions)
    assert result.metrics["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-10)
    assert result.metrics["acc"] == (predictions == labels).double().mean().item()
