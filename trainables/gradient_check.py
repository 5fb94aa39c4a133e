"""The gradient that an engine hands to the optimizer against the whole window's, in float64."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from transformers import PreTrainedConfig

from trainables.accumulation import ENGINES, Engine
from trainables.batches import Batch, TokenArrays, TokenTensors, derive_seed
from trainables.encoder_checks import check_first_state
from trainables.encoders import EncoderForClassification

TOLERANCE = 1e-10
FULL_WINDOW = 12  # examples; physical batch sizes 7 and 5 leave ragged micro-batches
SHORT_TAIL = 5
PHYSICAL_BATCH_SIZES = (1, 4, 5, 7, 12)
_CPU = torch.device("cpu")

EngineFactory = Callable[[nn.Module, Optimizer, int], Engine]  # the last: micro-batches of a full window


@dataclass(frozen=True)
class GradientError:
    """One comparison: |engine's gradient - whole window's gradient| / |whole window's gradient|."""

    window: str
    physical_batch_size: int
    relative_error: float  # NaN if the engine made no step, as when it drops a tail

    @property
    def is_small(self) -> bool:
        return self.relative_error < TOLERANCE


class GradientRecorder(Optimizer):
    """An optimizer that stores the flattened gradient and changes no weight."""

    gradient: Tensor | None = None

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.gradient = _flat_gradient(self.param_groups[0]["params"])


def check_model(config: PreTrainedConfig, engine: str, device: torch.device = _CPU) -> list[GradientError]:
    """Compare the gradients of an architecture under one engine of ENGINES; dropout is off."""
    build = ENGINES[engine]
    return compare_gradients(config, lambda model, optimizer, _: build(model, optimizer, "fp32"), device)


def compare_gradients(
    config: PreTrainedConfig, build: EngineFactory, device: torch.device = _CPU
) -> list[GradientError]:
    """Run a full window and then a short tail through the engine, at several physical batch sizes.

    Raises UserError for a decoder, because its gradients would tell nothing about encoders.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, "verify"))
        model = EncoderForClassification(config, classes=2, dropout=0.0, seed=0)
    model.to(device, torch.float64).eval()
    data = _random_texts(config.vocab_size, device)
    name = config.name_or_path or config.model_type
    with torch.no_grad():
        check_first_state(name, model.features, [5, 6, 7], [5, 6, 5], device)
    windows = {
        f"full, {FULL_WINDOW} examples": torch.arange(FULL_WINDOW),
        f"short tail, {SHORT_TAIL} examples": torch.arange(SHORT_TAIL),
    }
    expected = {label: _whole_gradient(model, data.batch(window)) for label, window in windows.items()}
    errors = []
    for physical in PHYSICAL_BATCH_SIZES:
        recorder = GradientRecorder(model.parameters())
        engine = build(model, recorder, math.ceil(FULL_WINDOW / physical))
        for label, window in windows.items():
            recorder.gradient = None
            engine.accumulate(data.batches(window, physical))
            engine.update()
            error = math.nan
            if recorder.gradient is not None:
                error = float((recorder.gradient - expected[label]).norm() / expected[label].norm())
            errors.append(GradientError(label, physical, error))
    return sorted(errors, key=lambda error: error.window)  # stable: sizes stay in order


def _whole_gradient(model: nn.Module, window: Batch) -> Tensor:
    """By definition: the gradient of the mean loss over the window, in one pass, flattened."""
    model.zero_grad()
    F.cross_entropy(model(window.input_ids, window.attention_mask), window.labels).backward()
    return _flat_gradient(model.parameters())


def _flat_gradient(parameters: Iterable[Tensor]) -> Tensor:
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def _random_texts(vocabulary: int, device: torch.device) -> TokenTensors:
    """Random tokens of ragged lengths, so that micro-batches are padded differently."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 13, FULL_WINDOW)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(5, vocabulary, offsets[-1]).astype(np.int32)
    labels = rng.integers(0, 2, FULL_WINDOW)
    arrays = TokenArrays(tokens, offsets, labels, np.arange(FULL_WINDOW))
    return TokenTensors(arrays, pad_token=0, device=device)
