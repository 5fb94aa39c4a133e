"""The plan: cells, the unique trials that serve them, and what they will cost."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rich.table import Table
from rich.text import Text

from errors import UserError, printable
from search_spaces import Space, TrialConfig, unique_trials
from sweep.hardware import gpu_expected
from sweep.options import SweepOptions, check_distinct, resolve_space
from tracking import DatasetFacts
from trainables.encoders import canonical_model, check_max_length, count_parameters
from trainables.reviews import ReviewSplits, load_splits

_BYTES_PER_PARAMETER = 4
_CHECKPOINTS_PER_TRIAL = 2  # while it is trained; see TrialFolder
_TENSORS_PER_CHECKPOINT = 4  # weights, best weights, Adam's two moments
_MODELS_PER_TRIAL = 2  # best and last epoch, in MLflow
_BESIDE_TENSORS = 1_000_000  # bytes of a checkpoint: histories, names of tensors
_BESIDE_WEIGHTS = 5_000_000  # bytes of a model: its tokenizer, and the code that loads it


@dataclass(frozen=True)
class Plan:
    """What a study will do. Made before anything is trained or written."""

    study: str
    space: Space
    cells: Sequence[TrialConfig]
    splits: ReviewSplits
    parameters: dict[str, int]  # of each model
    measures_physical: bool = False  # the cells' physical batch size waits for a measurement on a GPU

    @cached_property
    def trials(self) -> dict[str, list[TrialConfig]]:
        """Trial hash -> the cells that this trial serves."""
        return unique_trials(self.cells)

    @property
    def dataset(self) -> DatasetFacts:
        """The data set, as tracking describes it."""
        config = self.cells[0]
        return DatasetFacts(
            name=config.dataset.rstrip("/").rsplit("/", 1)[-1],
            source=config.dataset,
            digest=config.dataset_digest,
            sizes=self.splits.sizes(),
            label_names=self.splits.label_names,
            duplicates_dropped=self.splits.duplicates_dropped,
        )

    def checkpoint_bytes(self, configs: Iterable[TrialConfig]) -> int:
        """Disk that the checkpoints of these trials take at most."""
        sizes = [
            _TENSORS_PER_CHECKPOINT * self.weight_bytes(config) + _BESIDE_TENSORS for config in configs
        ]
        return _CHECKPOINTS_PER_TRIAL * sum(sizes)

    def model_bytes(self, configs: Iterable[TrialConfig]) -> int:
        """Disk that the models of these trials, which stay in MLflow, take at most."""
        return _MODELS_PER_TRIAL * sum(self.weight_bytes(config) + _BESIDE_WEIGHTS for config in configs)

    def weight_bytes(self, config: TrialConfig) -> int:
        """One set of a trial's weights."""
        return _BYTES_PER_PARAMETER * self.parameters[config.model]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON: enough to rebuild the study's tables from MLflow alone."""
        cells = [
            {
                "model": cell.model_name,
                "target_batch_size": cell.target_batch_size,
                "scaling_rule": cell.scaling_rule,
                "seed": cell.seed,
                "learning_rate": cell.learning_rate,
                "trial_hash": cell.trial_hash,
                "config": cell.to_dict(),
            }
            for cell in self.cells
        ]
        return {
            "study": self.study,
            "space": self.space.name,
            "question": self.space.question,
            "baselines": self._baselines(),
            "dataset": vars(self.dataset),
            "metrics": {"loss": "cross entropy (nats)", "acc": "accuracy"},
            "cells": cells,
        }

    def _baselines(self) -> dict[str, Any]:
        """The space's baselines; where flags left one out of the grid, the axis's first value."""
        values = {axis: self.space.axis_values(axis) for axis in self.space.baselines}
        return {
            axis: baseline if baseline in values[axis] else values[axis][0]
            for axis, baseline in self.space.baselines.items()
        }


def make_plan(options: SweepOptions, bf16_available: bool) -> Plan:
    """Resolve the options, load the data and count; raises UserError for anything wrong."""
    space = resolve_space(options, bf16_available)
    space = replace(space, models=tuple(map(canonical_model, space.models)))
    check_distinct(space)
    first = space.cells()[0]
    _check_model_names(space.cells())
    for model in space.models:
        check_max_length(model, first.max_length)
    parameters = {model: count_parameters(model) for model in space.models}
    splits = load_splits(first)
    digest = splits.digest()
    cells = [cell.replace(dataset_digest=digest) for cell in space.cells()]
    measures = options.physical_batch_size == "auto" and gpu_expected(options)
    return Plan(options.study, space, cells, splits, parameters, measures)


def _check_model_names(cells: Sequence[TrialConfig]) -> None:
    """Tables and pictures name a model by its last part: two of one name would become one."""
    models: dict[str, str] = {}
    for cell in cells:
        other = models.setdefault(cell.model_name, cell.model)
        if other != cell.model:
            raise UserError(
                f"models '{other}' and '{cell.model}' are both called {cell.model_name}: rename a folder"
            )


def plan_tables(plan: Plan) -> list[Table | str]:
    """The plan for people: a summary, the trials, and which cells share one."""
    sizes = plan.splits.sizes()
    dataset = plan.dataset
    trials = [cells[0] for cells in plan.trials.values()]
    summary = [
        f"study {plan.study}: {plan.space.question}",
        f"data {dataset.source}: {sizes['train']:,} train, {sizes['val']:,} val, "
        f"{sizes['test']:,} test; {dataset.duplicates_dropped:,} exact duplicates dropped; "
        f"classes {', '.join(dataset.label_names)}",
        f"{len(plan.cells)} cells, {len(plan.trials)} unique trials, {plan.cells[0].engine} engine, "
        f"{plan.cells[0].precision}",
        f"disk: checkpoints {gigabytes(plan.checkpoint_bytes(trials))} at most, until their trial is in "
        f"MLflow; models in MLflow {gigabytes(plan.model_bytes(trials))} at most",
    ]
    largest = max(cell.target_batch_size for cell in plan.cells)
    if largest > sizes["train"]:
        summary.append(
            f"note: target batch size {largest} is more than the {sizes['train']:,} training examples: "
            "its windows are whole epochs"
        )
    table = Table(title="trials", title_justify="left", title_style="bold")
    for column in ("trial", "model", "rules served"):
        table.add_column(column)
    for column in (
        "target\nbatch size",
        "physical\nbatch size",
        "accumulation\nsteps",
        "learning\nrate",
        "steps per\nepoch",
        "epochs",
        "seed",
    ):
        table.add_column(column, justify="right")
    for trial_hash, cells in plan.trials.items():
        config = cells[0]
        table.add_row(
            trial_hash,
            Text(printable(config.model_name)),
            ", ".join(cell.scaling_rule for cell in cells),
            str(config.target_batch_size),
            "auto" if plan.measures_physical else str(config.physical_batch_size),
            "auto" if plan.measures_physical else str(config.accumulation_steps),
            f"{config.learning_rate:.3g}",
            str(math.ceil(sizes["train"] / config.target_batch_size)),
            str(config.epochs),
            str(config.seed),
        )
    shared = [cells for cells in plan.trials.values() if len(cells) > 1]
    if shared:
        summary.append(
            f"{len(shared)} {'trials serve' if len(shared) > 1 else 'trial serves'} several cells: "
            "at batch size "
            f"{shared[0][0].reference_batch_size} every scaling rule gives the same learning rate"
        )
    return ["\n".join(map(printable, summary)), table]


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
