import itertools
import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import (
    CPU,
    METRICS,
    TINY_MODELS,
    largest_difference,
    tiny_config,
    train,
    weights,
    without_dropout,
)
from trainables.accumulation import ENGINES, StepResult, summed_loss
from trainables.batches import TokenTensors
from trainables.encoders import load_architecture
from trainables.gradient_check import PHYSICAL_BATCH_SIZES, compare_gradients
from trainables.trial import Trial


class ScaledEngine:
    """An accumulation loop whose factor of each micro-batch's summed loss is a parameter."""

    def __init__(self, scale, model, optimizer, accumulation_steps):
        self.scale, self.accumulation_steps = scale, accumulation_steps
        self.model, self.optimizer = model, optimizer

    def accumulate(self, micro_batches):
        self.optimizer.zero_grad()
        losses, hits = [], []
        for batch in micro_batches:
            loss_sum, correct = summed_loss(self.model(batch.input_ids, batch.attention_mask), batch)
            (loss_sum * self.scale(batch, micro_batches, self.accumulation_steps)).backward()
            losses.append(loss_sum.detach())
            hits.append(correct)
        return StepResult(sum(losses), sum(hits), sum(map(len, micro_batches)))

    def update(self):
        self.optimizer.step()


def right(batch, micro_batches, accumulation_steps):
    return 1 / sum(map(len, micro_batches))


def mean_of_means(batch, micro_batches, accumulation_steps):
    return 1 / (len(batch) * len(micro_batches))


def full_number_of_steps(batch, micro_batches, accumulation_steps):
    """Accelerate's ``accumulate``, left alone."""
    return right(batch, micro_batches, accumulation_steps) * len(micro_batches) / accumulation_steps


def summed_over_steps(batch, micro_batches, accumulation_steps):
    """transformers.Trainer: the means of the micro-batches are added up."""
    return right(batch, micro_batches, accumulation_steps) * len(micro_batches)


class TailDroppingEngine(ScaledEngine):
    """Steps only when it has seen as many micro-batches as a full window has."""

    def accumulate(self, micro_batches):
        self.is_full = len(micro_batches) == self.accumulation_steps
        super().accumulate(micro_batches)

    def update(self):
        if self.is_full:
            super().update()


def real(engine):
    return lambda model, optimizer, _: ENGINES[engine](model, optimizer, "fp32")


SHORT_TAILS = {("short tail", physical) for physical in (1, 4, 5, 7)}
MEANS_OF_MEANS = {("full", 5), ("full", 7), ("short tail", 4)}
SUMS = {("full", 1), ("full", 4), ("full", 5), ("full", 7), ("short tail", 1), ("short tail", 4)}


@pytest.mark.parametrize(
    ("build", "wrong"),
    [
        *((real(engine), set()) for engine in ENGINES),
        (partial(ScaledEngine, right), set()),
        (partial(ScaledEngine, mean_of_means), MEANS_OF_MEANS),
        (partial(ScaledEngine, full_number_of_steps), SHORT_TAILS),
        (partial(ScaledEngine, summed_over_steps), SUMS),
        (partial(TailDroppingEngine, right), SHORT_TAILS),
    ],
    ids=[*ENGINES, "right", "mean of means", "full number of steps", "summed over steps", "dropped tail"],
)
@pytest.mark.parametrize("model", TINY_MODELS)
def test_engines_give_every_window_its_whole_gradient_and_the_check_finds_where_others_do_not(
    model, build, wrong
):
    errors = compare_gradients(load_architecture(model), build)
    checked = {(e.window.split(",")[0], e.physical_batch_size): e.is_small for e in errors}
    assert set(checked) == set(itertools.product(("full", "short tail"), PHYSICAL_BATCH_SIZES))
    assert {window for window, is_small in checked.items() if not is_small} == wrong


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_reports_the_loss_and_the_hits_of_its_whole_window(assets, engine):
    tiny = assets["modernbert-tiny"]
    model = tiny.encoder.build(tiny.classes, dropout=0.0, seed=0)
    data = TokenTensors(tiny.train, tiny.pad_token, CPU)
    window = torch.arange(17)
    batch = data.batch(window)
    with torch.no_grad():
        logits = model.eval()(batch.input_ids, batch.attention_mask)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    result = ENGINES[engine](model, optimizer, "fp32").accumulate(data.batches(window, 5))
    assert result.examples == 17
    assert result.loss_sum.item() == pytest.approx(F.cross_entropy(logits, batch.labels).item() * 17)
    assert result.correct.item() == (logits.argmax(dim=1) == batch.labels).sum().item()


def learn(assets, dtype=torch.float32, scale=None, **overrides):
    sizes = {"target_batch_size": 60, "physical_batch_size": 7}
    config = tiny_config(**{"head_dropout": 0.0} | sizes | overrides)
    trial = Trial(config, without_dropout(assets[config.model]), CPU)
    trial.model.to(dtype)
    if scale:
        trial.engine = ScaledEngine(scale, trial.model, trial.optimizer, config.accumulation_steps)
    return train(trial)


def differences(trial, reference):
    """The largest difference of any metric of any epoch, and of any weight."""
    metrics = max(
        abs(report[name] - expected[name])
        for report, expected in zip(trial.history, reference.history, strict=True)
        for name in METRICS
    )
    return metrics, largest_difference(weights(trial), weights(reference))


@pytest.fixture(scope="module", params=TINY_MODELS)
def reference(request, assets):
    trial = learn(assets, model=request.param)
    assert (trial.steps_per_epoch, len(trial.train) % 60) == (4, 20)  # the tail is 3 of 9 micro-batches
    return trial


@pytest.mark.parametrize(
    ("is_right", "overrides"),
    [
        (True, {"engine": "accelerate"}),
        (True, {"scale": right}),
        (False, {"scale": full_number_of_steps}),
        (False, {"scale": mean_of_means}),
    ],
)
def test_every_right_engine_learns_the_same_and_a_wrong_one_something_else(
    assets, reference, is_right, overrides
):
    trial = learn(assets, model=reference.config.model, **overrides)
    metrics, weight = differences(trial, reference)
    if is_right:
        assert metrics < 1e-6
        assert weight < 2e-5  # eight steps of Adam, each of at most about 1e-3
    else:
        assert metrics > 1e-4
        assert weight > 5e-4


@pytest.mark.parametrize("model", TINY_MODELS)
def test_physical_batch_size_does_not_change_what_is_learned(assets, model):
    one_pass, *others = (
        learn(assets, torch.float64, model=model, epochs=1, physical_batch_size=size) for size in (60, 1, 7)
    )
    assert [trial.config.accumulation_steps for trial in (one_pass, *others)] == [1, 60, 9]
    for trial in others:
        assert max(differences(trial, one_pass)) < 1e-9


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_stays_finite_and_near_fp32(assets, reference, engine):
    trial = learn(assets, model=reference.config.model, engine=engine, precision="bf16", epochs=1)
    assert all(math.isfinite(report[name]) for report in trial.history for name in METRICS)
    assert {weight.dtype for weight in weights(trial).values()} == {torch.float32}
    loss, expected = (t.history[0]["train_loss"] for t in (trial, reference))
    assert loss == pytest.approx(expected, abs=0.02)
    assert loss != expected
