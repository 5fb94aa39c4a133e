"""The space that a study answers: the question's own, with the options applied."""

import re
from pathlib import Path
from typing import Any

from errors import UserError
from search_spaces import SearchSpace, Space
from search_spaces.search_space import Choice, LogUniform, Parameter
from search_spaces.space import AXES
from sweep.command_line import flag_of
from sweep.options import SweepOptions
from trainables import demo_reviews

CPU_PHYSICAL_BATCH_SIZE = 64  # on a CPU it makes no difference
_SEARCH_OPTIONS = ("trials", "sampler", "stopping", "generation_size", "confirm_seeds")
_DEMO_MODELS = ("bert-tiny", "modernbert-tiny")
_DEMO_BASE_LR = 5e-4
_DEMO_BASE_LRS = LogUniform(1e-4, 1e-2)


def resolve_space(options: SweepOptions, bf16_available: bool) -> Space | SearchSpace:
    """The space with the flags applied: explicit flags beat ``--demo``, which beats the space.

    Cheap: a misspelled flag value is found before PyTorch, Ray and MLflow have been imported.
    Raises UserError for names that do not exist and for ``--set`` on what has a flag of its own.
    """
    space = options.chosen_space
    settings = dict(space.settings)
    if options.demo:
        settings |= {"dataset": demo_reviews.NAME, "base_lr": _DEMO_BASE_LR}
    settings |= options.settings
    settings["physical_batch_size"] = _physical_batch_size(options.physical_batch_size)
    settings["precision"] = _precision(options, bf16_available)
    if isinstance(space, SearchSpace):
        if options.budget == "steps":
            raise UserError("--budget steps is for a grid: a search compares trials at equal examples")
        check_copy(options)
        return _narrowed(space, options, settings)
    for name in _SEARCH_OPTIONS:
        if getattr(options, name) is not None:
            raise UserError(f"{flag_of(SweepOptions, name)} is for a search, and {space.name} is a grid")
    axes = {f"{axis}s": space.axis_values(axis) for axis in AXES}
    if options.demo:
        axes["models"] = _DEMO_MODELS
    axes |= {name: tuple(given) for name in axes if (given := getattr(options, name))}
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


def _narrowed(space: SearchSpace, options: SweepOptions, settings: dict[str, Any]) -> SearchSpace:
    """The search with the flags applied: a list narrows a parameter, a single value fixes it."""
    parameters = dict(space.parameters)
    if options.demo:
        demo: dict[str, Parameter] = {"model": Choice(_DEMO_MODELS), "base_lr": _DEMO_BASE_LRS}
        parameters |= {name: value for name, value in demo.items() if name in parameters}
        if "model" in settings:
            settings["model"] = _DEMO_MODELS[0]
    if options.seeds and len(options.seeds) > 1:
        raise UserError(
            "a search takes one --seed: --confirm-seeds says how often its best is trained again"
        )
    if options.control_seeds:
        raise UserError(f"--control-seeds is for a grid, and {space.name} is a search")
    listed = {axis: getattr(options, f"{axis}s") for axis in AXES if axis != "seed"}
    parameters |= {axis: Choice(tuple(values)) for axis, values in listed.items() if values}
    parameters = {name: value for name, value in parameters.items() if name not in options.settings}
    for name in [name for name, value in parameters.items() if value.ends == value.ends[:1]]:
        settings[name] = parameters.pop(name).ends[0]
    if not parameters:
        raise UserError("every parameter has one value: there is nothing to search")
    settings = {name: value for name, value in settings.items() if name not in parameters}
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


def _physical_batch_size(text: str) -> int:
    if text == "auto":
        return CPU_PHYSICAL_BATCH_SIZE  # the plan knows whether there is a GPU
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--physical-batch-size must be a number or auto, not '{text}'") from None


def _precision(options: SweepOptions, bf16_available: bool) -> str:
    if options.precision != "auto":
        return options.precision
    if options.demo:
        return "fp32"  # so that its tables are the same everywhere
    if options.ray_address:
        raise UserError(
            "with --ray-address say --precision bf16 or fp32: what this machine computes in says "
            "nothing about the cluster's"
        )
    return "bf16" if bf16_available else "fp32"
