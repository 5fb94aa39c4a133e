"""Memory that really runs out: PyTorch's allocator is refused, in these tests, by the kernel.

Where the moment matters a hook asks for 2^60 bytes; where the amount matters a process of its own has a
limited address space.
"""

import itertools
import operator
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from errors import UserError
from tests.helpers import CPU, assert_identical, learnt, message, tiny_config, train, trained, weights
from tests.limited_memory import trained_with
from trainables.accumulation import ENGINES, DoesNotFitError, is_out_of_memory
from trainables.batches import TokenArrays
from trainables.trial import Trial


def exhaust_memory():
    torch.empty(1 << 60, dtype=torch.uint8)


def starve(register, *moments):
    """Let the hook's calls of these numbers, counted from 1, run out of memory."""
    calls = itertools.count(1)

    def hook(*_):
        if next(calls) in moments:
            exhaust_memory()

    register(hook)


def before_forward(trial):
    return trial.model.register_forward_pre_hook


def in_backward(trial):
    return trial.model.classifier.weight.register_hook


def new_trial(assets, **overrides):
    config = tiny_config(**overrides)
    return Trial(config, assets[config.model], CPU)


def sizes(trial):
    return [report["physical_batch_size"] for report in trial.history]


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:1016"),
    RuntimeError("could not create a primitive"),
    MemoryError(),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError(12),
    RuntimeError(),
    UserError("out of memory"),
    DoesNotFitError("CUDA out of memory. Nothing smaller is left to try"),
]


def test_what_is_out_of_memory():
    assert [error for error in MEMORY if not is_out_of_memory(error)] == []
    assert [error for error in OTHERS if is_out_of_memory(error)] == []


@pytest.mark.parametrize("place", [before_forward, in_backward])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("moments", "size"), [((2,), 8), ((2, 3), 4)], ids=["once", "twice"])
def test_a_trial_halved_in_its_first_window_learns_what_the_smaller_size_learns(
    assets, engine, place, moments, size
):
    recipe = {"engine": engine, "noise_every": 1, "scheduler": "linear", "warmup_ratio": 0.25}
    halved = new_trial(assets, **recipe)
    starve(place(halved), *moments)  # the second of four micro-batches: one has left its gradient
    train(halved)
    expected = trained(halved.config.replace(physical_batch_size=size), assets["bert-tiny"])
    assert sizes(halved) == [size, size]
    assert "gradient_variance" in halved.history[0]  # measured in the repeated window, too
    assert learnt(halved) == learnt(expected)  # with dropout: its generator starts again as well
    assert_identical(weights(halved), weights(expected))


@pytest.mark.parametrize(("starts_at", "ends_at"), [(1024, 32), (16, 8)])
def test_a_size_is_halved_from_what_the_window_took(assets, starts_at, ends_at):
    trial = new_trial(assets, physical_batch_size=starts_at, noise_every=0)
    starve(before_forward(trial), 1)
    trial.run_to_evaluation()
    assert sizes(trial) == [ends_at]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_failed_attempt_held_is_free_when_the_cache_is_given_back(assets, engine, monkeypatch):
    trial = new_trial(assets, engine=engine, epochs=1)
    starve(trial.model.classifier.register_forward_pre_hook, 3)  # after the encoder's pass
    held, alive = [], []

    def note(module, arguments, output):
        held.append(weakref.ref(output.last_hidden_state))

    trial.model.encoder.register_forward_hook(note)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.extend(states() for states in held))
    trial.run_to_evaluation()
    assert alive == [None, None, None]


@pytest.mark.parametrize("moment", ["register_step_pre_hook", "register_step_post_hook"])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_optimizer_step_is_never_repeated(assets, engine, moment):
    trial = new_trial(assets, engine=engine)
    windows, before = [], weights(trial)
    trial.optimizer.register_step_pre_hook(lambda *_: windows.append(weights(trial)))
    starve(getattr(trial.optimizer, moment), 2)
    with pytest.raises(DoesNotFitError) as raised:
        trial.run_to_evaluation()
    assert "in the optimizer's step, which cannot be repeated" in message(raised)
    assert len(windows) == 2
    assert_identical(windows[0], before)
    assert trial.physical_batch_size == 16
    assert trial.history == []


@pytest.mark.parametrize("place", ["optimizer.register_step_pre_hook", "model.register_forward_pre_hook"])
def test_another_error_is_itself(assets, place):
    trial = new_trial(assets)

    def fail(*_):
        raise ValueError("boom")

    operator.attrgetter(place)(trial)(fail)
    with pytest.raises(ValueError, match="boom"):
        trial.run_to_evaluation()
    assert trial.physical_batch_size == 16


def test_evaluation_halves_its_batches_and_not_the_physical_batch_size(assets):
    trial, undisturbed = (new_trial(assets, epochs=1, noise_every=0) for _ in range(2))
    starve(before_forward(trial), 14)  # 13 micro-batches are an epoch
    train(trial)
    train(undisturbed)
    assert sizes(trial) == [16]
    assert trial.history[0]["val_acc"] == undisturbed.history[0]["val_acc"]
    assert trial.history[0]["val_loss"] == pytest.approx(undisturbed.history[0]["val_loss"], abs=1e-6)
    assert_identical(weights(trial), weights(undisturbed))


def resumed(trial, assets, folder, **overrides):
    """A new trial that continues from where this one is."""
    trial.save(folder)
    other = Trial(trial.config.replace(**overrides), assets["bert-tiny"], CPU)
    other.restore(folder)
    return other


@pytest.mark.parametrize("engine", ENGINES)
def test_a_trial_resumed_after_a_halving_ends_where_an_uninterrupted_one_does(assets, tmp_path, engine):
    uninterrupted, stopped = (new_trial(assets, engine=engine, epochs=3) for _ in range(2))
    for trial in (uninterrupted, stopped):
        starve(before_forward(trial), 6)
        trial.run_to_evaluation()
    again = train(resumed(stopped, assets, tmp_path))
    train(uninterrupted)
    assert sizes(again) == [8, 8, 8]
    assert learnt(again) == learnt(uninterrupted)
    assert_identical(weights(again), weights(uninterrupted))


def test_a_size_configured_smaller_since_is_kept(assets, tmp_path):
    trial = new_trial(assets)
    trial.run_to_evaluation()
    assert resumed(trial, assets, tmp_path, physical_batch_size=4).physical_batch_size == 4


TOKENS = 64


def full_length(assets, examples):
    """Random texts of TOKENS tokens each."""
    rng = np.random.default_rng(examples)
    tokens = rng.integers(5, assets.encoder.config["vocab_size"], examples * TOKENS).astype(np.int32)
    offsets = np.arange(examples + 1) * TOKENS
    return TokenArrays(tokens, offsets, rng.integers(0, 2, examples), np.arange(examples))


def heavy_config(**overrides):
    """A window of 128 examples and one of 16, never measured: that would cut the first into two."""
    sizes = {"target_batch_size": 128, "physical_batch_size": 128, "max_length": TOKENS}
    return tiny_config(**sizes | {"noise_every": 0, "scheduler": "linear"} | overrides)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_under_a_limit_a_trial_learns_what_the_size_that_fits_learns(assets, engine):
    tiny = assets["bert-tiny"]
    # enough tokens for a micro-batch of 128 examples to take a hundred megabytes
    heavy = replace(tiny, train=full_length(tiny, 144), val=full_length(tiny, 64))
    small = trained_with(heavy_config(engine=engine, physical_batch_size=64), heavy)
    large = trained_with(heavy_config(engine=engine), heavy)
    assert large.growth > 1.5 * small.growth
    limited = trained_with(heavy_config(engine=engine), heavy, room=(small.growth + large.growth) // 2)
    assert [report["physical_batch_size"] for report in limited.history] == [64, 64]
    assert limited.history == small.history
    assert all(np.array_equal(limited.weights[name], small.weights[name]) for name in small.weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("engine", ENGINES)
def test_on_a_gpu_of_two_gigabytes_a_trial_learns_what_the_size_that_fits_learns(assets, engine):
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / total, device)
    tiny = assets["bert-tiny"]
    heavy = replace(tiny, train=full_length(tiny, 32768))
    config = heavy_config(engine=engine, target_batch_size=32768, physical_batch_size=32768, epochs=1)
    try:
        halved = train(Trial(config, heavy, device))
        assert 1 < sizes(halved)[0] < 32768
        expected = train(Trial(config.replace(physical_batch_size=sizes(halved)[0]), heavy, device))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert halved.history[0]["train_loss"] == pytest.approx(expected.history[0]["train_loss"], rel=1e-4)
