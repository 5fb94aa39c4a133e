"""The plan of a study: made before anything is trained, kept in MLflow, read by the report."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from search_spaces.search_space import SearchSpace
from search_spaces.space import AXES, Space
from search_spaces.stages import trial_name, unique_trials
from search_spaces.trial_config import FIELDS, LEARN_NOTHING, TrialConfig, model_name

Point = tuple[Any, ...]  # a cell's coordinates on the axes of GRID


@dataclass(frozen=True)
class DatasetFacts:
    """The facts of a data set that the plan, the report and MLflow show."""

    name: str
    source: str
    digest: str
    sizes: dict[str, int]
    label_names: tuple[str, ...]
    duplicates_dropped: int
    # for the plan and the report: heading -> text; and what a reader should know first
    facts: Mapping[str, str] = Field(default_factory=dict)
    warnings: Sequence[str] = ()


class Forecast(BaseModel):
    """What was expected before training, shown in the report beside the results; None: unknown."""

    # the smallest differences that the most and the least sensitive comparison find with probability 80 %
    smallest_points: tuple[float, float] | None = None
    minutes: float | None = None  # of training and validation, all trials


class Cell(BaseModel):
    """A cell of the plan."""

    config: TrialConfig

    @cached_property
    def trial_hash(self) -> str:
        return self.config.trial_hash

    @property
    def point(self) -> Point:
        config = self.config
        return config.model_name, config.target_batch_size, config.scaling_rule


def as_trained(
    config: TrialConfig,
    *,
    budget: str,
    dataset_digest: str,
    model_digests: Mapping[str, str],
    train_examples: int,
) -> TrialConfig:
    """A configuration of a space with what its trial is known by: the data, the model, the steps."""
    found = config.replace(dataset_digest=dataset_digest, model_digest=model_digests[config.model])
    if budget != "steps":
        return found
    reference = found.replace(target_batch_size=found.reference_batch_size)
    steps = reference.total_steps(train_examples)
    # its own epochs are no other budget: such a trial is shared with studies at equal examples
    return found if steps == found.total_steps(train_examples) else found.replace(steps=steps)


class Plan(BaseModel):
    """What a study will do.

    ``cells`` are the known cells whose models are kept and tested; of a search, those that confirm its
    best. ``shared`` is any trial; the settings that all trials have in common are read from it.
    ``model_digests`` are those of local folders, empty for other models.
    """

    model_config = ConfigDict(frozen=True)

    study: str
    space: Space | SearchSpace
    shared: TrialConfig
    dataset: DatasetFacts
    model_digests: dict[str, str]
    metrics: dict[str, str]  # name -> axis label
    cells: Annotated[tuple[Cell, ...], Field(strict=False)]
    has_later_stages: bool = False  # whose cells follow from how the trials of earlier ones end
    forecast: Forecast = Forecast()

    @model_validator(mode="after")
    def _check(self) -> "Plan":
        if not all(self.dataset.sizes.get(split, 0) > 0 for split in ("train", "val", "test")):
            raise ValueError("a split without examples")
        if not (self.cells or self.has_later_stages):
            raise ValueError("no cells")
        if len({(cell.point, cell.config.seed) for cell in self.cells}) < len(self.cells):
            raise ValueError("two cells with the same model, target batch size, scaling rule and seed")
        return self

    @property
    def question(self) -> str:
        return self.space.question

    @property
    def search(self) -> SearchSpace | None:
        """The space if it is a search, else None."""
        return self.space if isinstance(self.space, SearchSpace) else None

    @property
    def budget(self) -> str:
        """Of what all cells spend the same: ``examples`` or ``steps``."""
        return self.space.budget

    @property
    def margin(self) -> float:
        """The difference of accuracy, in points, within which cells are equivalent."""
        return self.space.margin

    @property
    def baselines(self) -> dict[str, str | int]:
        """Axis of the question -> its baseline, in the names that cells have."""
        found = dict(self.space.baselines)
        return found | ({"model": model_name(str(found["model"]))} if "model" in found else {})

    @cached_property
    def trials(self) -> dict[str, list[TrialConfig]]:
        """Trial hash -> the cells that this trial serves."""
        return unique_trials(cell.config for cell in self.cells)

    @cached_property
    def configs(self) -> dict[str, TrialConfig]:
        """Trial hash -> the configuration that is trained."""
        return {trial_hash: cells[0] for trial_hash, cells in self.trials.items()}

    def name(self, trial_hash: str) -> str:
        """The trial's name in tables and in MLflow."""
        return trial_name(self.trials[trial_hash], len({cell.config.seed for cell in self.cells}))

    def trial_of(self, config: TrialConfig) -> TrialConfig:
        """The trial of a configuration of the space, but for the size of its passes."""
        return as_trained(
            config,
            budget=self.budget,
            dataset_digest=self.shared.dataset_digest,
            model_digests=self.model_digests,
            train_examples=self.train_examples,
        )

    @property
    def train_examples(self) -> int:
        return self.dataset.sizes["train"]

    def spent(self, config: TrialConfig) -> dict[str, int | float]:
        """A trial's budget: ``steps``, ``examples`` and ``epochs``."""
        end = config.position(config.evaluation_count, self.train_examples)
        return {"steps": end.step, "examples": end.examples, "epochs": end.epoch}

    def cost_ratio(self, config: TrialConfig) -> float:
        """A trial's examples as a multiple of what the same cell takes at the reference batch size."""
        at_reference = config.epochs * self.train_examples  # under either budget
        return self.spent(config)["examples"] / at_reference

    def replace(self, **changes: Any) -> "Plan":
        return Plan(**dict(self) | changes)  # not model_copy, which copies cached properties

    def has_splits_of(self, params: Mapping[str, str]) -> bool:
        """Whether a trial with these parameters, as stored in MLflow, read the same splits."""
        return params.get("dataset_digest") == self.shared.dataset_digest

    def apart(self, params: Mapping[str, str]) -> str:
        """``epochs 5, base_lr 0.001``: the settings of these parameters that no trial of the plan has."""
        settings = {
            name: str(getattr(self.shared, name))
            for name in FIELDS
            if name not in {*AXES, *LEARN_NOTHING, "model_digest"}
        }
        return ", ".join(
            f"{name} {params[name]}" for name, own in settings.items() if params.get(name, own) != own
        )
