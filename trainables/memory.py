"""What to do when memory runs out: recognise it, free what can be freed, go on at half the size."""

import gc
import traceback

import torch

from errors import first_line

# What PyTorch and the libraries below it say, each in its own words. An error that merely looks like
# these ends, at one example, with its own words in the message.
_WORDS = (
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


class DoesNotFitError(RuntimeError):
    """Memory ran out, and a smaller physical batch size cannot help."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the memory of the GPU or of the machine ran out."""
    if isinstance(error, DoesNotFitError):
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def free_memory() -> None:
    """Collect what only cycles keep alive, and give the GPU's cached memory back."""
    gc.collect()
    torch.cuda.empty_cache()


def half_after(error: Exception, size: int) -> int:
    """Half of ``size``, for another attempt after one that ended with ``error``; frees what it held.

    Raises ``error`` itself unless memory ran out, and DoesNotFitError where ``size`` is 1.
    """
    if not is_out_of_memory(error):
        raise error
    if size == 1:
        words = first_line(error)[:160]
        raise DoesNotFitError(
            "out of memory even with one example at a time: give trials more memory (--gpus-per-trial, "
            f"--max-concurrent), or set a smaller --max-length or model, or --set noise_every=0 ({words})"
        ) from error
    traceback.clear_frames(error.__traceback__)  # they hold the tensors of the attempt
    free_memory()
    return size // 2
