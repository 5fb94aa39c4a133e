"""A search: a box of settings, and how it is searched. Plain data."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from errors import UserError, unknown
from search_spaces.fields import ONE_LINE, Validated
from search_spaces.given import Given
from search_spaces.search_stages import Confirm, Search
from search_spaces.space import DEFAULT_MARGIN
from search_spaces.stages import Around, Stage
from search_spaces.trial_config import DATA, FIELDS, LEARN_NOTHING, TrialConfig

SAMPLERS = ("tpe", "random", "qmc", "gp")
STOPPING_RULES = ("none", "median")
DIGITS = 6  # significant: the hash, MLflow's text and the sampler's number are then one number

# The splits and tokens are prepared once for a study, and the seed is what a confirmation varies.
_SHARED = DATA | frozenset("max_length split_seed dataset_digest seed steps evaluations".split())
_MOST_CORNERS = 4096

Value = float | int | bool | str | None


class Parameter(Validated):
    """What is searched of a setting; made by ``Choice``, ``Uniform`` and ``LogUniform``."""

    model_config = ConfigDict(strict=False)  # JSON's lists are tuples

    kind: Literal["choice", "uniform", "log_uniform"]
    values: Annotated[tuple[Value, ...], Field(min_length=1)]  # all of a choice, else low and high

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that must all be possible."""
        return self.values

    def __str__(self) -> str:
        if self.kind == "choice":
            return ", ".join(map(str, self.values))
        by = ", by its logarithm" if self.kind == "log_uniform" else ""
        return " to ".join(f"{end:g}" for end in self.ends) + by

    def holds(self, value: Any) -> bool:
        """Whether it may be proposed."""
        if self.kind == "choice":
            return value in self.values
        low, high = self.ends
        return isinstance(value, int | float) and low <= value <= high

    def check(self, name: str) -> None:
        """Raise UserError, with the setting's name, for values that cannot be searched."""
        if self.kind == "choice":
            if len(set(self.values)) < len(self.values):
                raise UserError(f"{name} names a value twice: {self}")
            return
        above, numbers = (0.0, "numbers above 0") if self.kind == "log_uniform" else (-math.inf, "numbers")
        are_numbers = len(self.ends) == 2 and all(isinstance(end, int | float) for end in self.ends)
        if not (are_numbers and above < self.ends[0] < self.ends[1]):
            ends = " to ".join(map(str, self.ends))
            raise UserError(f"{name} has a range from {ends}: give low < high, both {numbers}")


def Choice(values: tuple[Value, ...]) -> Parameter:  # noqa: N802
    """One of some values, which have no order: ``Choice((16, 32, 64))``."""
    return Parameter(kind="choice", values=values)


def Uniform(low: float, high: float) -> Parameter:  # noqa: N802
    """A number from ``low`` to ``high``; whole if both are."""
    return Parameter(kind="uniform", values=(low, high))


def LogUniform(low: float, high: float) -> Parameter:  # noqa: N802
    """A number from ``low`` to ``high``, above 0; its logarithm is uniform, and it is whole if both are."""
    return Parameter(kind="log_uniform", values=(low, high))


class SearchSpace(Validated):
    """A question for the best configuration, and how it is searched.

    ``parameters`` are the TrialConfig fields that vary, ``settings`` those that every trial shares where
    they differ from the defaults. A generation of ``generation_size`` trials is proposed at once. The best
    of ``trials`` is trained again with ``confirm_seeds`` fresh seeds. ``seed`` is the sampler's and the
    trials'. Raises UserError, one line, for what is not valid.
    """

    model_config = ConfigDict(strict=False)  # whole numbers are fractions, lists are tuples

    name: Annotated[str, ONE_LINE]
    question: Annotated[str, ONE_LINE]
    parameters: Mapping[str, Parameter]
    settings: Mapping[str, Any] = {}
    trials: Annotated[int, Field(ge=1)] = 30
    generation_size: Annotated[int, Field(ge=1, le=32)] = 4  # MLflow keeps it in one tag
    sampler: str = "tpe"
    stopping: str = "median"
    confirm_seeds: Annotated[int, Field(ge=1, le=100)] = 3
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42

    @model_validator(mode="after")
    def _check(self) -> "SearchSpace":
        for name, parameter in self.parameters.items():
            if name not in FIELDS:
                raise unknown("configuration key", name, FIELDS)
            if name in _SHARED:
                raise UserError(f"{name} cannot be searched: all trials of a study share it")
            parameter.check(name)
        for kind, name, known in (
            ("sampler", self.sampler, SAMPLERS),
            ("stopping rule", self.stopping, STOPPING_RULES),
        ):
            if name not in known:
                raise unknown(kind, name, known)
        if self.sampler == "gp" and self.stopping != "none":
            raise UserError("sampler gp learns nothing from stopped trials: give --stopping none")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The models that a trial may have."""
        parameter = self.parameters.get("model")
        return tuple(map(str, parameter.ends)) if parameter else (self.settings["model"],)

    @property
    def target_batch_sizes(self) -> Sequence[Any]:
        """The sizes that must all be possible."""
        parameter = self.parameters.get("target_batch_size")
        return parameter.ends if parameter else [next(self.corners()).target_batch_size]

    @property
    def scaling_rules(self) -> Sequence[str]:
        """None: its trials are not compared by rule."""
        return ()

    @property
    def budget(self) -> str:
        return "examples"

    @property
    def baselines(self) -> Mapping[str, str | int]:
        """None: the confirming trials are one cell."""
        return {}

    @property
    def margin(self) -> float:
        return DEFAULT_MARGIN

    @property
    def varied(self) -> list[str]:
        """The parameters that trials differ in, as MLflow names them."""
        return list(self.parameters)

    def resolved(self, given: Given) -> "SearchSpace":
        """The search with what a command says: a list narrows a parameter, a single value fixes it."""
        others, seeds = dict(given.others), given.listed.get("seeds", ())
        if len(seeds) > 1:
            raise UserError(
                "a search takes one --seed: --confirm-seeds says how often its best is trained again"
            )
        if others.pop("budget", self.budget) != self.budget:
            raise UserError("--budget steps is for a grid: a search compares trials at equal examples")
        for name in others.keys() - type(self).model_fields.keys():
            raise UserError(f"{given.flag(name)} is for a grid, and {self.name} is a search")
        listed = {name.removesuffix("s"): Choice(values) for name, values in given.listed.items()}
        listed.pop("seed", None)
        models = {"model": given.demo_models[0]} if given.demo_models else {}
        ranges = {name: values for name, values in given.demo_ranges.items() if name in self.parameters}
        says = {**self.parameters, **self.settings}
        said = given.ranked({**given.fields, **listed}, says, {**given.demo, **models, **ranges})
        settings = {**said, **given.computed(said)}
        parameters = {name: settings.pop(name) for name in said if isinstance(said[name], Parameter)}
        for name in [name for name, value in parameters.items() if len(value.ends) == 1]:
            settings[name] = parameters.pop(name).ends[0]
        if not parameters:
            raise UserError("every parameter has one value: there is nothing to search")
        if others.get("sampler") == "gp":
            others.setdefault("stopping", "none")
        if seeds:
            others["seed"] = seeds[0]
        found = self.replace(parameters=parameters, settings=settings, **others)
        for _ in found.corners():  # each validates a TrialConfig
            pass
        return found

    def stages(self, around: Around) -> list[Stage]:
        """The search, then its best again."""
        search = Search(self, around)
        return [search, Confirm(search, self.confirm_seeds)]

    def budget_line(self) -> str:
        """None: the budget itself may be searched."""
        return ""

    def with_models(self, named: Callable[[str], str]) -> "SearchSpace":
        """The search with its models under other names."""
        models = tuple(map(named, self.models))
        if "model" in self.parameters:
            return self.replace(parameters={**self.parameters, "model": Choice(models)})
        return self.replace(settings={**self.settings, "model": models[0]})

    def config(self, values: Mapping[str, Any]) -> TrialConfig:
        """The trial with these values of the parameters."""
        return TrialConfig(**{**self.settings, "seed": self.seed, **values})

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether these are values of all parameters, each within its range."""
        return values.keys() == self.parameters.keys() and all(
            parameter.holds(values[name]) for name, parameter in self.parameters.items()
        )

    def corners(self) -> Iterator[TrialConfig]:
        """The trials with values from the ends of the ranges; UserError for one that is not possible."""
        ends = [parameter.ends for parameter in self.parameters.values()]
        for values in itertools.islice(itertools.product(*ends), _MOST_CORNERS):
            yield self.config(dict(zip(self.parameters, values, strict=True)))

    def identity(self) -> dict[str, Any]:
        """What the proposals are a function of, beside the outcomes; JSON."""
        how = self.model_dump(include={"generation_size", "sampler", "stopping", "seed"})
        box = self.model_dump(mode="json")["parameters"]
        return how | box | {name: v for name, v in self.settings.items() if name not in LEARN_NOTHING}
