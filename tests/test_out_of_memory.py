"""Memory that really runs out: PyTorch's allocator is refused, in these tests, by the kernel.

Where the moment matters a hook asks for 2^60 bytes; where the amount matters a process of its own has a
limited address space.
"""

import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from errors import UserError
from tests.helpers import (
    CPU,
    METRICS,
    assert_identical,
    largest_difference,
    learnt,
    message,
    tiny_config,
    train,
    trained,
    weights,
    without_dropout,
)
from tests.limited_memory import (
    evaluated_with,
    in_fresh_process,
    largest_with,
    outcome,
    trained_with,
    trained_with_less_later,
)
from trainables.evaluation import evaluate
from trainables.largest_batch import largest_physical_batch_size
from trainables.memory import DoesNotFitError, is_out_of_memory, shrink_to_fit
from trainables.tokens import TokenArrays
from trainables.trial import Trial

ENGINES = ("torch", "accelerate")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


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


def rates(history):
    """(step, learning rate) of every point of the curves."""
    return [(row[0], row[3]) for report in history for row in report["step_curve"]]


# -- what counts -----------------------------------------------------------------------------------


def test_what_the_cpu_allocator_raises_is_out_of_memory():
    with pytest.raises(RuntimeError) as raised:
        exhaust_memory()
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:1016"),
        RuntimeError("could not create a primitive"),
        MemoryError(),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:40],
)
def test_other_words_for_out_of_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError(12),
        RuntimeError(),
        ValueError("CUDA out of memory. Not from PyTorch"),
        UserError("out of memory"),
        DoesNotFitError("CUDA out of memory. Nothing smaller is left to try"),
    ],
    ids=repr,
)
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)


def fitting_up_to(limit, tried):
    def attempt(size):
        tried.append(size)
        if size > limit:
            exhaust_memory()
        return f"ran at {size}"

    return attempt


@pytest.mark.parametrize(
    ("limit", "size", "expected"), [(8, 8, [8]), (8, 64, [64, 32, 16, 8]), (1, 7, [7, 3, 1])]
)
def test_the_size_is_halved_until_it_fits(limit, size, expected):
    tried = []
    assert shrink_to_fit(fitting_up_to(limit, tried), size) == (f"ran at {expected[-1]}", expected[-1])
    assert tried == expected


def test_what_the_failed_attempt_held_is_free_before_the_next_one():
    attempts = []

    def attempt(size):
        assert not any(activations() for activations in attempts)
        model = nn.Linear(2, 2)
        model.keeps_itself_alive = [model]
        attempts.append(weakref.ref(model))
        if size > 2:
            exhaust_memory()

    assert shrink_to_fit(attempt, 8) == (None, 2)
    assert len(attempts) == 3


def test_other_errors_are_raised_at_once():
    tried = []

    def attempt(size):
        tried.append(size)
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        shrink_to_fit(attempt, 64)
    assert tried == [64]


# -- a window is repeated, a step is not -----------------------------------------------------------


@pytest.mark.parametrize("place", [before_forward, in_backward])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_trial_halved_in_its_first_window_learns_what_the_smaller_size_learns(assets, engine, place):
    recipe = {"engine": engine, "noise_every": 1, "scheduler": "linear", "warmup_ratio": 0.25}
    halved = new_trial(assets, **recipe)
    starve(place(halved), 2)  # the second of four micro-batches: one has left its gradient
    train(halved)
    expected = trained(halved.config.replace(physical_batch_size=8), assets["bert-tiny"])
    assert sizes(halved) == [8, 8]
    assert "gradient_variance" in halved.history[0]  # measured in the repeated window, too
    assert learnt(halved) == learnt(expected)  # with dropout: its generator starts again as well
    assert_identical(weights(halved), weights(expected))


def test_a_window_may_be_halved_more_than_once(assets):
    halved = new_trial(assets)
    starve(before_forward(halved), 2, 3)
    train(halved)
    expected = trained(halved.config.replace(physical_batch_size=4), assets["bert-tiny"])
    assert learnt(halved) == learnt(expected)
    assert_identical(weights(halved), weights(expected))


@pytest.mark.parametrize("place", [before_forward, in_backward])
@pytest.mark.parametrize("engine", ENGINES)
def test_halving_later_keeps_every_step_and_changes_rounding_alone(assets, engine, place):
    plain = {"bert-tiny": without_dropout(assets["bert-tiny"])}
    recipe = {"engine": engine, "dropout": 0.0, "scheduler": "linear", "warmup_ratio": 0.25}
    halved, undisturbed = new_trial(plain, **recipe), new_trial(plain, **recipe)
    starve(place(halved), 11)  # the third window's third micro-batch
    train(halved)
    train(undisturbed)
    assert (sizes(halved), sizes(undisturbed)) == ([8, 8], [16, 16])
    assert outcome(halved).steps == outcome(undisturbed).steps == {8}
    assert rates(halved.history) == rates(undisturbed.history)
    assert halved.scheduler.state_dict() == undisturbed.scheduler.state_dict()
    for report, expected in zip(halved.history, undisturbed.history, strict=True):
        for name in METRICS:
            assert report[name] == pytest.approx(expected[name], abs=1e-5)
    assert largest_difference(weights(halved), weights(undisturbed)) < 1e-4


def test_a_size_larger_than_the_window_is_halved_from_what_the_window_took(assets):
    trial = new_trial(assets, physical_batch_size=1024, noise_every=0)
    starve(before_forward(trial), 1)
    trial.run_epoch()
    assert sizes(trial) == [32]


@pytest.mark.parametrize("moment", ["register_step_pre_hook", "register_step_post_hook"])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_optimizer_step_is_never_repeated(assets, engine, moment):
    trial = new_trial(assets, engine=engine)
    windows, before = [], weights(trial)
    trial.optimizer.register_step_pre_hook(lambda *_: windows.append(weights(trial)))
    starve(getattr(trial.optimizer, moment), 2)
    with pytest.raises(DoesNotFitError) as raised:
        trial.run_epoch()
    assert "in the optimizer's step, which cannot be repeated" in message(raised)
    assert len(windows) == 2
    assert_identical(windows[0], before)
    assert trial.physical_batch_size == 16
    assert trial.history == []


def test_another_error_in_the_optimizers_step_is_itself(assets):
    trial = new_trial(assets)

    def fail(*_):
        raise ValueError("boom")

    trial.optimizer.register_step_pre_hook(fail)
    with pytest.raises(ValueError, match="boom"):
        trial.run_epoch()


@pytest.mark.parametrize("engine", ENGINES)
def test_where_one_example_does_not_fit_the_trial_says_so_in_one_line(assets, engine):
    trial = new_trial(assets, engine=engine)
    starve(before_forward(trial), *range(1, 100))
    with pytest.raises(DoesNotFitError) as raised:
        trial.run_epoch()
    text = message(raised)
    assert text.startswith("out of memory even with one example at a time: give trials more memory")
    assert "you tried to allocate" in text
    assert trial.history == []


def test_evaluation_halves_its_batches_and_not_the_physical_batch_size(assets):
    trial, undisturbed = new_trial(assets, epochs=1), new_trial(assets, epochs=1)
    starve(before_forward(trial), 14)  # 13 micro-batches are an epoch
    train(trial)
    train(undisturbed)
    assert sizes(trial) == [16]
    assert trial.history[0]["val_acc"] == undisturbed.history[0]["val_acc"]
    assert trial.history[0]["val_loss"] == pytest.approx(undisturbed.history[0]["val_loss"], abs=1e-6)
    assert_identical(weights(trial), weights(undisturbed))


# -- stopped and resumed ---------------------------------------------------------------------------


def resumed(trial, assets, folder, **overrides):
    """A new trial that goes on from where this one is."""
    trial.save(folder)
    other = Trial(trial.config.replace(**overrides), assets["bert-tiny"], CPU)
    other.restore(folder)
    return other


@pytest.mark.parametrize("engine", ENGINES)
def test_a_trial_resumed_after_a_halving_ends_where_an_uninterrupted_one_does(assets, tmp_path, engine):
    uninterrupted, stopped = (new_trial(assets, engine=engine, epochs=3) for _ in range(2))
    for trial in (uninterrupted, stopped):
        starve(before_forward(trial), 6)
        trial.run_epoch()
    again = train(resumed(stopped, assets, tmp_path))
    train(uninterrupted)
    assert sizes(again) == [8, 8, 8]
    assert learnt(again) == learnt(uninterrupted)
    assert_identical(weights(again), weights(uninterrupted))


def test_a_checkpoint_from_before_the_size_was_kept_goes_on_at_the_configured_one(assets, tmp_path):
    trial = new_trial(assets)
    del trial.run_epoch()["physical_batch_size"]
    assert resumed(trial, assets, tmp_path).physical_batch_size == 16


def test_a_size_configured_smaller_since_is_kept(assets, tmp_path):
    trial = new_trial(assets)
    trial.run_epoch()
    assert resumed(trial, assets, tmp_path, physical_batch_size=4).physical_batch_size == 4


# -- a limited address space -----------------------------------------------------------------------

TOKENS = 64


def full_length(arrays, examples, vocabulary):
    """Random texts of TOKENS tokens each."""
    rng = np.random.default_rng(len(arrays))
    tokens = rng.integers(5, vocabulary, examples * TOKENS).astype(np.int32)
    offsets = np.arange(examples + 1) * TOKENS
    return TokenArrays(tokens, offsets, rng.integers(0, 2, examples), np.arange(examples))


@pytest.fixture(scope="module")
def heavy(assets):
    """Enough tokens for a micro-batch of 128 examples to take a hundred megabytes."""
    tiny = assets["bert-tiny"]
    vocabulary = tiny.encoder.config["vocab_size"]
    return replace(
        tiny, train=full_length(tiny.train, 144, vocabulary), val=full_length(tiny.val, 64, vocabulary)
    )


def heavy_config(**overrides):
    """A window of 128 examples and one of 16, never measured: that would cut the first into two."""
    sizes = {"target_batch_size": 128, "physical_batch_size": 128, "max_length": TOKENS}
    return tiny_config(**sizes | {"noise_every": 0, "scheduler": "linear"} | overrides)


@pytest.fixture(scope="module")
def small(heavy):
    """Never limited, at 64 examples a micro-batch."""
    return in_fresh_process(trained_with, heavy_config(physical_batch_size=64), heavy)


@pytest.fixture(scope="module")
def large(heavy):
    return in_fresh_process(trained_with, heavy_config(), heavy)


@pytest.fixture(scope="module")
def room(small, large):
    """Between what micro-batches of 64 and of 128 examples take.

    Nearer to the second: of the address space, which is what is limited here, a search takes more than a
    trial, 4 MB that are never touched for every small size that it tries.
    """
    assert large.growth > 1.5 * small.growth
    return (small.growth + 3 * large.growth) // 4


@pytest.mark.parametrize("engine", ENGINES)
def test_under_a_limit_a_trial_learns_what_the_size_that_fits_learns(heavy, small, large, room, engine):
    limited = in_fresh_process(trained_with, heavy_config(engine=engine), heavy, room)
    assert [report["physical_batch_size"] for report in limited.history] == [64, 64]
    assert limited.steps == large.steps == {4}
    assert rates(limited.history) == rates(large.history)
    if engine == "torch":
        assert limited.history == small.history
        assert all(np.array_equal(limited.weights[name], small.weights[name]) for name in small.weights)


def test_a_limit_that_comes_later_changes_rounding_alone(heavy):
    plain = without_dropout(heavy)
    config = heavy_config(dropout=0.0)
    limited = in_fresh_process(trained_with_less_later, config, plain, 0.75)
    undisturbed = outcome(trained(config, plain))
    first, second = (report["physical_batch_size"] for report in limited.history)
    assert (first, second) == (128, 64)
    assert limited.steps == undisturbed.steps == {4}
    assert rates(limited.history) == rates(undisturbed.history)
    for name, expected in undisturbed.weights.items():
        assert np.abs(limited.weights[name] - expected).max() < 1e-4


def test_evaluation_under_a_limit_gives_the_same_result(heavy):
    config = heavy_config(physical_batch_size=16)
    expected, begun, growth = in_fresh_process(evaluated_with, config, heavy)
    assert begun == [64]
    result, begun, _ = in_fresh_process(evaluated_with, config, heavy, int(growth * 0.7))
    assert begun[0] == 64
    assert begun[-1] < 64
    assert result.accuracy == expected.accuracy
    assert result.loss == pytest.approx(expected.loss, abs=1e-6)
    np.testing.assert_array_equal(result.predictions, expected.predictions)


def test_the_search_finds_what_then_fits_and_whose_double_does_not(heavy, room):
    found = in_fresh_process(largest_with, heavy_config(), heavy, room, 128)
    assert found == 64
    for physical in (found, 2 * found):
        config = heavy_config(physical_batch_size=physical, epochs=1)
        ended = in_fresh_process(trained_with, config, heavy, room)
        assert ended.history[0]["physical_batch_size"] == found


def test_the_search_says_in_one_line_that_not_even_one_example_fits(heavy):
    with pytest.raises(DoesNotFitError) as raised:
        in_fresh_process(largest_with, heavy_config(), heavy, 0, 256)
    text = message(raised)
    assert text.startswith("bert-tiny does not fit into memory with one text of 64 tokens: set a smaller")


@pytest.mark.parametrize("limit", [1, 5, 8])
@pytest.mark.parametrize("engine", ENGINES)
def test_where_memory_is_plenty_the_search_ends_at_its_limit(assets, limit, engine):
    config = tiny_config(engine=engine)
    assert largest_physical_batch_size(config, assets["bert-tiny"], CPU, limit) == limit


# -- on a GPU: written without one at hand, so never run yet ---------------------------------------


@pytest.fixture
def limited_gpu():
    """A GPU of which this process may use two gigabytes."""
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / total, device)
    yield device
    torch.cuda.set_per_process_memory_fraction(1.0, device)


@needs_gpu
@pytest.mark.parametrize("engine", ENGINES)
def test_on_a_gpu_the_search_finds_what_fits_and_a_trial_finds_it_too(heavy, limited_gpu, engine):
    vocabulary = heavy.encoder.config["vocab_size"]
    many = replace(heavy, train=full_length(heavy.train, 32768, vocabulary))
    config = heavy_config(engine=engine, target_batch_size=32768, physical_batch_size=32768, epochs=1)
    found = largest_physical_batch_size(config, many, limited_gpu, 32768)
    assert 1 < found < 32768
    kept = train(Trial(config.replace(physical_batch_size=found), many, limited_gpu))
    assert sizes(kept) == [found]
    halved = train(Trial(config, many, limited_gpu))
    assert found <= sizes(halved)[0] < 32768  # the search leaves a tenth
    expected = trained_on(limited_gpu, config.replace(physical_batch_size=sizes(halved)[0]), many)
    assert halved.history[0]["train_loss"] == pytest.approx(expected.history[0]["train_loss"], rel=1e-4)


def trained_on(device, config, assets):
    return train(Trial(config, assets, device))


@needs_gpu
def test_on_a_gpu_evaluation_under_a_limit_gives_the_same_result(heavy, limited_gpu):
    trial = Trial(heavy_config(physical_batch_size=16), heavy, limited_gpu)
    expected = evaluate(trial.model, trial.val, "fp32")
    starve(before_forward(trial), 1)
    result = evaluate(trial.model, trial.val, "fp32")
    assert result.accuracy == expected.accuracy
    assert result.loss == pytest.approx(expected.loss, abs=1e-5)
