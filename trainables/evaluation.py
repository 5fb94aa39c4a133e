"""A model and a split -> metrics, predictions and probabilities. A new metric is a line of METRICS."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.accumulation import autocast, half_after
from trainables.batches import TokenTensors

EVAL_BATCH_SIZE = 128


@dataclass(frozen=True)
class Metric:
    """A number that says how well a model does on a split.

    ``compute`` gets logits, (n, classes) float64, and labels, (n,) int64, of the whole split.
    """

    label: str  # for the axis of a plot
    compute: Callable[[Tensor, Tensor], float]


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(dim=1) == labels).double().mean().item()


# name -> metric; evaluations report val_<name> and train_eval_<name> (on a part of the training split),
# tests report test_<name> and last_test_<name>
METRICS: dict[str, Metric] = {
    "loss": Metric("cross entropy (nats)", lambda logits, labels: F.cross_entropy(logits, labels).item()),
    "acc": Metric("accuracy", _accuracy),
}


@dataclass(frozen=True)
class Evaluation:
    """A model's results on a split, or on a part of it; arrays are in the split's own order."""

    metrics: dict[str, float]  # a value for each name in METRICS
    predictions: np.ndarray  # (n,) int64
    correct: np.ndarray  # (n,) bool
    probabilities: np.ndarray  # (n, classes) float64


def evaluate(
    model: nn.Module, data: TokenTensors, precision: str, examples: Tensor | None = None
) -> Evaluation:
    """Evaluate every example once, with dropout off; metrics are computed in float64.

    ``examples``: indices of the examples to evaluate, (n,) int64 on the CPU; None: all. If memory runs out,
    evaluation starts again with smaller batches, which change only rounding. Raises DoesNotFitError if one
    example does not fit.
    """
    model.eval()
    order = data.longest_first(torch.arange(len(data)) if examples is None else examples)
    size = min(EVAL_BATCH_SIZE, len(order))
    while True:
        try:
            logits, labels = _logits(model, data, order.split(size), precision)
            break
        except Exception as error:
            size = half_after(error, size)
    inverse, predictions = torch.argsort(order), logits.argmax(dim=1)
    return Evaluation(
        metrics={name: metric.compute(logits, labels) for name, metric in METRICS.items()},
        predictions=predictions.cpu()[inverse].numpy(),
        correct=(predictions == labels).cpu()[inverse].numpy(),
        probabilities=logits.softmax(dim=1).cpu()[inverse].numpy(),
    )


@torch.no_grad()
def _logits(
    model: nn.Module, data: TokenTensors, chunks: tuple[Tensor, ...], precision: str
) -> tuple[Tensor, Tensor]:
    """Logits, (n, classes) float64, and labels, (n,), of the examples in ``chunks`` in their order."""
    logits, labels = [], []
    for chunk in chunks:
        batch = data.batch(chunk)
        with autocast(data.device, precision):
            logits.append(model(batch.input_ids, batch.attention_mask).double())
        labels.append(batch.labels)
    return torch.cat(logits), torch.cat(labels)
