"""TrialConfig: everything that determines one trial, resolved, validated and immutable."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    model_validator,
)

from errors import UserError
from search_spaces.fields import LARGEST, Count, Encoding, Text, Validated, one_of, showable
from search_spaces.update import OPTIMIZERS, SCALING_RULES, SCHEDULERS, Update

ENGINES = ("torch", "accelerate")
PRECISIONS = ("fp32", "bf16")
EXACT, FOLDED, KEEP = DUPLICATES = ("exact", "folded", "keep")  # which texts count as one, if any
# pool the splits of a data set and cut new ones, or use its own
POOLED, OWN = SPLITTINGS = ("pooled", "own")

# The hash identifies what is learned. Fields that say where the data lie are not in it: the data's digest
# is. Nor are fields that say how a trial is computed.
DATA = frozenset(
    "dataset text_column label_column group_column encoding duplicates splits train_size eval_size".split()
)
LEARN_NOTHING = DATA | {"physical_batch_size", "noise_every"}
# in the hash, the learning rate replaces the three fields that it derives from, and a folder's digest
# replaces the model
_NOT_IN_HASH = LEARN_NOTHING | {"scaling_rule", "base_lr", "reference_batch_size", "model_digest"}
# Other fields enter the hash only if they differ from their default, so that a new field does not make
# finished trials be trained again.
_ALWAYS_IN_HASH = frozenset(
    "model target_batch_size epochs seed optimizer weight_decay scheduler warmup_ratio head_dropout engine "
    "precision max_length split_seed dataset_digest".split()
)
_NOISE_UNIT = 256  # examples


class Position(NamedTuple):
    """Where in training an evaluation is."""

    evaluation: int  # counted from 1
    step: int  # optimizer steps taken
    examples: int  # training examples seen
    epoch: int | float  # passes over the training examples: an int if the last one is complete


class TrialConfig(Validated):
    """One fully resolved configuration, trained once. Sizes are in examples, lengths in tokens.

    Raises UserError, one line, for anything that is not valid.
    """

    model_config = ConfigDict(title="configuration")

    model: Text
    target_batch_size: Count
    scaling_rule: Annotated[str, one_of("scaling rule", SCALING_RULES)]

    base_lr: Annotated[float, Field(gt=0)] = 5e-5
    reference_batch_size: Count = 64
    physical_batch_size: Count = 64
    epochs: Count = 5
    steps: Count | None = None  # optimizer steps, set by the plan; None: those of the epochs
    evaluations: Count | None = None  # None: as many as epochs; after each, if epochs are the budget
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    optimizer: Annotated[str, one_of("optimizer", OPTIMIZERS)] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    scheduler: Annotated[str, one_of("scheduler", SCHEDULERS)] = "constant"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    engine: Annotated[str, one_of("engine", ENGINES)] = "torch"
    precision: Annotated[str, one_of("precision", PRECISIONS)] = "fp32"
    # measure the gradient noise once in every n × 256 training examples; 0: never
    noise_every: Annotated[int, Field(ge=0, le=LARGEST)] = 16

    dataset: Text = "stanfordnlp/imdb"
    text_column: Text = "text"
    label_column: Text = "label"
    group_column: Text | None = None  # no two splits share a value of it: a patient, a film
    # at least two special tokens and one of text
    max_length: Annotated[int, Field(ge=3, le=LARGEST)] = 128
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    encoding: Encoding = "utf-8"  # of CSV and JSON files
    duplicates: Annotated[str, one_of("way with duplicates", DUPLICATES)] = EXACT
    splits: Annotated[str, one_of("kind of splits", SPLITTINGS)] = POOLED
    train_size: Count | None = None
    eval_size: Count | None = None
    dataset_digest: Annotated[str, AfterValidator(showable)] = ""
    # of a model in a local folder, which may be moved; set by the plan
    model_digest: Annotated[str, AfterValidator(showable)] = ""

    def __init__(self, **values: Any) -> None:
        if values.get("evaluations") == values.get("epochs", type(self).model_fields["epochs"].default):
            values["evaluations"] = None  # the same meaning gets the same hash
        super().__init__(**values)

    @model_validator(mode="after")
    def _check_together(self) -> "TrialConfig":
        if self.warmup_ratio and self.scheduler == "constant":
            raise UserError("warmup_ratio does nothing under scheduler constant: set constant_with_warmup")
        columns = [self.text_column, self.label_column, *([self.group_column] if self.group_column else [])]
        if len(set(columns)) < len(columns):
            raise UserError(f"text, label and group need a column each, not {', '.join(columns)}")
        if not 0 < self.learning_rate < math.inf:
            direction = "larger" if self.learning_rate == 0 else "smaller"
            raise UserError(
                f"base_lr {self.base_lr} is scaled to {self.learning_rate}: make it {direction}"
            )
        if not self.update.is_possible:
            raise UserError(
                f"scaling rule {self.scaling_rule} gives {self.update} at target batch size "
                f"{self.target_batch_size}, which no optimizer takes: leave that size out"
            )
        return self

    @property
    def learning_rate(self) -> float:
        return self.update.learning_rate

    @property
    def update(self) -> Update:
        """The optimizer's settings: the scaling rule applied to those at the reference batch size."""
        base = OPTIMIZERS[self.optimizer].update(self.base_lr, self.weight_decay)
        ratio = self.target_batch_size / self.reference_batch_size
        return SCALING_RULES[self.scaling_rule](base, ratio)

    @property
    def accumulation_steps(self) -> int:
        return -(-self.target_batch_size // self.physical_batch_size)

    def steps_per_epoch(self, train_examples: int) -> int:
        """Optimizer steps in one pass over ``train_examples`` examples, including the short last one."""
        return -(-train_examples // self.target_batch_size)

    def total_steps(self, train_examples: int) -> int:
        """The budget in optimizer steps."""
        return self.steps or self.epochs * self.steps_per_epoch(train_examples)

    def warmup_steps(self, train_examples: int) -> int:
        """How many optimizer steps at the beginning of the budget are warm-up."""
        return round(self.warmup_ratio * self.total_steps(train_examples))

    @property
    def evaluation_count(self) -> int:
        """How often the trial is evaluated, at equal fractions of its budget."""
        return self.evaluations or self.epochs

    def evaluation_step(self, evaluation: int, train_examples: int) -> int:
        """The optimizer steps taken before an evaluation, counted from 1; 0 for evaluation 0.

        k/K of all steps, rounded to the nearest whole number, halves upwards: k whole epochs if epochs are
        the budget and there are K of them.
        """
        steps, count = self.total_steps(train_examples), self.evaluation_count
        return (2 * evaluation * steps + count) // (2 * count)

    def examples_seen(self, step: int, train_examples: int) -> int:
        """Training examples in the first ``step`` windows; the last window of an epoch may be short."""
        epochs, windows = divmod(step, self.steps_per_epoch(train_examples))
        return epochs * train_examples + windows * self.target_batch_size

    def position(self, evaluation: int, train_examples: int) -> "Position":
        """Where in training an evaluation is."""
        step = self.evaluation_step(evaluation, train_examples)
        examples = self.examples_seen(step, train_examples)
        epochs, rest = divmod(examples, train_examples)
        epoch = examples / train_examples if rest else epochs
        return Position(evaluation, step, examples, epoch)

    def last_window(self, train_examples: int) -> int:
        """The examples of the last window of an epoch."""
        return (train_examples - 1) % self.target_batch_size + 1

    def check_evaluations(self, train_examples: int) -> None:
        """Raise UserError if there are more evaluations than steps."""
        steps, batch = self.total_steps(train_examples), self.target_batch_size
        if self.evaluation_count > steps:
            raise UserError(
                f"{self.evaluation_count} evaluations are more than the {steps} steps at target batch "
                f"size {batch}: give --evaluations {steps} or fewer, or more --epochs"
            )

    @property
    def noise_interval(self) -> int:
        """Training examples from one measurement of the gradient noise to the next; 0: never."""
        return self.noise_every * _NOISE_UNIT

    @property
    def model_name(self) -> str:
        return model_name(self.model)

    @property
    def trial_hash(self) -> str:
        """12 hex digits that identify what is learned; equal for configurations that learn the same."""
        facts = {
            name: value
            for name, value in self.to_dict().items()
            if name not in _NOT_IN_HASH
            and (name in _ALWAYS_IN_HASH or value != type(self).model_fields[name].default)
        }
        facts["dropout"] = facts.pop("head_dropout")  # the hash uses this name for the field
        own = vars(OPTIMIZERS[self.optimizer].update(self.base_lr, self.weight_decay))
        always = ("learning_rate", "weight_decay")
        facts |= {k: v for k, v in vars(self.update).items() if k in always or v != own[k]}
        if self.model_digest:
            facts["model"] = f"sha256:{self.model_digest}"
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        return dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialConfig":
        """Build from a value for every field; UserError for an unknown or a missing key."""
        config = cls(**{str(name): value for name, value in values.items()})
        missing = [name for name in FIELDS if name not in values]
        if missing:
            raise UserError(f"configuration lacks {', '.join(missing)}")
        return config


def epoch_text(epoch: float) -> str:
    """Epochs for people: ``5``, ``79.5``, ``0.25``."""
    if epoch % 1 == 0:
        return f"{epoch:.0f}"
    return f"{epoch:.1f}" if epoch > 1 else f"{epoch:.2g}"


def model_name(model: str) -> str:
    """A model's name for tables and plots: the last meaningful part of an id or a folder."""
    parts = PurePath(model).parts
    if len(parts) > 1 and parts[-1] in {"model", "encoder", "checkpoint"}:
        return "/".join(parts[-2:])
    return parts[-1] if parts else model


FIELDS: tuple[str, ...] = tuple(TrialConfig.model_fields)
