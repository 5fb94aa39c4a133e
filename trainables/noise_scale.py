"""The simple gradient noise scale tr(Σ)/‖G‖² of McCandlish et al. 2018 (arXiv:1812.06162, appendix A).

G is the true gradient and Σ the covariance of a single example's gradient: where the target batch size
is far below their ratio a larger batch averages noise away, far above it the larger batch is wasted.
A window's gradient is a sum over micro-batches anyway, so it is collected here in two or a few groups
whose disagreement gives unbiased estimates of both terms. The groups are random parts of the window;
only within a group are examples sorted by length, because micro-batches of short and of long texts are
not samples of the same thing.

Assumptions: examples are independent draws; the noise of dropout counts as gradient noise; the plain
gradient is measured, not Adam's preconditioned step. A diagnostic, not a law.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

LARGEST_NEEDED = 64  # physical batch size at which windows are measured where a larger one cannot


class NoiseSample(NamedTuple):
    """Unbiased estimates from one window, () each, on the device."""

    variance: Tensor  # tr(Σ)
    norm_squared: Tensor  # ‖G‖², which may come out negative


def measured_cut(examples: int, physical_batch_size: int) -> tuple[int, int]:
    """How to measure a window: its number of groups, and the examples of a micro-batch.

    What memory has room for must not decide what is measured: a window that would be one micro-batch, or
    ragged ones, is cut as at a physical batch size of 64. One group where that is impossible too.
    """
    for size in (physical_batch_size, min(physical_batch_size, LARGEST_NEEDED)):
        micro_batches, rest = divmod(examples, size)
        if micro_batches > 1 and not rest:
            # equal groups, and few of them: the larger a group, the less padding its micro-batches need
            return next(n for n in range(2, micro_batches + 1) if micro_batches % n == 0), size
    return 1, physical_batch_size


class GradientGroups:
    """Collects the gradient of one window group by group.

    Call ``after_backward`` after every micro-batch; after the last one ``.grad`` holds the gradient of
    the whole window, as if nothing had happened, and ``sample`` is set. Costs a second set of gradients
    in memory while the window lasts. With one group there is nothing to compare: ``sample`` stays None.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], groups: int, micro_batches: int, examples: int
    ) -> None:
        self.sample: NoiseSample | None = None
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._groups = groups
        self._group_steps = micro_batches // groups
        self._examples = examples
        self._seen = 0
        self._collected: list[Tensor] = []
        self._norms_squared: list[Tensor] = []

    def after_backward(self) -> None:
        """Take note of a micro-batch whose loss, over the window's examples, has been differentiated."""
        self._seen += 1
        if self._groups == 1 or self._seen % self._group_steps:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        self._norms_squared.append(get_total_norm(gradients) ** 2)
        if self._collected:
            torch._foreach_add_(self._collected, gradients)
        else:
            self._collected = gradients
        is_last = len(self._norms_squared) == self._groups
        for parameter, whole in zip(self._parameters, self._collected, strict=True):
            parameter.grad = whole if is_last else None
        if is_last:
            n = self._groups
            # a group's loss was divided by the examples of the whole window
            group = torch.stack(self._norms_squared).mean() * n**2
            whole = get_total_norm(self._collected) ** 2
            self.sample = NoiseSample(
                variance=(group - whole) * self._examples / (n - 1),
                norm_squared=(n * whole - group) / (n - 1),
            )


def noise_metrics(samples: Sequence[NoiseSample]) -> dict[str, float]:
    """``gradient_variance``, ``gradient_norm_squared`` and their ratio ``noise_scale``, in examples.

    Both terms are averaged before they are divided: the mean of the ratios is biased. Nothing where
    nothing was measured, and no ratio where ‖G‖² drowns in the noise.
    """
    if not samples:
        return {}
    variance = float(torch.stack([sample.variance for sample in samples]).mean())
    norm_squared = float(torch.stack([sample.norm_squared for sample in samples]).mean())
    metrics = {"gradient_variance": variance, "gradient_norm_squared": norm_squared}
    return metrics | ({"noise_scale": variance / norm_squared} if norm_squared > 0 else {})
