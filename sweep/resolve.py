"""The space that a study answers: the question's own, with the options applied."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import UserError
from search_spaces import SPACES, SearchSpace, Space
from search_spaces.search_space import Choice, LogUniform, Uniform
from search_spaces.space import AXES
from sweep.command_line import flag_of
from sweep.options import SweepOptions
from trainables import demo_reviews

CPU_PHYSICAL_BATCH_SIZE = 64  # on a CPU it makes no difference
_RANGES = (Choice, Uniform, LogUniform)
_SEARCH_OPTIONS = ("trials", "sampler", "stopping", "generation_size", "confirm_seeds")
_DEMO_MODELS = ("bert-tiny", "modernbert-tiny")
_DEMO_BASE_LR = 5e-4
_DEMO_BASE_LRS = LogUniform(1e-4, 1e-2)
# fp32, so that its tables are the same everywhere
_DEMO_SETTINGS: dict[str, Any] = {"dataset": demo_reviews.NAME, "precision": "fp32"}


def first_said(
    *,
    flag: Mapping[str, Any],
    own: Mapping[str, Any],
    demo: Mapping[str, Any],
    default: Mapping[str, Any],
) -> dict[str, Any]:
    """Each name with the value of the first that says it: a flag, one's own file, ``--demo``, a default.

    What a space says that comes with the program is a default.
    """
    return {**default, **demo, **own, **flag}


def resolve_space(options: SweepOptions, bf16_available: bool) -> Space | SearchSpace:
    """The space with the flags and ``--demo`` applied, as ``first_said`` ranks them.

    Cheap: a misspelled flag value is found before PyTorch, Ray and MLflow have been imported.
    Raises UserError for names that do not exist and for ``--set`` on what has a flag of its own.
    """
    space = options.chosen_space
    if isinstance(space, SearchSpace):
        if options.budget == "steps":
            raise UserError("--budget steps is for a grid: a search compares trials at equal examples")
        check_copy(options)
        return _narrowed(space, options, bf16_available)
    for name in _SEARCH_OPTIONS:
        if getattr(options, name) is not None:
            raise UserError(f"{flag_of(SweepOptions, name)} is for a search, and {space.name} is a grid")
    says = {f"{axis}s": space.axis_values(axis) for axis in AXES}
    listed = {name: tuple(given) for name in says if (given := getattr(options, name))}
    axes = _ranked(options, listed, says, {"models": _DEMO_MODELS})
    demo = _DEMO_SETTINGS | {"base_lr": _DEMO_BASE_LR}
    said = _ranked(options, _flags(options), space.settings, demo)
    settings = said | _computed(said, options, bf16_available)
    baselines = {
        axis: baseline if baseline in axes[f"{axis}s"] else axes[f"{axis}s"][0]
        for axis, baseline in space.baselines.items()
    }
    control_seeds = options.control_seeds
    if space.control_seeds and not control_seeds:  # as many times those of the others as in the space
        several = len(axes["seeds"]) > 1
        control_seeds = space.control_seeds * len(axes["seeds"]) // len(space.seeds) if several else None
    budget = options.budget or space.budget
    return space.replace(
        **axes, settings=settings, budget=budget, baselines=baselines, control_seeds=control_seeds
    )


def sizes_passes(options: SweepOptions) -> bool:
    """Whether nobody says how many examples a pass takes, so that the plan may."""
    said_by_space = options.chosen_space.settings
    return options.physical_batch_size == "auto" and "physical_batch_size" not in said_by_space


def _ranked(
    options: SweepOptions, flag: Mapping[str, Any], space_says: Mapping[str, Any], demo: Mapping[str, Any]
) -> dict[str, Any]:
    """Whoever says it first; the space speaks for its author, who may be the person at the keyboard."""
    is_own = options.chosen_space.name not in SPACES
    return first_said(
        flag=flag,
        own=space_says if is_own else {},
        demo=demo if options.demo else {},
        default={} if is_own else space_says,
    )


def _narrowed(space: SearchSpace, options: SweepOptions, bf16_available: bool) -> SearchSpace:
    """The search likewise: a list narrows a parameter, a single value fixes it."""
    if options.seeds and len(options.seeds) > 1:
        raise UserError(
            "a search takes one --seed: --confirm-seeds says how often its best is trained again"
        )
    if options.control_seeds:
        raise UserError(f"--control-seeds is for a grid, and {space.name} is a search")
    listed = {axis: getattr(options, f"{axis}s") for axis in AXES if axis != "seed"}
    choices = {axis: Choice(tuple(values)) for axis, values in listed.items() if values}
    is_searched = space.parameters.keys()
    demo = _DEMO_SETTINGS | {
        "model": Choice(_DEMO_MODELS) if "model" in is_searched else _DEMO_MODELS[0],
        "base_lr": _DEMO_BASE_LRS if "base_lr" in is_searched else _DEMO_BASE_LR,
    }
    said = _ranked(options, _flags(options) | choices, {**space.parameters, **space.settings}, demo)
    parameters = {name: value for name, value in said.items() if isinstance(value, _RANGES)}
    settings = {name: value for name, value in said.items() if name not in parameters}
    settings |= _computed(said, options, bf16_available)
    for name in [name for name, value in parameters.items() if value.ends == value.ends[:1]]:
        settings[name] = parameters.pop(name).ends[0]
    if not parameters:
        raise UserError("every parameter has one value: there is nothing to search")
    given = {name: getattr(options, name) for name in _SEARCH_OPTIONS}
    changes = {name: value for name, value in given.items() if value is not None}
    if options.sampler == "gp":
        changes.setdefault("stopping", "none")
    if options.seeds:
        changes["seed"] = options.seeds[0]
    narrowed = space.replace(parameters=parameters, settings=settings, **changes)
    for _ in narrowed.corners():  # each validates a TrialConfig
        pass
    return narrowed


def check_copy(options: SweepOptions) -> None:
    """Raise UserError for an Optuna storage that cannot work, or that is MLflow's database."""
    url = options.optuna_storage
    if not re.match(r"(sqlite|postgresql|mysql)(\+\w+)?://", url):
        raise UserError(f"--optuna-storage '{url}' is not the URL of a database: use sqlite:///FILE.db")
    ours, store = (f"{at}".removeprefix("sqlite:///") for at in (url, options.tracking_uri))
    if Path(ours).absolute() == Path(store).absolute():
        raise UserError("--optuna-storage is MLflow's database: each needs one of its own")


def _flags(options: SweepOptions) -> dict[str, Any]:
    """The TrialConfig fields that flags say."""
    said = dict(options.settings)
    if options.physical_batch_size != "auto":
        said["physical_batch_size"] = _physical_batch_size(options.physical_batch_size)
    if options.precision != "auto":
        said["precision"] = options.precision
    return said


def _computed(said: Mapping[str, Any], options: SweepOptions, bf16_available: bool) -> dict[str, Any]:
    """What follows from the machine where nobody says it."""
    computed: dict[str, Any] = {}
    if "physical_batch_size" not in said:
        computed["physical_batch_size"] = CPU_PHYSICAL_BATCH_SIZE  # the plan knows whether there is a GPU
    if "precision" not in said:
        computed["precision"] = _precision(options, bf16_available)
    return computed


def _physical_batch_size(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--physical-batch-size must be a number or auto, not '{text}'") from None


def _precision(options: SweepOptions, bf16_available: bool) -> str:
    if options.ray_address:
        raise UserError(
            "with --ray-address say --precision bf16 or fp32: what this machine computes in says "
            "nothing about the cluster's"
        )
    return "bf16" if bf16_available else "fp32"
