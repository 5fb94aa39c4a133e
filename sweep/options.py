"""What the user asked for, before it is resolved into a plan."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from search_spaces import SPACES, Space, UserError, find_space
from search_spaces.space import AXES
from search_spaces.trial_config import parse_setting
from trainables import demo_reviews

AUTO_PHYSICAL_BATCH_SIZE = 64
_DEMO_MODELS = ("bert-tiny", "modernbert-tiny")
_DEMO_BASE_LR = 5e-4


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
    tracking_uri: str = "sqlite:///mlflow.db"
    storage_path: str = "ray_results"
    results_path: str = "results"
    ray_address: str | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: float | None = None
    max_concurrent: int | None = None

    @property
    def study(self) -> str:
        """The study's name: ``--name``, else the space's, so that a demo never mixes with the study."""
        return self.name or (f"{self.space}-demo" if self.demo else self.space)


def resolve_space(options: SweepOptions, bf16_available: bool) -> Space:
    """The space with the flags applied: explicit flags beat ``--demo``, which beats the space.

    Cheap: a misspelled flag value is found before PyTorch, Ray and MLflow have been imported.
    Raises UserError for names that do not exist and for ``--set`` on what has a flag of its own.
    """
    space = find_space(options.space)
    settings = dict(space.settings)
    if options.demo:
        space = replace(space, models=_DEMO_MODELS)
        settings |= {"dataset": demo_reviews.NAME, "base_lr": _DEMO_BASE_LR}
    settings |= options.settings | _assigned(options.assignments)
    settings["physical_batch_size"] = _physical_batch_size(options.physical_batch_size)
    settings["precision"] = _precision(options.precision, bf16_available)
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


def _precision(precision: str, bf16_available: bool) -> str:
    if precision == "auto":
        return "bf16" if bf16_available else "fp32"
    return precision


def check_distinct(space: Space) -> None:
    """Raise UserError where an axis names a value twice."""
    for axis in ("models", "target_batch_sizes", "scaling_rules", "seeds"):
        values = getattr(space, axis)
        if len(set(values)) < len(values):
            raise UserError(f"{axis.replace('_', ' ')} are named twice: {', '.join(map(str, values))}")
