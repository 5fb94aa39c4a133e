"""A model's config without what would fetch and run code: attention kernels, classes and quantisers."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from errors import UserError

# PyTorch's own kernels; others are packages, or kernels on the hub, which would be fetched and run
_ATTENTION = {None, "eager", "sdpa", "flex_attention"}
_EXPERTS = {None, "eager", "batched_mm", "grouped_mm"}


def without_foreign_code(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config, changed to name no kernels but PyTorch's and no code of the model's own.

    Raises UserError if the model's weights are quantised.
    """
    for part in _parts(config):
        if getattr(part, "quantization_config", None) is not None:
            raise UserError(
                "the model's config.json has a quantization_config, and quantised weights are not trained: "
                "give the weights as they were before"
            )
        part.__dict__.pop("auto_map", None)
        _keep(part, "_attn_implementation_internal", _ATTENTION)
        _keep(part, "_experts_implementation_internal", _EXPERTS)
    return config


def _keep(config: PreTrainedConfig, name: str, known: set[str | None]) -> None:
    value: Any = getattr(config, name, None)
    if not isinstance(value, str | None) or value not in known:
        setattr(config, name, None)


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and all configs inside it, such as that of a text encoder."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)
