"""The space that a study answers: the question's own, with the options applied."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import UserError
from search_spaces import SPACES, SearchSpace, Space
from search_spaces.given import Given
from search_spaces.search_space import Choice, LogUniform
from search_spaces.space import AXES
from sweep.command_line import flag_of
from sweep.options import SweepOptions
from trainables import demo_reviews

CPU_PHYSICAL_BATCH_SIZE = 64  # on a CPU it makes no difference
# options that are fields of a space
_OF_SPACES = "budget control_seeds trials sampler stopping generation_size confirm_seeds".split()
_DEMO_MODELS = ("bert-tiny", "modernbert-tiny")
# fp32, so that its tables are the same everywhere
_DEMO_FIELDS: dict[str, Any] = {"dataset": demo_reviews.NAME, "precision": "fp32", "base_lr": 5e-4}
_DEMO_RANGES = {"model": Choice(_DEMO_MODELS), "base_lr": LogUniform(1e-4, 1e-2)}


def resolve_space(options: SweepOptions, bf16_available: bool) -> Space | SearchSpace:
    """The space with the flags and ``--demo`` applied, as ``first_said`` ranks them.

    Cheap: a misspelled flag value is found before PyTorch, Ray and MLflow have been imported.
    Raises UserError for names that do not exist and for ``--set`` on what has a flag of its own.
    """
    check_copy(options)
    space, demo = options.chosen_space, options.demo
    axes = {f"{axis}s": getattr(options, f"{axis}s") for axis in AXES}
    others = {name: getattr(options, name) for name in _OF_SPACES}
    given = Given(
        fields=_flags(options),
        listed={name: tuple(values) for name, values in axes.items() if values},
        others={name: value for name, value in others.items() if value is not None},
        demo=_DEMO_FIELDS if demo else {},
        demo_models=_DEMO_MODELS if demo else (),
        demo_ranges=_DEMO_RANGES if demo else {},
        is_own=space.name not in SPACES,
        computed=lambda said: _computed(said, options, bf16_available),
        flag=lambda name: flag_of(SweepOptions, name),
    )
    return space.resolved(given)


def sizes_passes(options: SweepOptions) -> bool:
    """Whether nobody says how many examples a pass takes, so that the plan may."""
    said_by_space = options.chosen_space.settings
    return options.physical_batch_size == "auto" and "physical_batch_size" not in said_by_space


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
