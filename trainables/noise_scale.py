"""The simple gradient noise scale tr(Σ)/‖G‖² of McCandlish et al. 2018 (arXiv:1812.06162, appendix A.1).

G is the gradient over all training examples, and Σ the covariance of a single example's gradient. If the
target batch size is far below the noise scale, a larger batch averages noise away; far above it, a larger
batch is wasted. The squared norm of a gradient over n examples has the mean ‖G‖² + tr(Σ)/n. So unbiased
estimates of both terms follow from the window's gradient, which training needs anyway, and from those of
two small parts of the window, which cost passes of their own before it is accumulated. The parts are the
same examples at any physical batch size, and measuring does not change the update.

Assumptions: the noise of dropout counts as gradient noise; the plain gradient is measured, not Adam's
preconditioned step. A diagnostic, not a law.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from search_spaces import TrialConfig
from trainables.batches import derive_seed

PARTS = 2
LEAST_AN_EPOCH = 3  # measured windows, unless they would be less than CLOSEST examples apart
CLOSEST = 1024
LARGEST_PART = 32  # examples: two parts are a window of the reference batch size, 64


class NoiseSample(NamedTuple):
    """Unbiased estimates from one window, () each, on the device."""

    variance: Tensor  # tr(Σ)
    norm_squared: Tensor  # ‖G‖², which may come out negative


@lru_cache(maxsize=8)  # called for every window of an epoch
def measured_windows(config: TrialConfig, examples: int, epoch: int) -> frozenset[int]:
    """The windows, counted from 0, that are measured in an epoch over ``examples`` examples.

    Starting at a seeded example, every ``config.noise_interval``-th example marks its window; in a short
    epoch, examples closer together do. So trials with the same seed are measured at the same examples for
    any target batch size, at least once an epoch, and a window at most once. A short last window is
    measured only if the epoch has no other.
    """
    if not config.noise_interval:
        return frozenset()
    size = config.target_batch_size
    whole = examples // size * size or examples
    interval = min(config.noise_interval, max(CLOSEST, examples // LEAST_AN_EPOCH), whole)
    first = derive_seed(config.seed, "noise", epoch) % interval
    return frozenset(place // size for place in range(first, whole, interval))


def window_parts(window: Tensor) -> Sequence[Tensor]:
    """Two equal parts of a window, (n,), that share no example; empty if the window has only one example.

    Windows are in random order before they are sorted by length, so their first examples are a random part.
    """
    size = min(len(window) // PARTS, LARGEST_PART)
    return window[: PARTS * size].split(size) if size else ()


def squared_norm(model: nn.Module) -> Tensor:
    """‖.grad‖² over all parameters, () on the device."""
    return get_total_norm([p.grad for p in model.parameters() if p.grad is not None]) ** 2


def noise_sample(
    whole: Tensor, window: int, parts: Sequence[Tensor], part: int, population: int
) -> NoiseSample:
    """The estimates from the squared norms of a window's gradient and of its parts' gradients, () each.

    ``window``, ``part`` and ``population`` are numbers of examples: of the window, of a part and of the
    training split. Windows are drawn without replacement, which makes ‖G‖² too low by tr(Σ)/population;
    that is added.
    """
    mean = torch.stack(list(parts)).mean()
    variance = (mean - whole) / (1 / part - 1 / window)
    norm_squared = (window * whole - part * mean) / (window - part)
    return NoiseSample(variance, norm_squared + variance / population)


def noise_metrics(samples: Sequence[NoiseSample]) -> dict[str, float]:
    """Means over the measured windows: the two terms v and g, their ratio, and what its error needs.

    ``gradient_variance`` (v) and ``gradient_norm_squared`` (g) are averaged before they are divided,
    because the mean of the ratios is biased. ``noise_scale`` = v/g, in examples, is absent unless g > 0.
    ``noise_windows`` is the number of measured windows; ``noise_moment_vv``, ``noise_moment_vg`` and
    ``noise_moment_gg`` are the means of v², v·g and g². Empty if nothing was measured.
    """
    if not samples:
        return {}
    terms = torch.stack([torch.stack(sample) for sample in samples]).double().cpu()  # (windows, 2)
    variance, norm_squared = terms.mean(dim=0).tolist()
    (vv, vg), (_, gg) = (terms.T @ terms / len(terms)).tolist()
    return {
        "gradient_variance": variance,
        "gradient_norm_squared": norm_squared,
        **({"noise_scale": variance / norm_squared} if norm_squared > 0 else {}),
        "noise_windows": len(samples),
        "noise_moment_vv": vv,
        "noise_moment_vg": vg,
        "noise_moment_gg": gg,
    }
