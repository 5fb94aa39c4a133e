import pytest
import torch
from torch import nn

from tests.helpers import (
    CPU,
    TINY_MODELS,
    assert_identical,
    make_config,
    tiny_config,
    trained,
    weights,
    without_dropout,
)
from trainables.accumulation import summed_loss
from trainables.batches import epoch_windows
from trainables.noise_scale import (
    NoiseSample,
    measured_windows,
    noise_metrics,
    noise_sample,
    squared_norm,
    window_parts,
)
from trainables.trial import Trial

NOISE = ("noise_scale", "gradient_variance", "gradient_norm_squared")
MOMENTS = ("noise_windows", "noise_moment_vv", "noise_moment_vg", "noise_moment_gg")

MEAN = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.25], dtype=torch.float64)
SCALES = torch.tensor([1.0, 0.5, 2.0, 1.5, 0.1], dtype=torch.float64)  # standard deviations
VARIANCE, NORM_SQUARED = float((SCALES**2).sum()), float((MEAN**2).sum())
ENDLESS = 10**12


def sample(gradients, population=ENDLESS):
    """One measured window, from the gradient of each of its examples, (n, parameters)."""
    parts = window_parts(gradients)
    norms = [part.mean(dim=0).square().sum() for part in parts]
    whole = gradients.mean(dim=0).square().sum()
    return noise_sample(whole, len(gradients), norms, len(parts[0]), population)


@pytest.fixture(scope="module", params=[48, 200], ids=["of halves", "of small parts"])
def samples(request):
    torch.manual_seed(0)
    noise = torch.randn(3000, request.param, len(MEAN), dtype=torch.float64)
    return [sample(window) for window in MEAN + SCALES * noise]


def test_a_known_noise_scale_is_recovered_within_5_percent(samples):
    metrics = noise_metrics(samples)
    assert metrics["gradient_variance"] == pytest.approx(VARIANCE, rel=0.05)
    assert metrics["gradient_norm_squared"] == pytest.approx(NORM_SQUARED, rel=0.05)
    assert metrics["noise_scale"] == pytest.approx(VARIANCE / NORM_SQUARED, rel=0.05)


def test_dividing_before_averaging_or_parts_of_similar_examples_would_miss_it(samples):
    """Sorting the whole window, as its micro-batches are, is what the parts must not be taken from."""
    ratios = torch.stack([s.variance / s.norm_squared for s in samples])
    assert abs(float(ratios.mean()) * NORM_SQUARED / VARIANCE - 1) > 0.05
    torch.manual_seed(0)
    windows = MEAN + SCALES * torch.randn(1000, 48, len(MEAN), dtype=torch.float64)
    metrics = noise_metrics([sample(window[window[:, 2].argsort()]) for window in windows])
    assert metrics["gradient_variance"] > 2 * VARIANCE


def test_two_examples_by_hand():
    """Gradients 1 and 3, mean 2: variance (1-2)² + (3-2)²; ‖G‖² = 1 · 3, + 2/4 of four examples."""
    gradients = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    for population, expected in ((ENDLESS, 3.0), (4, 3.5)):
        found = sample(gradients, population)
        assert float(found.variance) == pytest.approx(2.0)
        assert float(found.norm_squared) == pytest.approx(expected)
    assert noise_metrics([found])["noise_scale"] == pytest.approx(2 / 3.5)


def test_windows_drawn_without_replacement_tell_the_gradient_of_the_whole_split():
    """All windows of many epochs over 96 examples: without the correction ‖G‖² is too low by tr(Σ)/96."""
    torch.manual_seed(0)
    split = MEAN + SCALES * torch.randn(96, len(MEAN), dtype=torch.float64)
    truth, variance = float(split.mean(dim=0).square().sum()), float(split.var(dim=0).sum())
    orders = [torch.randperm(96) for _ in range(1200)]
    for population, expected in ((96, truth), (ENDLESS, truth - variance / 96)):
        found = noise_metrics([sample(split[w], population) for order in orders for w in order.split(24)])
        assert found["gradient_variance"] == pytest.approx(variance, rel=0.01)
        assert found["gradient_norm_squared"] == pytest.approx(expected, abs=0.2 * variance / 96)


def test_a_mean_gradient_that_drowns_in_noise_has_no_noise_scale():
    metrics = noise_metrics([sample(torch.tensor([[-1.0], [2.0]], dtype=torch.float64))])
    assert metrics["gradient_norm_squared"] == pytest.approx(-2.0)
    assert "noise_scale" not in metrics


def test_moments_are_means_over_the_windows():
    terms = [(1.0, 2.0), (3.0, -1.0), (5.0, 4.0)]
    metrics = noise_metrics([NoiseSample(*map(torch.tensor, pair)) for pair in terms])
    expected = {"gradient_variance": 3, "gradient_norm_squared": 5 / 3, "noise_scale": 9 / 5}
    expected |= dict(zip(MOMENTS, (3, 35 / 3, (2 - 3 + 20) / 3, (4 + 1 + 16) / 3), strict=True))
    assert metrics == pytest.approx(expected)


def test_parts_are_two_of_at_most_32_examples_and_share_none():
    sizes = {2: 1, 3: 1, 64: 32, 65: 32, 1024: 32}
    for examples, size in sizes.items():
        one, other = window_parts(torch.arange(examples))
        assert len(one) == len(other) == size
        assert not set(one.tolist()) & set(other.tolist())
    assert len(window_parts(torch.arange(1))) == 0


def windows(batch, examples=40_000, epoch=1, **overrides):
    return measured_windows(make_config(target_batch_size=batch, **overrides), examples, epoch)


def test_every_target_batch_size_is_measured_equally_often_at_the_same_places():
    for epoch in (1, 2):
        places = {batch: sorted(windows(batch, epoch=epoch)) for batch in (16, 64, 256, 1024)}
        assert {len(found) for found in places.values()} <= {9, 10}  # of 40,000 examples, one in 4,096
        for batch, found in places.items():
            exact = [number * 16 // batch for number in places[16]]
            assert found == exact
    assert len(windows(4096)) == 9  # every whole one, once


def test_where_it_starts_depends_on_seed_and_epoch_and_every_epoch_is_measured():
    starts = {
        (seed, epoch): min(windows(16, seed=seed, epoch=epoch)) for seed in (1, 2) for epoch in (1, 2)
    }
    assert len(set(starts.values())) > 1
    for examples, batch in ((200, 64), (200, 256), (1, 64), (3_200, 1_024)):
        for epoch in range(1, 30):
            found = windows(batch, examples, epoch)
            assert found
            assert max(found) < max(1, examples // batch)  # no short last one beside whole ones
    assert windows(64, noise_every=0) == set()
    # every 256 examples of 40,000 = 156 · 256 + 64
    assert len(windows(64, noise_every=1)) in (156, 157)
    assert len(windows(64, examples=3_200)) == 3  # a short epoch is measured more closely


def measured(assets, **overrides):
    config = tiny_config(**{"noise_every": 1} | overrides)
    return trained(config, assets[config.model])


@pytest.mark.parametrize("engine", ["torch", "accelerate"])
@pytest.mark.parametrize("model", TINY_MODELS)
def test_measuring_changes_no_bit_of_what_is_learned(assets, model, engine):
    with_noise = measured(assets, model=model, engine=engine)
    without = measured(assets, model=model, engine=engine, noise_every=0)
    assert_identical(weights(with_noise), weights(without))
    assert all(name in report for report in with_noise.history for name in (*NOISE[1:], *MOMENTS))
    assert not any(name in report for report in without.history for name in (*NOISE, *MOMENTS))


@pytest.mark.parametrize("model", TINY_MODELS)
@pytest.mark.parametrize("other", [{"engine": "accelerate"}, {"physical_batch_size": 24}], ids=str)
def test_engines_and_physical_batch_sizes_measure_the_same(assets, model, other):
    plain = {model: without_dropout(assets[model])}
    config = {"model": model, "head_dropout": 0.0, "physical_batch_size": 1024, "epochs": 1}
    one, another = (measured(plain, **config | overrides).history[0] for overrides in ({}, other))
    for name in (*NOISE[1:], *MOMENTS):
        assert one[name] == pytest.approx(another[name], rel=1e-3)


@pytest.mark.parametrize("physical", [32, 64, 1024])
def test_a_trial_reports_what_its_examples_gradients_give(assets, physical):
    """One window of 200: the formulas, written out on separately computed gradients."""
    plain = without_dropout(assets["bert-tiny"])
    sizes = {"target_batch_size": 200, "physical_batch_size": physical}
    config = tiny_config(**sizes, head_dropout=0.0, noise_every=4, epochs=1)
    trial, fresh = Trial(config, plain, CPU), Trial(config, plain, CPU)
    report = trial.run_to_evaluation()
    (window,) = epoch_windows(len(fresh.train), 200, config.seed, 1)
    norms = {}
    for name, indices in {"whole": window, "one": window[:32], "other": window[32:64]}.items():
        batch = fresh.train.batch(indices)
        fresh.model.zero_grad()
        loss, _ = summed_loss(fresh.model(batch.input_ids, batch.attention_mask), batch)
        (loss / len(indices)).backward()
        gradients = [p.grad for p in fresh.model.parameters() if p.grad is not None]
        norms[name] = float(torch.cat([g.flatten() for g in gradients]).double().square().sum())
    small, large = (norms["one"] + norms["other"]) / 2, norms["whole"]
    variance = (small - large) / (1 / 32 - 1 / 200)
    norm_squared = (200 * large - 32 * small) / (200 - 32) + variance / 200
    assert report["noise_windows"] == 1
    assert report["gradient_variance"] == pytest.approx(variance, rel=1e-3)
    assert report["gradient_norm_squared"] == pytest.approx(norm_squared, rel=1e-3)


def test_the_squared_norm_is_that_of_all_gradients():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1))
    model[0].weight.grad = torch.tensor([[1.0, 2.0]])
    model[1].weight.grad = torch.tensor([[2.0]])  # the bias has none
    assert float(squared_norm(model)) == pytest.approx(9.0)


def test_measuring_is_not_part_of_what_is_learned():
    config = make_config()
    assert config.replace(noise_every=0).trial_hash == config.trial_hash
