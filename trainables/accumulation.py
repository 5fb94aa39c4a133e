"""A window -> one optimizer step. The only place that calls ``backward`` and ``optimizer.step``.

The gradient of a window is the gradient of the mean loss over all its examples. So the examples are
counted first, and each micro-batch contributes its *summed* loss divided by that count: any physical
batch size, ragged micro-batches and the short last window of an epoch then give the same gradient, to
rounding. Averaging the micro-batches' means instead, or dividing a short window by the number of
micro-batches of a full one, does not.

Accumulating leaves the weights as they are, so a window whose forward or backward pass ran out of memory
can be accumulated again from its start. Once its update has begun it cannot: the two are two calls.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from trainables.batches import Batch
from trainables.evaluation import autocast


class StepResult(NamedTuple):
    """What a window saw, as tensors on the device: reading them waits for the GPU, so do it late."""

    loss_sum: Tensor  # () cross entropy summed over the window
    correct: Tensor  # () examples classified correctly
    examples: int


def _nothing() -> None: ...


class TorchEngine:
    """The accumulation loop in plain PyTorch. A step is ``accumulate`` and then ``update``, once each."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, precision: str) -> None:
        self.model = model
        self.optimizer = optimizer
        self.precision = precision

    def accumulate(
        self, micro_batches: Sequence[Batch], after_backward: Callable[[], None] = _nothing
    ) -> StepResult:
        """Leave in ``.grad`` the gradient of the mean loss over all examples of ``micro_batches``.

        ``after_backward`` is called after each of them, when ``.grad`` holds its share. Starts from
        nothing, also where an earlier call was cut short, and does not touch the weights.
        """
        examples = sum(map(len, micro_batches))
        losses, hits = [], []
        self.optimizer.zero_grad()
        for batch in micro_batches:
            with autocast(batch.labels.device, self.precision):
                logits = self.model(batch.input_ids, batch.attention_mask)
            loss_sum, correct = summed_loss(logits, batch)
            (loss_sum / examples).backward()
            after_backward()
            losses.append(loss_sum.detach())
            hits.append(correct)
        return StepResult(torch.stack(losses).sum(), torch.stack(hits).sum(), examples)

    def update(self) -> None:
        self.optimizer.step()


class AccelerateEngine:
    """The same window through Hugging Face Accelerate's ``accumulate`` and ``backward``."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, precision: str) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # one process runs many trials
        self.accelerator = Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            cpu=next(model.parameters()).device.type == "cpu",
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def accumulate(
        self, micro_batches: Sequence[Batch], after_backward: Callable[[], None] = _nothing
    ) -> StepResult:
        """Do what ``TorchEngine.accumulate`` does.

        Accelerate divides by the number of accumulation steps that it was told. A short last window has
        fewer micro-batches, so it is told how many there are, every time, and the division is undone: left
        alone, a window of 17 of 32 micro-batches would keep 17/32 of its gradient. The model drops the
        gradients, because after a window that was cut short the prepared optimizer would refuse to.
        """
        examples, steps = sum(map(len, micro_batches)), len(micro_batches)
        self.accelerator.gradient_accumulation_steps = steps
        self.accelerator.step = 0
        losses, hits = [], []
        self.model.zero_grad()
        for batch in micro_batches:
            with self.accelerator.accumulate(self.model):
                logits = self.model(batch.input_ids, batch.attention_mask)
                loss_sum, correct = summed_loss(logits, batch)
                self.accelerator.backward(loss_sum * steps / examples)
                after_backward()
            losses.append(loss_sum.detach())
            hits.append(correct)
        return StepResult(torch.stack(losses).sum(), torch.stack(hits).sum(), examples)

    def update(self) -> None:
        self.optimizer.step()  # the last micro-batch has told it that the window is whole


Engine = TorchEngine | AccelerateEngine
ENGINES: dict[str, Callable[[nn.Module, Optimizer, str], Engine]] = {
    "torch": TorchEngine,
    "accelerate": AccelerateEngine,
}


def summed_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross entropy summed over the batch, and the number of correct predictions, () each."""
    loss_sum = F.cross_entropy(logits, batch.labels, reduction="sum")
    return loss_sum, (logits.detach().argmax(dim=1) == batch.labels).sum()
