"""Exact sums over a split -> loss, accuracy, predictions."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from trainables.memory import shrink_to_fit
from trainables.windows import TokenTensors

EVAL_BATCH_SIZE = 128


@dataclass(frozen=True)
class Evaluation:
    """How a model does on a split; arrays are in the split's own order."""

    loss: float  # mean cross entropy in nats
    accuracy: float
    predictions: np.ndarray  # (n,) int64
    probabilities: np.ndarray  # (n, classes) float64


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast to bfloat16 for ``bf16``; nothing for ``fp32``."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def evaluate(model: nn.Module, data: TokenTensors, precision: str) -> Evaluation:
    """Evaluate every example once, with dropout off; the sums are taken in float64.

    Where memory runs out it starts again with smaller batches, which change rounding alone. Raises
    DoesNotFitError where one example is too much.
    """
    model.eval()
    size = min(EVAL_BATCH_SIZE, len(data))
    return shrink_to_fit(lambda size: _evaluate(model, data, precision, size), size)[0]


@torch.no_grad()
def _evaluate(model: nn.Module, data: TokenTensors, precision: str, batch_size: int) -> Evaluation:
    batches, order = [], torch.argsort(data.lengths, descending=True, stable=True)
    labels = []
    for chunk in order.split(batch_size):
        batch = data.batch(chunk)
        with autocast(data.device, precision):
            batches.append(model(batch.input_ids, batch.attention_mask).double())
        labels.append(batch.labels)
    logits, gold = torch.cat(batches), torch.cat(labels)
    inverse = torch.argsort(order)
    predictions = logits.argmax(dim=1)
    return Evaluation(
        loss=F.cross_entropy(logits, gold).item(),
        accuracy=(predictions == gold).double().mean().item(),
        predictions=predictions.cpu()[inverse].numpy(),
        probabilities=logits.softmax(dim=1).cpu()[inverse].numpy(),
    )
