"""What turns a gradient into a step: optimizers, scaling rules, and how the learning rate moves.

A cell's ``Update`` holds the settings of its optimizer. A scaling rule computes it from the base update,
which holds at the reference batch size, and κ = target batch size / reference batch size. At κ = 1 no rule
changes anything. Each setting that a rule changes enters the trial's hash, the optimizer, plan and report.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Update:
    """The settings of an optimizer; None: the optimizer has no such setting."""

    learning_rate: float
    weight_decay: float = 0.0
    beta1: float | None = None  # decay per step of the average of gradients
    beta2: float | None = None  # decay per step of the average of squared gradients
    epsilon: float | None = None

    def arguments(self) -> dict[str, Any]:
        """The settings as keyword arguments of PyTorch's optimizers."""
        found: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.beta1 is not None and self.beta2 is not None:
            found["betas"] = (self.beta1, self.beta2)
        return found if self.epsilon is None else found | {"eps": self.epsilon}

    @property
    def is_possible(self) -> bool:
        """Whether an optimizer can be built with these settings."""
        decays = [beta for beta in (self.beta1, self.beta2) if beta is not None]
        return (
            0 < self.learning_rate < math.inf
            and 0 <= self.weight_decay < math.inf
            and all(0 <= beta < 1 for beta in decays)
            and (self.epsilon is None or 0 <= self.epsilon < math.inf)
        )


# -- scaling rules: (update at the reference batch size, κ) -> update ------------------------------------

Rule = Callable[[Update, float], Update]


def fixed(base: Update, ratio: float) -> Update:
    """The learning rate stays as it is."""
    return base


def sqrt(base: Update, ratio: float) -> Update:
    """Learning rate × √κ: Krizhevsky 2014 (arXiv:1404.5997).

    Malladi et al. 2022 (arXiv:2205.10287) derive it for Adam while gradient noise dominates. They also move
    Adam's β₁, β₂ and ε; this rule does not.
    """
    return replace(base, learning_rate=base.learning_rate * math.sqrt(ratio))


def linear(base: Update, ratio: float) -> Update:
    """Learning rate × κ: Goyal et al. 2017 (arXiv:1706.02677).

    Derived for SGD: κ small steps go as far as one large one while the gradient hardly changes.
    """
    return replace(base, learning_rate=base.learning_rate * ratio)


SCALING_RULES: dict[str, Rule] = {"fixed": fixed, "sqrt": sqrt, "linear": linear}

# -- optimizers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Optimizer:
    """A class of ``torch.optim`` by name, its default settings, and ``options`` that change no result."""

    torch_name: str
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def update(self, learning_rate: float, weight_decay: float) -> Update:
        return Update(learning_rate, weight_decay, self.beta1, self.beta2, self.epsilon)


_FUSED = {"fused": True}  # one kernel for all parameters, on the CPU as well
OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer("Adam", 0.9, 0.999, 1e-8, _FUSED),
    "adamw": Optimizer("AdamW", 0.9, 0.999, 1e-8, _FUSED),
}


def half_life(decay: float) -> float:
    """The steps after which a gradient's weight in a running average of decay β is half: ln 2 / −ln β."""
    return math.log(2) / -math.log(decay) if decay else 0.0


# -- schedules: the factor of the learning rate after warm-up, from steps done and steps in all -----------

SCHEDULERS: dict[str, Callable[[int, int], float]] = {
    "constant": lambda done, steps: 1.0,
    "constant_with_warmup": lambda done, steps: 1.0,
    "linear": lambda done, steps: (steps - done) / steps,
    "cosine": lambda done, steps: 0.5 * (1 + math.cos(math.pi * (done / steps))),
}


def learning_rate_factor(scheduler: str, step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor of the learning rate in a step, counted from 0.

    Warm-up rises linearly and reaches 1 in its last step, so that no step is wasted at 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULERS[scheduler](step - warmup_steps, max(1, total_steps - warmup_steps))
