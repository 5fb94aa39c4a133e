"""The plan: cells, the unique trials that serve them, and what they will cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from errors import UserError, printable
from search_spaces import Space, TrialConfig, trial_name, unique_trials
from sweep.options import SweepOptions, check_distinct, resolve_space
from tracking import DatasetFacts
from trainables.encoders import canonical_model, check_max_length, count_parameters
from trainables.evaluation import METRICS
from trainables.reviews import ReviewSplits, load_splits

GPU_TOKENS_PER_PASS = 32_768  # more saturates nothing, and undoes the sorting by length
_BESIDE_TENSORS = 1_000_000  # bytes of a checkpoint: histories, names of tensors
_BESIDE_WEIGHTS = 5_000_000  # bytes of a model: its tokenizer, and the code that loads it
_NUMBERS = (
    "target\nbatch size",
    "physical\nbatch size",
    "accumulation\nsteps",
    "learning\nrate",
    "steps per\nepoch",
    "epochs",
    "seed",
)


@dataclass(frozen=True)
class Plan:
    """What a study will do. Made before anything is trained or written."""

    study: str
    space: Space
    cells: Sequence[TrialConfig]
    splits: ReviewSplits
    parameters: dict[str, int]  # of each model
    notes: Sequence[str] = ()

    @cached_property
    def trials(self) -> dict[str, list[TrialConfig]]:
        """Trial hash -> the cells that this trial serves."""
        return unique_trials(self.cells)

    @cached_property
    def configs(self) -> dict[str, TrialConfig]:
        """Trial hash -> the configuration that is trained."""
        return {trial_hash: cells[0] for trial_hash, cells in self.trials.items()}

    def name(self, trial_hash: str) -> str:
        """The trial's name in tables and in MLflow."""
        return trial_name(self.trials[trial_hash], len(self.space.seeds))

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
        """Disk that the checkpoints of trials take at most while they are trained."""
        return 2 * self._bytes(configs, 4, _BESIDE_TENSORS)  # weights, best weights, Adam's two moments

    def trained_bytes(self, configs: Iterable[TrialConfig]) -> int:
        """Disk that the last checkpoints of trained trials take until the trials are tested."""
        return self._bytes(configs, 2, _BESIDE_TENSORS)  # weights, best weights

    def model_bytes(self, configs: Iterable[TrialConfig]) -> int:
        """Disk that the models of the best and the last epoch, which stay in MLflow, take at most."""
        return 2 * self._bytes(configs, 1, _BESIDE_WEIGHTS)

    def weight_bytes(self, config: TrialConfig) -> int:
        """One set of a trial's weights, in fp32."""
        return 4 * self.parameters[config.model]

    def _bytes(self, configs: Iterable[TrialConfig], sets: int, beside: int) -> int:
        return sum(sets * self.weight_bytes(config) + beside for config in configs)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON: enough to rebuild the study's tables from MLflow alone."""
        shown = ("target_batch_size", "scaling_rule", "seed", "learning_rate", "trial_hash")
        cells = [
            {"model": cell.model_name, "config": cell.to_dict()}
            | {name: getattr(cell, name) for name in shown}
            for cell in self.cells
        ]
        axes = {axis: self.space.axis_values(axis) for axis in self.space.baselines}
        baselines = {
            axis: baseline if baseline in axes[axis] else axes[axis][0]  # flags may have left it out
            for axis, baseline in self.space.baselines.items()
        }
        return {
            "study": self.study,
            "space": self.space.name,
            "question": self.space.question,
            "baselines": baselines,
            "dataset": vars(self.dataset),
            "metrics": {name: metric.label for name, metric in METRICS.items()},
            "cells": cells,
        }


def make_plan(options: SweepOptions, bf16_available: bool) -> Plan:
    """Resolve the options, load the data and count; raises UserError for anything wrong."""
    space = resolve_space(options, bf16_available)
    space = replace(space, models=tuple(map(canonical_model, space.models)))
    check_distinct(space)
    cells = space.cells()
    _check_model_names(cells)
    for model in space.models:
        check_max_length(model, cells[0].max_length)
    parameters = {model: count_parameters(model) for model in space.models}
    splits = load_splits(cells[0])
    digest = splits.digest()
    cells = [cell.replace(dataset_digest=digest) for cell in cells]
    if options.physical_batch_size == "auto" and gpu_expected(options):
        cells = [_sized_for_gpu(cell) for cell in cells]
    return Plan(options.study, space, cells, splits, parameters, options.notes)


def gpu_expected(options: SweepOptions) -> bool:
    """Whether trials may run on a GPU; only a cluster itself knows whether it has any."""
    return options.gpus_per_trial != 0 and (bool(options.ray_address) or torch.cuda.is_available())


def bf16_available(options: SweepOptions) -> bool:
    """Whether what trials will run on here, GPU or CPU, computes in bfloat16 and does not emulate it."""
    if torch.cuda.is_available() and options.gpus_per_trial != 0:
        return torch.cuda.get_device_capability()[0] >= 8
    # read through get_capabilities: the functions for single features are private
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _sized_for_gpu(cell: TrialConfig) -> TrialConfig:
    """A pass of so many tokens; the trial halves it where memory runs out."""
    fitting = max(1, GPU_TOKENS_PER_PASS // cell.max_length)
    return cell.replace(physical_batch_size=min(cell.target_batch_size, fitting))


def _check_model_names(cells: Sequence[TrialConfig]) -> None:
    """Tables and pictures name a model by its last part: two of one name would become one."""
    models: dict[str, str] = {}
    for cell in cells:
        other = models.setdefault(cell.model_name, cell.model)
        if other != cell.model:
            raise UserError(
                f"models '{other}' and '{cell.model}' are both called {cell.model_name}: rename a folder"
            )


def plan_summary(plan: Plan) -> str:
    """The plan in a few lines."""
    sizes, dataset, configs = plan.splits.sizes(), plan.dataset, list(plan.configs.values())
    first = configs[0]
    lines = [
        f"study {plan.study}: {plan.space.question}",
        f"data {dataset.source}: {sizes['train']:,} train, {sizes['val']:,} val, "
        f"{sizes['test']:,} test; {dataset.duplicates_dropped:,} exact duplicates dropped; "
        f"classes {', '.join(dataset.label_names)}",
        f"{len(plan.cells)} cells, {len(configs)} unique trials, {first.engine} engine, {first.precision}",
        f"disk: checkpoints {gigabytes(plan.checkpoint_bytes(configs))} at most, until their trial is "
        f"tested; models in MLflow {gigabytes(plan.model_bytes(configs))} at most",
        *plan.notes,
    ]
    largest = max(cell.target_batch_size for cell in plan.cells)
    if largest > sizes["train"]:
        lines.append(
            f"note: target batch size {largest} is more than the {sizes['train']:,} training examples: "
            "its windows are whole epochs"
        )
    shared = sum(len(cells) > 1 for cells in plan.trials.values())
    if shared:
        lines.append(
            f"{shared} {'trials serve' if shared > 1 else 'trial serves'} several cells: at batch size "
            f"{first.reference_batch_size} every scaling rule gives the same learning rate"
        )
    return "\n".join(map(printable, lines))


def plan_table(plan: Plan) -> Table:
    """A row per trial."""
    train = plan.splits.sizes()["train"]
    table = Table("trial", "model", "rules served", title="trials", title_justify="left")
    for column in _NUMBERS:
        table.add_column(column, justify="right")
    for trial_hash, cells in plan.trials.items():
        config = cells[0]
        numbers = (
            config.target_batch_size,
            config.physical_batch_size,
            config.accumulation_steps,
            f"{config.learning_rate:.3g}",
            config.steps_per_epoch(train),
            config.epochs,
            config.seed,
        )
        rules = ", ".join(cell.scaling_rule for cell in cells)
        table.add_row(trial_hash, Text(printable(config.model_name)), rules, *map(str, numbers))
    return table


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
