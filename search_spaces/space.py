"""A grid: a question, and the cells, budget and seeds that answer it."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from errors import UserError, unknown
from search_spaces.fields import ONE_LINE, Text, Validated, one_of
from search_spaces.given import Given
from search_spaces.stages import Around, Grid, Stage
from search_spaces.trial_config import TrialConfig

BUDGETS = ("examples", "steps")
AXES = ("model", "target_batch_size", "scaling_rule", "seed")
GRID = AXES[:-1]  # the axes of comparisons; two cells are compared in pairs of the same seed
MOST_SEEDS = 100
DEFAULT_MARGIN = 1.0  # points of accuracy

_LISTED = BeforeValidator(lambda values: tuple(values) if isinstance(values, list) else values)


class Space(Validated):
    """A question, and the cells, budget and seeds that answer it. Plain data.

    ``settings`` are the TrialConfig fields that all cells share and that differ from the defaults.
    ``baselines`` says which differences the question is about: an axis, and the value on it that every
    other value is compared with, all else equal. A cell with the baseline on each of these axes is a
    control cell; it has ``control_seeds`` seeds in all, by default as many as other cells. All cells spend
    the same ``budget``: the examples of ``epochs`` epochs, or the optimizer steps that so many epochs take
    at the reference batch size. Differences of accuracy up to ``margin`` points count as none. Raises
    UserError, one line, for invalid values.
    """

    name: Text
    question: Annotated[str, Field(min_length=1), ONE_LINE]
    models: Annotated[tuple[Text, ...], _LISTED]
    target_batch_sizes: Annotated[tuple[int, ...], _LISTED]
    scaling_rules: Annotated[tuple[str, ...], _LISTED]
    seeds: Annotated[tuple[int, ...], _LISTED] = (42,)
    control_seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] | None = None
    settings: Mapping[str, Any] = {}
    budget: Annotated[str, one_of("budget", BUDGETS)] = "examples"
    baselines: Mapping[str, str | int] = {}
    margin: Annotated[float, Field(gt=0, le=100)] = DEFAULT_MARGIN

    @model_validator(mode="after")
    def _check(self) -> "Space":
        if "steps" in self.settings:
            raise UserError('a space sets no steps: give it budget="steps", and epochs in its settings')
        for axis in AXES:
            self._check_axis(axis, self.axis_values(axis))
        for axis, baseline in self.baselines.items():
            if axis not in GRID:
                raise unknown("axis of baselines", axis, GRID)
            if baseline not in self.axis_values(axis):
                raise UserError(f"the baseline {baseline} is none of the {axis}s")
        if self.control_seeds is not None and not self.baselines:
            raise UserError("control seeds need baselines: they say which cell is the control")
        if self.control_seeds is not None and self.control_seeds < len(self.seeds):
            raise UserError(
                f"{self.control_seeds} control seeds are fewer than the {len(self.seeds)} seeds of a cell: "
                "give as many or more"
            )
        if (self.control_seeds or 1) > len(self.seeds) == 1:
            raise UserError("control seeds need two seeds or more of the other cells: give them as --seed")
        self.cells()  # each validates a TrialConfig
        return self

    def _check_axis(self, axis: str, values: tuple[Any, ...]) -> None:
        words = axis.replace("_", " ")
        if not values:
            raise UserError(f"{axis}s is empty: name a {words}")
        if len(set(values)) < len(values):
            raise UserError(f"{words}s are named twice: {', '.join(map(str, values))}")
        if axis in self.settings:
            raise UserError(f"settings cannot have a {axis}: name it in {axis}s")

    def axis_values(self, axis: str) -> tuple[Any, ...]:
        """The values of ``model``, ``target_batch_size``, ``scaling_rule`` or ``seed``, as listed."""
        return getattr(self, f"{axis}s")

    def cells(self) -> list[TrialConfig]:
        """Every point of the grid under its seeds, in reading order: rule, model, batch, seed.

        The further seeds of a control cell are the numbers after the largest of the others. Cells with the
        same trial hash as a control cell have these seeds too: they are the same training.
        """
        grid = itertools.product(self.scaling_rules, self.models, self.target_batch_sizes)
        cells = [
            TrialConfig(
                model=model,
                target_batch_size=batch,
                scaling_rule=rule,
                seed=self.seeds[0],
                **self.settings,
            )
            for rule, model, batch in grid
        ]
        further = (self.control_seeds or len(self.seeds)) - len(self.seeds)
        following = max(self.seeds) + 1
        control_seeds = (*self.seeds, *range(following, following + further))
        controls = {cell.trial_hash for cell in cells if self._is_control(cell)}
        return [
            cell.replace(seed=seed)
            for cell in cells
            for seed in (control_seeds if cell.trial_hash in controls else self.seeds)
        ]

    def _is_control(self, cell: TrialConfig) -> bool:
        return all(getattr(cell, axis) == baseline for axis, baseline in self.baselines.items())

    def resolved(self, given: Given) -> "Space":
        """The grid with what a command says; a baseline whose value is left out becomes the first value."""
        for name in given.others.keys() - type(self).model_fields.keys():
            raise UserError(f"{given.flag(name)} is for a search, and {self.name} is a grid")
        says = {f"{axis}s": self.axis_values(axis) for axis in AXES}
        models = {"models": given.demo_models} if given.demo_models else {}
        axes = given.ranked(given.listed, says, models)
        settings = given.ranked(given.fields, self.settings, given.demo)
        settings |= given.computed(settings)
        baselines = {
            axis: baseline if baseline in axes[f"{axis}s"] else axes[f"{axis}s"][0]
            for axis, baseline in self.baselines.items()
        }
        control_seeds = self.control_seeds
        if control_seeds:  # keep the ratio to the seeds of other cells
            several = len(axes["seeds"]) > 1
            control_seeds = control_seeds * len(axes["seeds"]) // len(self.seeds) if several else None
        changes = {"control_seeds": control_seeds, **given.others}
        return self.replace(**axes, settings=settings, baselines=baselines, **changes)

    def stages(self, around: Around) -> list[Stage]:
        """One stage, with all cells."""
        seeds, control = len(self.seeds), self.control_seeds or 0
        further = f" ({control} seeds of a control cell, {seeds} of any other)" if control > seeds else ""
        return [Grid(map(around.resolve, self.cells()), further)]

    def corners(self) -> Iterator[TrialConfig]:
        """The trials to check before a study: each must be possible."""
        return iter(self.cells())

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Empty: a grid searches no parameter."""
        return {}

    @property
    def varied(self) -> list[str]:
        """The parameters in which trials differ, as MLflow names them."""
        several = len(self.seeds) > 1
        return [axis for axis in AXES if axis != "seed" or several] + ["learning_rate"]

    def budget_line(self) -> str:
        """``equal examples: epochs 5; evaluations 5``."""
        config = next(self.corners())
        epochs = f"{config.epochs}"
        if self.budget == "steps":
            epochs += f" at target batch size {config.reference_batch_size}, all with as many steps"
        return f"equal {self.budget}: epochs {epochs}; evaluations {config.evaluation_count}"

    def with_models(self, named: Callable[[str], str]) -> "Space":
        """The grid with its models under other names."""
        baselines = dict(self.baselines)
        if "model" in baselines:
            baselines["model"] = named(str(baselines["model"]))
        return self.replace(models=tuple(map(named, self.models)), baselines=baselines)

    def identity(self) -> dict[str, Any]:
        """Empty: a grid may grow and shrink, and stays the same study."""
        return {}
