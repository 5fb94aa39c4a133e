"""What the user asked for, before it is resolved into a plan."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from errors import UserError
from search_spaces import SPACES, Space, find_space
from search_spaces.space import AXES
from search_spaces.trial_config import parse_setting
from trainables import demo_reviews

AUTO_PHYSICAL_BATCH_SIZE = 64  # of the CPU, where it makes no difference; a GPU is measured
_DEMO_MODELS = ("bert-tiny", "modernbert-tiny")
_DEMO_BASE_LR = 5e-4


def default_tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI`` where it is set, else the store that a bare ``mlflow ui`` reads."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The command line of a sweep. ``settings`` are TrialConfig fields that flags gave explicitly."""

    space: str
    demo: bool = False
    models: Sequence[str] | None = None
    target_batch_sizes: Sequence[int] | None = None
    scaling_rules: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    physical_batch_size: str = "auto"
    precision: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    assignments: Sequence[str] = ()  # of --set

    name: str | None = None
    tracking_uri: str = field(default_factory=default_tracking_uri)
    storage_path: str = "ray_results"
    results_path: str = "results"
    ray_address: str | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: float | None = None
    max_concurrent: int | None = None
    max_failures: int = 2  # of a trial, each of which is followed by another attempt
    fresh: bool = False
    store_patience: float = 600.0  # seconds that the end of a sweep waits for a store that is away

    @property
    def study(self) -> str:
        """The study's name: ``--name``, else the space's, so that a demo never mixes with the study."""
        return self.name or (f"{self.space}-demo" if self.demo else self.space)


def resolve_space(options: SweepOptions, bf16_available: bool) -> Space:
    """The space with the flags applied: explicit flags beat ``--demo``, which beats the space.

    Cheap: a misspelled flag value is found before PyTorch, Ray and MLflow have been imported.
    Raises UserError for names that do not exist and for ``--set`` on what has a flag of its own.
    """
    _check_resources(options)
    _check_places(options)
    space = find_space(options.space)
    settings = dict(space.settings)
    if options.demo:
        space = replace(space, models=_DEMO_MODELS)
        settings |= {"dataset": demo_reviews.NAME, "base_lr": _DEMO_BASE_LR}
    settings |= options.settings | _assigned(options.assignments)
    settings["physical_batch_size"] = _physical_batch_size(options.physical_batch_size)
    settings["precision"] = _precision(options, bf16_available)
    space = replace(
        space,
        models=tuple(options.models or space.models),
        target_batch_sizes=tuple(options.target_batch_sizes or space.target_batch_sizes),
        scaling_rules=tuple(options.scaling_rules or space.scaling_rules),
        seeds=tuple(options.seeds or space.seeds),
        settings=settings,
    )
    check_distinct(space)
    space.cells()  # every TrialConfig is validated here, before anything is loaded
    return space


def list_spaces() -> str:
    """Every question, by the name that ``--space`` takes."""
    width = max(map(len, SPACES))
    return "\n".join(f"{name:{width}}  {space.question}" for name, space in SPACES.items())


def _assigned(assignments: Sequence[str]) -> dict[str, Any]:
    values = dict(parse_setting(text) for text in assignments)
    flags = {axis: "--" + axis.replace("_", "-") + "s" for axis in AXES} | {
        "seed": "--seed",
        "physical_batch_size": "--physical-batch-size",
        "precision": "--precision",
    }
    for key in values:
        if key in flags:
            raise UserError(f"--set {key}=… is not possible: use {flags[key]}")
        if key == "dataset_digest":
            raise UserError("--set dataset_digest=… is not possible: it is computed from the data")
    return values


def _physical_batch_size(text: str) -> int:
    if text == "auto":
        return AUTO_PHYSICAL_BATCH_SIZE
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--physical-batch-size must be a number or auto, not '{text}'") from None


def _precision(options: SweepOptions, bf16_available: bool) -> str:
    if options.precision != "auto":
        return options.precision
    if options.ray_address:
        raise UserError(
            "with --ray-address say --precision bf16 or fp32: what this machine computes in says "
            "nothing about the cluster's"
        )
    return "bf16" if bf16_available else "fp32"


def _check_resources(options: SweepOptions) -> None:
    gpus, cpus = options.gpus_per_trial, options.cpus_per_trial
    if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer())):
        raise UserError(f"--gpus-per-trial must be a fraction up to 1 or a whole number, not {gpus:g}")
    if cpus is not None and not 0 < cpus < math.inf:
        raise UserError(f"--cpus-per-trial must be positive, not {cpus:g}")
    if options.max_failures < 0:
        raise UserError(f"--max-failures must not be negative, not {options.max_failures}")
    if not 0 <= options.store_patience < math.inf:
        raise UserError(f"--store-patience must be seconds, not {options.store_patience:g}")
    if options.max_concurrent is not None and options.max_concurrent < 1:
        raise UserError(f"--max-concurrent must be at least 1, not {options.max_concurrent}")


def _check_places(options: SweepOptions) -> None:
    places = {
        "--tracking-uri": options.tracking_uri,
        "--storage-path": options.storage_path,
        "--results-path": options.results_path,
        "--ray-address": options.ray_address or "",
    }
    for flag, place in places.items():
        check_characters(flag, place)


def check_characters(flag: str, place: str) -> None:
    """Raise UserError for a path or an address that no system could have."""
    if "\0" in place or not place.isprintable():
        raise UserError(f"{flag} '{place}' holds a character that cannot stand there")


def check_distinct(space: Space) -> None:
    """Raise UserError where an axis names a value twice."""
    for axis in AXES:
        values = space.axis_values(axis)
        if len(set(values)) < len(values):
            raise UserError(f"{axis.replace('_', ' ')}s are named twice: {', '.join(map(str, values))}")
