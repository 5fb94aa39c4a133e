"""Scaling rules: the learning rate as a function of the target batch size.

Every rule returns the factor by which the base learning rate is multiplied, as a function of
``ratio = target batch size / reference batch size``. At the reference batch size every factor is 1.

Sources: ``linear`` is Goyal et al. 2017 (arXiv:1706.02677), derived for SGD; ``sqrt`` is
Krizhevsky 2014 (arXiv:1404.5997), and Malladi et al. 2022 (arXiv:2205.10287) for Adam, who also
rescale Adam's betas and epsilon, which is not done here.
"""

import math
from collections.abc import Callable

from errors import unknown

SCALING_RULES: dict[str, Callable[[float], float]] = {
    "fixed": lambda ratio: 1.0,
    "sqrt": math.sqrt,
    "linear": lambda ratio: ratio,
}


def scaled_learning_rate(
    scaling_rule: str, base_lr: float, target_batch_size: int, reference_batch_size: int
) -> float:
    """The learning rate of ``scaling_rule`` at ``target_batch_size`` (both sizes in examples)."""
    if scaling_rule not in SCALING_RULES:
        raise unknown("scaling rule", scaling_rule, SCALING_RULES)
    return base_lr * SCALING_RULES[scaling_rule](target_batch_size / reference_batch_size)
