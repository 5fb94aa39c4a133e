"""What turns a gradient into a step: the optimizers, and how the learning rate moves during training."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OptimizerSpec:
    """A class of ``torch.optim`` by name; it gets the learning rate, the weight decay and ``options``.

    ``beta2`` is the decay of its second-moment average per step, None where it keeps none.
    """

    torch_name: str
    beta2: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


# fused: one kernel for all parameters, on the CPU as well
OPTIMIZERS: dict[str, OptimizerSpec] = {
    "adam": OptimizerSpec("Adam", beta2=0.999, options={"fused": True}),
    "adamw": OptimizerSpec("AdamW", beta2=0.999, options={"fused": True}),
}


def half_life(decay: float) -> float:
    """The steps in which a running average with this decay per step forgets half: ln 2 / −ln β."""
    return math.log(2) / -math.log(decay) if decay else 0.0


# the factor of the learning rate after warm-up, from steps done and steps in all
SCHEDULERS: dict[str, Callable[[int, int], float]] = {
    "constant": lambda done, steps: 1.0,
    "constant_with_warmup": lambda done, steps: 1.0,
    "linear": lambda done, steps: (steps - done) / steps,
    "cosine": lambda done, steps: 0.5 * (1 + math.cos(math.pi * (done / steps))),
}


def learning_rate_factor(scheduler: str, step: int, warmup_steps: int, total_steps: int) -> float:
    """What the learning rate is multiplied by in a step, counted from 0.

    Warm-up rises linearly and reaches 1 in its last step, so that no step is wasted at 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULERS[scheduler](step - warmup_steps, max(1, total_steps - warmup_steps))
