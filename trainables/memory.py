"""What to do when memory runs out: recognise it, free what can be freed, try again at half the size."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

_Result = TypeVar("_Result")

# What accelerate's list lacks. Under a limit on memory oneDNN says only that it "could not create" this
# or that; an error that merely looks like it ends, at one example, with its own words in the message.
_MORE_WORDS = (
    "CUDA error: out of memory",  # not from PyTorch's allocator
    "CUDA driver error: out of memory",  # with expandable segments
    "NVML_SUCCESS == r",  # instead of it on slices of a GPU and in some containers (pytorch issue 112377)
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # no room for its handle
    "CUDNN_STATUS_ALLOC_FAILED",
    "could not create a primitive",
    "could not create a memory object",
    "std::bad_alloc",
)


class DoesNotFitError(RuntimeError):
    """Memory ran out, and a smaller physical batch size cannot help."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the memory of the GPU or of the machine ran out."""
    if isinstance(error, DoesNotFitError):
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError) or not all(isinstance(a, str) for a in error.args):
        return False
    return should_reduce_batch_size(error) or any(words in str(error) for words in _MORE_WORDS)


def free_memory() -> None:
    """Collect what only cycles keep alive, and give the device's cached memory back."""
    clear_device_cache(garbage_collection=True)


def shrink_to_fit(attempt: Callable[[int], _Result], size: int) -> tuple[_Result, int]:
    """``attempt(size)``, halving the size as often as memory runs out; and the size that it ran at.

    ``attempt`` is called again from its start, so it must leave nothing behind that it does not undo.
    Raises DoesNotFitError where memory runs out at size 1; other errors pass.
    """
    while True:
        try:
            return attempt(size), size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise DoesNotFitError(_no_room_for_one(error)) from error
        # not in the handler: there the error keeps the frames, and they the tensors, of the attempt
        free_memory()
        size //= 2


def _no_room_for_one(error: Exception) -> str:
    words = (str(error) or type(error).__name__).splitlines()[0]
    return (
        "out of memory even with one example at a time: give trials more memory (--gpus-per-trial, "
        f"--max-concurrent), or set a smaller --max-length or model, or --set noise_every=0 ({words:.160})"
    )
