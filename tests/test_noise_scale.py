import pytest
import torch
from torch import nn

from tests.helpers import (
    CPU,
    TINY_MODELS,
    largest_difference,
    make_config,
    tiny_config,
    trained,
    weights,
    without_dropout,
)
from trainables.accumulation import summed_loss
from trainables.batches import epoch_windows
from trainables.noise_scale import GradientGroups, measured_cut, noise_metrics
from trainables.trial import Trial

NOISE = ("noise_scale", "gradient_variance", "gradient_norm_squared")


MEAN = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.25], dtype=torch.float64)
SCALES = torch.tensor([1.0, 0.5, 2.0, 1.5, 0.1], dtype=torch.float64)  # standard deviations
TRUE_SCALE = float((SCALES**2).sum() / (MEAN**2).sum())


def linear_problem(examples):
    """Losses x·w have the gradients x: mean MEAN, covariance diag(SCALES²), whatever w is."""
    return MEAN + SCALES * torch.randn(examples, len(MEAN), dtype=torch.float64)


def weight(size=5):
    return nn.Parameter(torch.zeros(size, dtype=torch.float64))


def sample(parameter, window, groups, physical):
    """One measured window of the linear problem."""
    micro_batches = window.split(physical)
    gradients = GradientGroups([parameter], groups, len(micro_batches), len(window))
    parameter.grad = None
    for batch in micro_batches:
        ((batch @ parameter).sum() / len(window)).backward()
        gradients.after_backward()
    return gradients.sample


@pytest.fixture(scope="module")
def samples():
    torch.manual_seed(0)
    return [sample(weight(), linear_problem(48), 2, 24) for _ in range(3000)]


def test_a_known_noise_scale_is_recovered_within_5_percent(samples):
    metrics = noise_metrics(samples)
    assert metrics["gradient_variance"] == pytest.approx(float((SCALES**2).sum()), rel=0.05)
    assert metrics["gradient_norm_squared"] == pytest.approx(float((MEAN**2).sum()), rel=0.05)
    assert metrics["noise_scale"] == pytest.approx(TRUE_SCALE, rel=0.05)


def test_dividing_before_averaging_or_groups_of_similar_examples_would_miss_it(samples):
    """Sorting the whole window, as unmeasured windows are, is what the measured ones must not do."""
    ratios = torch.stack([s.variance / s.norm_squared for s in samples])
    assert abs(float(ratios.mean()) / TRUE_SCALE - 1) > 0.05
    torch.manual_seed(0)
    windows = [linear_problem(48) for _ in range(1000)]
    metrics = noise_metrics([sample(weight(), window[window[:, 2].argsort()], 2, 24) for window in windows])
    assert metrics["gradient_variance"] > 2 * float((SCALES**2).sum())


def test_two_groups_by_hand():
    """Gradients 1 and 3: mean 2; variance ((1-2)² + (3-2)²) / 1 = 2; ‖G‖² = 1 · 3."""
    found = sample(weight(1), torch.tensor([[1.0], [3.0]], dtype=torch.float64), 2, 1)
    assert (float(found.variance), float(found.norm_squared)) == (2.0, 3.0)
    assert noise_metrics([found])["noise_scale"] == pytest.approx(2 / 3)


def test_a_mean_gradient_that_drowns_in_noise_has_no_noise_scale():
    metrics = noise_metrics([sample(weight(1), torch.tensor([[-1.0], [2.0]], dtype=torch.float64), 2, 1)])
    assert metrics["gradient_norm_squared"] == -2.0
    assert "noise_scale" not in metrics


def test_groups_are_few_and_equal_or_there_are_none():
    cuts = {(1024, 64): (2, 64), (64, 16): (2, 16), (48, 16): (3, 16), (80, 16): (5, 16), (17, 1): (17, 1)}
    cuts |= {(1024, 512): (2, 512), (192, 96): (2, 96)}
    # as at 64: what fits into memory does not decide what is measured
    cuts |= {(1024, 1024): (2, 64), (1024, 768): (2, 64), (256, 1024): (2, 64), (128, 128): (2, 64)}
    cuts |= {(64, 1024): (1, 1024), (64, 64): (1, 64), (64, 24): (1, 24), (8, 16): (1, 16)}
    for (examples, physical), cut in cuts.items():
        assert measured_cut(examples, physical) == cut


def measured(assets, **overrides):
    config = tiny_config(**{"noise_every": 1} | overrides)
    return trained(config, assets[config.model])


@pytest.mark.parametrize("model", TINY_MODELS)
def test_measuring_changes_what_is_learned_by_rounding_alone(assets, model):
    plain = {model: without_dropout(assets[model])}  # dropout would mask other examples
    config = {"model": model, "head_dropout": 0.0}
    with_noise, without = (measured(plain, noise_every=n, **config) for n in (1, 0))
    assert largest_difference(weights(with_noise), weights(without)) < 1e-4
    assert all(name in report for report in with_noise.history for name in NOISE[1:])
    assert not any(name in report for report in without.history for name in NOISE)


@pytest.mark.parametrize("model", TINY_MODELS)
def test_engines_measure_the_same(assets, model):
    one, other = (measured(assets, model=model, engine=engine) for engine in ("torch", "accelerate"))
    for a, b in zip(one.history, other.history, strict=True):
        assert a["gradient_variance"] == pytest.approx(b["gradient_variance"], rel=1e-4)


def test_a_trial_reports_what_its_examples_gradients_give(assets):
    """Two micro-batches a window: the formulas, written out on separately computed gradients."""
    assets = {"bert-tiny": without_dropout(assets["bert-tiny"])}
    config = tiny_config(
        target_batch_size=192, physical_batch_size=96, head_dropout=0.0, noise_every=1, epochs=1
    )
    trial = Trial(config, assets["bert-tiny"], CPU)
    fresh = Trial(config, assets["bert-tiny"], CPU)
    report = trial.run_to_evaluation()
    window = next(epoch_windows(len(fresh.train), 192, config.seed, 1))
    halves = []
    for half in window.split(96):
        batch = fresh.train.batch(half)
        fresh.model.zero_grad()
        loss, _ = summed_loss(fresh.model(batch.input_ids, batch.attention_mask), batch)
        (loss / 96).backward()
        gradients = [p.grad for p in fresh.model.parameters() if p.grad is not None]
        halves.append(torch.cat([g.flatten() for g in gradients]).double())
    a, b = halves
    # the sample variance of two means of 96 examples, and the product of two independent ones
    assert report["gradient_variance"] == pytest.approx(float((a - b).square().sum()) / 2 * 96, rel=1e-3)
    assert report["gradient_norm_squared"] == pytest.approx(float(a @ b), rel=1e-3)


def test_measuring_is_not_part_of_what_is_learned():
    config = make_config()
    assert config.replace(noise_every=0).trial_hash == config.trial_hash
    assert [n for n in range(40) if config.measures_noise(n)] == [0, 16, 32]
