"""TrialConfig: everything that determines one trial, resolved, validated and immutable."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from search_spaces.errors import UserError, unknown
from search_spaces.lr_scaling import SCALING_RULES, scaled_learning_rate

ENGINES = ("torch", "accelerate")
PRECISIONS = ("fp32", "bf16")
OPTIMIZERS = ("adam", "adamw")
SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine")
LARGEST = 2**63 - 1  # what PyTorch, Arrow and SQLite can count to

# Fields that change how a trial is computed or spelled, but not what is learned. The learning rate
# stands in for the three fields it derives from, the digest of the data for the place it came from.
_NOT_IN_HASH = frozenset(
    "physical_batch_size noise_every scaling_rule base_lr reference_batch_size "
    "dataset text_column label_column keep_duplicates train_size eval_size".split()
)


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One fully resolved configuration, trained once. Sizes are in examples, lengths in tokens."""

    model: str
    target_batch_size: int
    scaling_rule: str

    base_lr: float = 5e-5
    reference_batch_size: int = 64
    physical_batch_size: int = 64
    epochs: int = 5
    seed: int = 42
    optimizer: str = "adam"
    weight_decay: float = 0.0
    scheduler: str = "constant"
    warmup_ratio: float = 0.0
    dropout: float = 0.1
    engine: str = "torch"
    precision: str = "fp32"
    noise_every: int = 16  # measure the gradient noise in every nth window of an epoch; 0: never

    dataset: str = "stanfordnlp/imdb"
    text_column: str = "text"
    label_column: str = "label"
    max_length: int = 128
    split_seed: int = 42
    keep_duplicates: bool = False
    train_size: int | None = None
    eval_size: int | None = None
    dataset_digest: str = ""

    def __post_init__(self) -> None:
        self._check_types()
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} must be positive, not {value}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown(name.replace("_", " "), getattr(self, name), choices)
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), not {self.dropout}")
        if not 0 <= self.warmup_ratio < 1:
            raise UserError(f"warmup_ratio must be in [0, 1), not {self.warmup_ratio}")
        if self.warmup_ratio and self.scheduler == "constant":
            raise UserError("warmup_ratio does nothing under scheduler constant: set constant_with_warmup")
        if self.weight_decay < 0:
            raise UserError(f"weight_decay must not be negative, not {self.weight_decay}")
        if not 0 < self.learning_rate < math.inf:
            direction = "larger" if self.learning_rate == 0 else "smaller"
            raise UserError(
                f"base_lr {self.base_lr} is scaled to {self.learning_rate}: make it {direction}"
            )
        if self.noise_every < 0:
            raise UserError(f"noise_every must not be negative, not {self.noise_every}: 0 turns it off")
        if self.max_length < 3:
            raise UserError("max_length must be at least 3: two special tokens and one of text")
        if not 0 <= self.seed < 2**63 or not 0 <= self.split_seed < 2**32:
            raise UserError("seed must be in [0, 2^63) and split_seed in [0, 2^32)")

    def _check_types(self) -> None:
        for name, kinds in _FIELD_TYPES.items():
            value = getattr(self, name)
            if type(value) is int and abs(value) > LARGEST:
                raise UserError(f"{name} must be between -2^63 and 2^63")
            if float in kinds and type(value) is int:
                object.__setattr__(self, name, value := float(value))
            if type(value) not in kinds:
                wanted = " or ".join("nothing" if k is type(None) else k.__name__ for k in kinds)
                raise UserError(f"{name} must be {wanted}, not {_shown(value)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name} must be a finite number, not {value}")
            if isinstance(value, str):
                _check_text(name, value)

    @property
    def learning_rate(self) -> float:
        """The learning rate that the scaling rule gives at this target batch size."""
        return scaled_learning_rate(
            self.scaling_rule, self.base_lr, self.target_batch_size, self.reference_batch_size
        )

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of a full window: ceil(target / physical)."""
        return -(-self.target_batch_size // self.physical_batch_size)

    def steps_per_epoch(self, train_examples: int) -> int:
        """Optimizer steps in one pass over ``train_examples`` examples, the short last one included."""
        return -(-train_examples // self.target_batch_size)

    def measures_noise(self, window: int) -> bool:
        """Whether the gradient noise is measured in this window of an epoch, counted from 0."""
        return self.noise_every > 0 and window % self.noise_every == 0

    @property
    def model_name(self) -> str:
        """The model's name for tables and plots: the last meaningful part of an id or a folder."""
        parts = PurePath(self.model).parts
        if len(parts) > 1 and parts[-1] in {"model", "encoder", "checkpoint"}:
            return "/".join(parts[-2:])
        return parts[-1] if parts else self.model

    @property
    def trial_hash(self) -> str:
        """12 hex digits that identify what is learned, whatever the configuration was called."""
        facts = {k: v for k, v in self.to_dict().items() if k not in _NOT_IN_HASH}
        facts["learning_rate"] = self.learning_rate
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dict; ``from_dict`` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrialConfig":
        """Build from exactly the fields: an unknown or a missing key is a UserError."""
        for key in values:
            if key not in FIELDS:
                raise unknown("configuration key", key, FIELDS)
        missing = [name for name in FIELDS if name not in values]
        if missing:
            raise UserError(f"configuration lacks {', '.join(missing)}")
        return cls(**values)


def _check_text(name: str, value: str) -> None:
    if not value and name != "dataset_digest":
        raise UserError(f"{name} must not be empty")
    # no file can be called so, and no tracking store can keep it
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise UserError(f"{name} holds a character that is not text: {value!r}")


def _shown(value: Any) -> str:
    """A value as messages show it; of what is neither number nor text, its type."""
    return repr(value) if isinstance(value, (int, float, str, type(None))) else type(value).__name__


def _kinds(annotation: Any) -> tuple[type, ...]:
    is_union = isinstance(annotation, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


FIELDS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(TrialConfig))
_FIELD_TYPES = {f.name: _kinds(f.type) for f in dataclasses.fields(TrialConfig)}
_CHOICES: dict[str, tuple[str, ...]] = {
    "engine": ENGINES,
    "precision": PRECISIONS,
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
    "scaling_rule": tuple(SCALING_RULES),
}
_POSITIVE = (
    "target_batch_size physical_batch_size reference_batch_size base_lr epochs train_size eval_size"
).split()


def parse_setting(text: str) -> tuple[str, Any]:
    """``"dropout=0.2"`` -> ``("dropout", 0.2)``, typed as the TrialConfig field of that name."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"'{text}' is not of the form key=value")
    if name not in FIELDS:
        raise unknown("configuration key", name, FIELDS)
    return name, _parse(name, value)


def _parse(name: str, value: str) -> Any:
    kinds = _FIELD_TYPES[name]
    if type(None) in kinds and value.lower() in {"", "none", "all"}:
        return None
    if bool in kinds:
        if value.lower() not in {"true", "false"}:
            raise UserError(f"{name} must be true or false, not '{value}'")
        return value.lower() == "true"
    try:
        return kinds[0](value)
    except ValueError:
        raise UserError(f"{name} must be {kinds[0].__name__}, not '{value}'") from None
