"""The plan: cells, the unique trials that serve them, and the disk they need."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from errors import UserError
from search_spaces import SearchSpace, Space, TrialConfig, trial_name, unique_trials
from search_spaces.search_space import Choice
from search_spaces.space import AXES
from search_spaces.trial_config import FIELDS, LEARN_NOTHING, model_name
from sweep.hardware import gpu_expected
from sweep.options import SweepOptions
from sweep.resolve import resolve_space, sizes_passes
from tracking import DatasetFacts, colour_tag
from trainables.encoders import canonical_model, check_max_length, count_parameters, model_digest
from trainables.evaluation import METRICS
from trainables.review_facts import facts_of, warnings_of
from trainables.review_splits import ReviewSplits, load_splits

GPU_TOKENS_PER_PASS = 32_768  # more saturates nothing, and undoes the sorting by length
_BESIDE_TENSORS = 1_000_000  # bytes of a checkpoint: histories, names of tensors
_BESIDE_WEIGHTS = 5_000_000  # bytes of a model: its tokenizer, and the code that loads it


@dataclass(frozen=True)
class Plan:
    """What a study will do. Made before anything is trained or written."""

    study: str
    space: Space | SearchSpace
    cells: Sequence[TrialConfig]  # of a search: those that confirm its best, once it is known
    splits: ReviewSplits
    parameters: dict[str, int]  # of each model
    shared: TrialConfig  # any trial, for the settings that all have in common
    sized_for_gpu: bool = False
    forecast: Mapping[str, Any] = field(default_factory=dict)  # of the study, to be held against its truth

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
        return trial_name(self.trials[trial_hash], self.seeds)

    @property
    def seeds(self) -> int:
        """How many seeds the cells have."""
        return len({cell.seed for cell in self.cells})

    @property
    def in_training(self) -> list[TrialConfig]:
        """The trials that may have checkpoints at once; of a search, as many of the largest model."""
        if not isinstance(self.space, SearchSpace):
            return list(self.configs.values())
        at_once = min(self.space.generation_size, self.space.trials)
        return [self._largest] * max(at_once, self.space.confirm_seeds)

    @property
    def kept(self) -> list[TrialConfig]:
        """The trials whose models stay in MLflow."""
        if not isinstance(self.space, SearchSpace):
            return list(self.configs.values())
        return [self._largest] * self.space.confirm_seeds

    @property
    def _largest(self) -> TrialConfig:
        return self.shared.replace(model=max(self.parameters, key=lambda model: self.parameters[model]))

    @property
    def target_batch_sizes(self) -> Sequence[int]:
        if isinstance(self.space, SearchSpace):
            parameter = self.space.parameters.get("target_batch_size")
            return parameter.ends if parameter else [self.shared.target_batch_size]  # type: ignore[return-value]
        return self.space.target_batch_sizes

    @property
    def varied(self) -> list[str]:
        """The parameters that trials differ in, as MLflow names them."""
        if isinstance(self.space, SearchSpace):
            return list(self.space.parameters)
        return [axis for axis in AXES if axis != "seed" or self.seeds > 1] + ["learning_rate"]

    def cells_of(self, trial_hash: str) -> Sequence[TrialConfig]:
        """The cells that a trial serves."""
        return self.trials[trial_hash]

    def tags(self, trial_hash: str) -> dict[str, str]:
        """What MLflow shows of a trial's role."""
        return {"role": "confirm"} if isinstance(self.space, SearchSpace) else {}

    def has_splits_of(self, params: Mapping[str, str]) -> bool:
        """Whether a trial with these parameters, as MLflow keeps them, read the same splits."""
        return params.get("dataset_digest") == self.shared.dataset_digest

    def apart(self, params: Mapping[str, str]) -> str:
        """``epochs 5, base_lr 0.001``: the settings in which such a trial differs from all of the plan."""
        settings = {
            name: str(getattr(self.shared, name))
            for name in FIELDS
            if name not in {*AXES, *LEARN_NOTHING, "model_digest"}
        }
        return ", ".join(
            f"{name} {params[name]}" for name, own in settings.items() if params.get(name, own) != own
        )

    def colour_tag(self, config: TrialConfig) -> dict[str, str]:
        """The colour of a trial in MLflow's pictures: by model and rule, darker the smaller the batch."""
        sizes = sorted(self.target_batch_sizes)
        rules = [] if isinstance(self.space, SearchSpace) else list(self.space.scaling_rules)
        return colour_tag(
            list(self.parameters).index(config.model),
            rules.index(config.scaling_rule) if config.scaling_rule in rules else 0,
            bisect_left(sizes, config.target_batch_size) / max(1, len(sizes) - 1),
        )

    def searched(self, values: Mapping[str, Any]) -> TrialConfig:
        """A trial of the search, with these values of its parameters."""
        assert isinstance(self.space, SearchSpace)
        config = self.space.config(values)
        return _sized_for_gpu(config) if self.sized_for_gpu else config

    def confirming(self, best: TrialConfig) -> "Plan":
        """The plan that trains the best of a search again, with fresh seeds."""
        assert isinstance(self.space, SearchSpace)
        seeds = range(best.seed + 1, best.seed + 1 + self.space.confirm_seeds)
        return replace(self, cells=[best.replace(seed=seed) for seed in seeds])

    @cached_property
    def dataset(self) -> DatasetFacts:
        """The data set, as tracking describes it."""
        config = self.shared
        return DatasetFacts(
            name=config.dataset.rstrip("/").rsplit("/", 1)[-1],
            source=config.dataset,
            digest=config.dataset_digest,
            sizes=self.splits.sizes(),
            label_names=self.splits.label_names,
            duplicates_dropped=self.splits.facts.duplicates_dropped,
            facts=facts_of(self.splits, config),
            warnings=warnings_of(self.splits, config),
        )

    def spent(self, config: TrialConfig) -> dict[str, int | float]:
        """A trial's budget: ``steps``, ``examples`` and ``epochs``."""
        end = config.position(config.evaluation_count, self.train_examples)
        return {"steps": end.step, "examples": end.examples, "epochs": end.epoch}

    def cost_ratio(self, config: TrialConfig) -> float:
        """A trial's examples as a multiple of those of its cell at the reference batch size."""
        at_reference = config.epochs * self.train_examples  # under either budget
        return self.spent(config)["examples"] / at_reference

    @property
    def train_examples(self) -> int:
        return self.splits.sizes()["train"]

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
            | {"evaluations": cell.evaluation_count, **self.spent(cell)}
            for cell in self.cells
        ]
        if isinstance(self.space, SearchSpace):
            asked: dict[str, Any] = {"search": self.space.model_dump(mode="json")}
        else:
            baselines = dict(self.space.baselines)
            if "model" in baselines:  # as the cells name it
                baselines["model"] = model_name(str(baselines["model"]))
            asked = {"baselines": baselines, "margin": self.space.margin}
        return {
            "study": self.study,
            "space": self.space.name,
            "question": self.space.question,
            "budget": "examples" if isinstance(self.space, SearchSpace) else self.space.budget,
            "dataset": vars(self.dataset),
            "metrics": {name: metric.label for name, metric in METRICS.items()},
            "cells": cells,
            "forecast": dict(self.forecast),
        } | asked


def make_plan(options: SweepOptions, bf16_available: bool) -> Plan:
    """Resolve the options, load the data and count; raises UserError for anything wrong."""
    space = _canonical(resolve_space(options, bf16_available))
    cells = [] if isinstance(space, SearchSpace) else space.cells()
    shared = next(space.corners()) if isinstance(space, SearchSpace) else cells[0]
    _check_model_names(space.models)
    for model in space.models:
        check_max_length(model, shared.max_length)
    parameters = {model: count_parameters(model) for model in space.models}
    splits = load_splits(shared)
    digest = splits.digest()
    shared, *cells = [cell.replace(dataset_digest=digest) for cell in (shared, *cells)]
    train = splits.sizes()["train"]
    if isinstance(space, SearchSpace):
        space = space.replace(settings={**space.settings, "dataset_digest": digest})
        for corner in space.corners():
            corner.check_evaluations(train)
    digests = {model: model_digest(model) for model in space.models}
    _check_digests(digests)
    # the proposals of a search are made of models by their names
    cells = [cell.replace(model_digest=digests[cell.model]) for cell in cells]
    if isinstance(space, Space) and space.budget == "steps":
        cells = [_at_equal_steps(cell, train) for cell in cells]
    for cell in cells:
        cell.check_evaluations(train)
    sized_for_gpu = sizes_passes(options) and gpu_expected(options)
    if sized_for_gpu:
        cells = [_sized_for_gpu(cell) for cell in cells]
    return Plan(options.study, space, cells, splits, parameters, shared, sized_for_gpu)


def _canonical(space: Space | SearchSpace) -> Space | SearchSpace:
    """The space with its models as they are known to the table of encoders."""
    models = tuple(map(canonical_model, space.models))
    if isinstance(space, Space):
        baselines = dict(space.baselines)
        if "model" in baselines:
            baselines["model"] = canonical_model(str(baselines["model"]))
        return space.replace(models=models, baselines=baselines)
    if "model" in space.parameters:
        return space.replace(parameters={**space.parameters, "model": Choice(models)})
    return space.replace(settings={**space.settings, "model": models[0]})


def _at_equal_steps(cell: TrialConfig, train_examples: int) -> TrialConfig:
    """The cell with the steps that its epochs take at the reference batch size."""
    reference = cell.replace(target_batch_size=cell.reference_batch_size)
    steps = reference.total_steps(train_examples)
    # its own epochs are no other budget: such a trial is shared with studies at equal examples
    return cell if steps == cell.total_steps(train_examples) else cell.replace(steps=steps)


def _sized_for_gpu(cell: TrialConfig) -> TrialConfig:
    """A pass of so many tokens; the trial halves it where memory runs out."""
    fitting = max(1, GPU_TOKENS_PER_PASS // cell.max_length)
    return cell.replace(physical_batch_size=min(cell.target_batch_size, fitting))


def _check_digests(digests: Mapping[str, str]) -> None:
    """Two folders with the same in them would be one trial."""
    by_digest: dict[str, str] = {}
    for model, digest in digests.items():
        if digest and (other := by_digest.setdefault(digest, model)) != model:
            raise UserError(f"models '{other}' and '{model}' are the same, file by file: name one of them")


def _check_model_names(models: Iterable[str]) -> None:
    """Tables and pictures name a model by its last part: two of one name would become one."""
    by_name: dict[str, str] = {}
    for model in models:
        other = by_name.setdefault(name := model_name(model), model)
        if other != model:
            raise UserError(f"models '{other}' and '{model}' are both called {name}: rename a folder")
