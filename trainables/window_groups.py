"""Every n-th window of an epoch is cut into groups before it is sorted by length, and summed up by group.

Nothing is learned from the groups any more. The gradient noise was measured between them once, and which
example meets which dropout mask, and in which order gradients are added, decides every digit of a study:
what was trained then is trained to the same numbers now.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def grouped_cut(examples: int, physical_batch_size: int) -> tuple[int, int]:
    """How to cut a window into equal groups of whole micro-batches: their number, the micro-batches' size.

    A window that would be one micro-batch, or ragged ones, is cut as at a physical batch size of 64. One
    group where that is impossible too.
    """
    for size in (physical_batch_size, min(physical_batch_size, 64)):
        micro_batches, rest = divmod(examples, size)
        if micro_batches > 1 and not rest:
            # equal groups, and few of them: the larger a group, the less padding its micro-batches need
            return next(n for n in range(2, micro_batches + 1) if micro_batches % n == 0), size
    return 1, physical_batch_size


class GradientGroups:
    """Sums up the gradient of one window group by group.

    Call ``after_backward`` after every micro-batch; after the last one ``.grad`` holds the gradient of the
    whole window. Several groups cost a second set of gradients in memory while the window lasts.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], groups: int, micro_batches: int) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._groups = groups
        self._micro_batches = micro_batches
        self._seen = 0
        self._collected: list[Tensor] = []

    def after_backward(self) -> None:
        """Take note of a micro-batch whose loss, over the window's examples, has been differentiated."""
        self._seen += 1
        if self._groups == 1 or self._seen % (self._micro_batches // self._groups):
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        if self._collected:
            torch._foreach_add_(self._collected, gradients)
        else:
            self._collected = gradients
        is_last = self._seen == self._micro_batches
        for parameter, whole in zip(self._parameters, self._collected, strict=True):
            parameter.grad = whole if is_last else None
