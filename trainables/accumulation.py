"""A window -> one optimizer step, in passes that fit into memory.

The only place that calls ``backward`` and ``optimizer.step``.

The gradient of a window is the gradient of the mean loss over all its examples. So the examples are
counted first, and each micro-batch contributes its *summed* loss divided by that count: any physical
batch size, ragged micro-batches and the short last window of an epoch then give the same gradient, to
rounding. Averaging the micro-batches' means instead, or dividing a short window by the number of
micro-batches of a full one, does not.

Accumulating leaves the weights as they are, so a window whose forward or backward pass ran out of memory
can be accumulated again from its start. An update cannot be repeated, so it is a call of its own.
"""

import gc
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from errors import first_line
from trainables.batches import Batch

# The words of PyTorch and the libraries below it when memory runs out. If another error contains them, the
# message shows its own words once not even one example fits.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "NVML_SUCCESS == r",  # on slices of a GPU and in some containers (pytorch issue 112377)
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # no room for its handle
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "could not create a primitive",  # oneDNN under a limit on memory
    "could not create a memory object",
    "std::bad_alloc",
)


class StepResult(NamedTuple):
    """The results of a window, as tensors on the device: reading them waits for the GPU, so do it late."""

    loss_sum: Tensor  # () cross entropy summed over the window
    correct: Tensor  # () examples classified correctly
    examples: int


class TorchEngine:
    """The accumulation loop in plain PyTorch. A step is ``accumulate`` and then ``update``, once each."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, precision: str) -> None:
        self.model = model
        self.optimizer = optimizer
        self.precision = precision

    def accumulate(self, micro_batches: Sequence[Batch]) -> StepResult:
        """Leave in ``.grad`` the gradient of the mean loss over all examples of ``micro_batches``.

        Drops earlier gradients, even those of a call that was cut short, and does not change the weights.
        """
        examples = sum(map(len, micro_batches))
        losses, hits = [], []
        self.optimizer.zero_grad()
        for batch in micro_batches:
            with autocast(batch.labels.device, self.precision):
                logits = self.model(batch.input_ids, batch.attention_mask)
            loss_sum, correct = summed_loss(logits, batch)
            (loss_sum / examples).backward()
            losses.append(loss_sum.detach())
            hits.append(correct)
        return StepResult(torch.stack(losses).sum(), torch.stack(hits).sum(), examples)

    def update(self) -> None:
        self.optimizer.step()


class AccelerateEngine:
    """The same window through Hugging Face Accelerate's ``accumulate`` and ``backward``."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, precision: str) -> None:
        from accelerate import Accelerator  # here, because a served model does not have it
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # one process runs many trials
        self.accelerator = Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            cpu=next(model.parameters()).device.type == "cpu",
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def accumulate(self, micro_batches: Sequence[Batch]) -> StepResult:
        """Do what ``TorchEngine.accumulate`` does.

        Accelerate divides by its number of accumulation steps. A short last window has fewer micro-batches,
        so every call sets that number, and undoes the division: otherwise a window of 17 of 32
        micro-batches would keep 17/32 of its gradient. The model zeroes the gradients, because the prepared
        optimizer would not do so after a window that was cut short.
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
            losses.append(loss_sum.detach())
            hits.append(correct)
        return StepResult(torch.stack(losses).sum(), torch.stack(hits).sum(), examples)

    def update(self) -> None:
        self.optimizer.step()  # Accelerate skips it unless the window is complete, as it is here


Engine = TorchEngine | AccelerateEngine
ENGINES: dict[str, Callable[[nn.Module, Optimizer, str], Engine]] = {
    "torch": TorchEngine,
    "accelerate": AccelerateEngine,
}


def summed_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross entropy summed over the batch, and the number of correct predictions, () each."""
    loss_sum = F.cross_entropy(logits, batch.labels, reduction="sum")
    return loss_sum, (logits.detach().argmax(dim=1) == batch.labels).sum()


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast to bfloat16 for ``bf16``; nothing for ``fp32``."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


class DoesNotFitError(RuntimeError):
    """Memory ran out, and a smaller physical batch size cannot help."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the memory of the GPU or of the machine ran out."""
    if isinstance(error, DoesNotFitError):
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def free_memory() -> None:
    """Collect reference cycles, and release PyTorch's cached GPU memory."""
    gc.collect()
    torch.cuda.empty_cache()


def half_after(error: Exception, size: int) -> int:
    """Half of ``size``, for another attempt after one that ended with ``error``; frees its memory.

    Raises ``error`` itself unless memory ran out, and DoesNotFitError if ``size`` is 1.
    """
    if not is_out_of_memory(error):
        raise error
    if size == 1:
        words = first_line(error)[:160]
        raise DoesNotFitError(
            "out of memory even with one example at a time: give trials more memory (--gpus-per-trial, "
            f"--max-concurrent), or set a smaller --max-length or model, or --set noise_every=0 ({words})"
        ) from error
    traceback.clear_frames(error.__traceback__)  # the frames hold the tensors of the attempt
    free_memory()
    return size // 2
