"""The options of every command. Add one: a field here."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from errors import UserError, unknown
from search_spaces import SPACES, SearchSpace, Space, TrialConfig, find_space
from search_spaces.fields import user_error
from search_spaces.search_space import SAMPLERS
from search_spaces.space import AXES, MOST_SEEDS
from search_spaces.trial_config import FIELDS
from sweep.command_line import Options, flag_of, option

_RESOLVED = ("physical_batch_size", "precision")  # from "auto" to a TrialConfig field
_CELLS, _DATA, _TRAINING = "cells (defaults come from the space)", "data", "training"
_SEARCH = "search (of a space such as best_config; defaults come from the space)"
_FORECAST = "what --dry-run reckons with (default: what an earlier study on the same data shows)"
_PLACES = "where it runs and what it leaves"
Kind = TypeVar("Kind", bound=Options)
_EPILOG = """\
other commands:
  tune_main.py report --name STUDY    rebuild a study's tables from MLflow alone
  tune_main.py analyze --name STUDY   look inside its models: attention, errors
  tune_main.py submit --address URL --space SPACE …   run it as a job on a Ray cluster
  tune_main.py status, logs or stop --address URL --name STUDY   its jobs there
  tune_main.py verify [--models …]    prove on this machine that accumulation is exact
"""


_TRACKING_URI = option(
    "MLflow (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    _PLACES,
    # the default is the store that a bare `mlflow ui` reads
    default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db",
)
_ARTIFACT_HOST = option(
    "hosts beside the store's own that may keep its artifacts and get MLflow's password",
    _PLACES,
    "HOST",
    default=(),
)
_RESULTS_PATH = option("folder for reports (default results)", _PLACES, default="results")


class SweepOptions(Options):
    """Run a batch-size x learning-rate-scaling study as a Ray Tune sweep."""

    space: str = option("the question to answer (see --list-spaces), or a file of your own", default="")
    list_spaces: bool = option("list the questions and exit", default=False)
    dry_run: bool = option("print the plan, train nothing", default=False)
    calibrate: bool = option(
        "with --dry-run: time a few steps of each model on this machine", default=False
    )
    fresh: bool = option("train everything anew, also what an earlier run has finished", default=False)
    demo: bool = option(
        "generated reviews, tiny encoders, fp32, where neither a flag nor your own file says otherwise",
        default=False,
    )

    models: Sequence[str] | None = option("short names, hub ids or folders", _CELLS, "MODEL")
    target_batch_sizes: Sequence[int] | None = option("examples per optimizer step", _CELLS, "N")
    scaling_rules: Sequence[str] | None = option("fixed, sqrt, linear", _CELLS, "RULE")
    seeds: Sequence[int] | None = option("default 42", _CELLS, "N", flag="--seed")
    control_seeds: int | None = option(
        "seeds of the cells that others are compared with", _CELLS, "N", ge=1, le=MOST_SEEDS
    )

    trials: int | None = option("how many to search", _SEARCH, "N", ge=1)
    sampler: str | None = option(", ".join(SAMPLERS), _SEARCH)
    stopping: str | None = option("none, or median: stop trials below it", _SEARCH, "RULE")
    generation_size: int | None = option("trials proposed at once, 1 to 32", _SEARCH, "N", ge=1, le=32)
    confirm_seeds: int | None = option("seeds to train the best again", _SEARCH, "N", ge=1, le=100)
    optuna_storage: str = option(
        "a copy for optuna-dashboard (default sqlite:///optuna.db)",
        _SEARCH,
        "URL",
        default="sqlite:///optuna.db",
    )

    # fields of TrialConfig, which has their defaults and their checks
    dataset: str | None = option("a hub id, a folder, or a CSV, TSV, JSON or Parquet file", _DATA)
    text_column: str | None = option("default text", _DATA)
    label_column: str | None = option("default label", _DATA)
    group_column: str | None = option("what no two splits may share, as a patient or a film", _DATA)
    encoding: str | None = option("of CSV, TSV and JSON files (default utf-8)", _DATA)
    duplicates: str | None = option(
        "exact (default): drop equal texts; folded: blanks and case do not count; keep", _DATA, "KIND"
    )
    splits: str | None = option(
        "pooled (default): cut anew, 8:1:1; own: as the data set has them", _DATA, "KIND"
    )
    max_length: int | None = option("default 128", _DATA, "TOKENS")
    train_size: int | None = option("train on only N examples", _DATA, "N")
    eval_size: int | None = option("val and test on only N each", _DATA, "N")
    epochs: int | None = option("default 5", _TRAINING)
    budget: str | None = option(
        "what all cells spend alike: examples, or the steps of the reference batch size", _TRAINING, "KIND"
    )
    evaluations: int | None = option(
        "in every trial, at equal fractions of its budget (default: as many as epochs)", _TRAINING, "N"
    )
    base_lr: float | None = option("at the reference batch size (default 5e-5)", _TRAINING)
    engine: str | None = option("torch (default) or accelerate", _TRAINING)

    physical_batch_size: str = option(
        "per pass; does not change what is learned", _TRAINING, "N|auto", default="auto"
    )
    precision: str = option("auto (default), fp32 or bf16", _TRAINING, default="auto")
    assignments: Sequence[str] = option(
        "any other TrialConfig field", _TRAINING, "KEY=VALUE", default=(), flag="--set", repeated=True
    )

    assume_seed_sd: float | None = option(
        "standard deviation of a cell's test accuracy over seeds", _FORECAST, "POINTS", gt=0, le=50
    )
    assume_disagreement: float | None = option(
        "test examples that only one of two trainings gets right, as 0.06", _FORECAST, "SHARE", gt=0, le=1
    )

    name: str | None = option("the study's name (default: the space's)", _PLACES)
    gpus_per_trial: float | None = option(
        "1 (default where there is a GPU), a fraction, or 0: a trial uses one device",
        _PLACES,
        "N",
        ge=0,
        le=1,
    )
    cpus_per_trial: float | None = option("default 1, or a GPU's share", _PLACES, "N", gt=0)
    max_concurrent: int | None = option("trials at once", _PLACES, "N", ge=1)
    max_failures: int = option(
        "attempts after a trial's first failure (default 2)", _PLACES, "N", default=2, ge=0
    )
    store_patience: float = option(
        "how long to wait for an MLflow that is away (default 600)", _PLACES, "SECONDS", default=600.0, ge=0
    )
    take_over: bool = option(
        "run a study that was killed on another machine with another storage", _PLACES, default=False
    )
    ray_address: str | None = option("join this Ray cluster instead of starting one", _PLACES)
    dashboard_host: str = option(
        "where Ray's dashboard listens (default 127.0.0.1)",
        _PLACES,
        "ADDRESS",
        default_factory=lambda: os.environ.get("BATCHSCALE_DASHBOARD_HOST") or "127.0.0.1",
    )
    storage_path: str = option(
        "folder for checkpoints (default ray_results)", _PLACES, default="ray_results"
    )
    tracking_uri: str = _TRACKING_URI
    artifact_host: Sequence[str] = _ARTIFACT_HOST
    results_path: str = _RESULTS_PATH

    @cached_property
    def chosen_space(self) -> Space | SearchSpace:
        """What ``--space`` says, before other options apply; a file of one's own is run once."""
        return find_space(self.space)

    @property
    def study(self) -> str:
        """The study's name: ``--name``, else the space's, so that a demo never mixes with the study."""
        if self.name:
            return self.name
        name = self.chosen_space.name
        return f"{name}-demo" if self.demo else name

    @property
    def settings(self) -> dict[str, Any]:
        """The TrialConfig fields that were given, by flags of their own or by ``--set``."""
        given = {name: value for name, value in self if name in FIELDS and value is not None}
        assigned = _assigned(self.assignments)
        return {k: v for k, v in given.items() if k not in _RESOLVED} | assigned


_ADDRESS = option("of the cluster's dashboard: http://host:8265", _PLACES, "URL", default=...)


class SubmitOptions(SweepOptions):
    """Run a study as a job on a Ray cluster. Options beside --address are those of the study."""

    address: str = _ADDRESS


class JobOptions(Options):
    """Look at, follow or stop the jobs of studies on a Ray cluster."""

    address: str = _ADDRESS
    name: str | None = option("the study")


class ReportOptions(Options):
    """Rebuild a study's tables from MLflow alone."""

    name: str = option("the study", default=...)
    target_val_acc: float | None = option(
        "also show steps and examples to this val_acc", metavar="0.85", gt=0, le=1
    )
    tracking_uri: str = _TRACKING_URI
    artifact_host: Sequence[str] = _ARTIFACT_HOST
    results_path: str = _RESULTS_PATH


class AnalyzeOptions(Options):
    """Attention maps and errors of a study's best-epoch models, on the CPU."""

    name: str = option("the study", default=...)
    texts: Sequence[str] = option(
        "show the attention in this sentence, not in chosen test sentences; may be repeated",
        metavar="SENTENCE",
        default=(),
        flag="--text",
        repeated=True,
    )
    rule: str | None = option("the scaling rule that pictures show (default fixed)")
    layer: int | None = option("from 1 (default: the last)", metavar="N")
    head: int | None = option("from 1 (default: the mean over heads)", metavar="N")
    tracking_uri: str = _TRACKING_URI
    artifact_host: Sequence[str] = _ARTIFACT_HOST
    results_path: str = _RESULTS_PATH


class VerifyOptions(Options):
    """Compare accumulated gradients with whole-window gradients in float64."""

    models: Sequence[str] | None = option("short names or folders", metavar="MODEL")


def parse_options(kind: type[Kind], argv: Sequence[str], command: str = "sweep") -> Kind:
    """The options of a command; UserError for one out of range."""
    options = kind.parse("", argv, _EPILOG) if command == "sweep" else kind.parse(command, argv)
    if isinstance(options, SweepOptions) and not (options.space or options.list_spaces):
        raise UserError("give --space NAME or FILE.py, or --list-spaces to see the names")
    if isinstance(options, SweepOptions) and options.calibrate:
        _check_calibrate(options)
    return options


def _check_calibrate(options: SweepOptions) -> None:
    if not options.dry_run:
        raise UserError("--calibrate trains nothing: give it with --dry-run")
    if options.ray_address:
        raise UserError("--calibrate times this machine, not a cluster: leave --ray-address out")


def list_spaces() -> str:
    """Every question, by the name that ``--space`` takes."""
    width = max(map(len, SPACES))
    return "\n".join(f"{name:{width}}  {space.question}" for name, space in SPACES.items())


def _assigned(assignments: Sequence[str]) -> dict[str, Any]:
    values = dict(parse_setting(text) for text in assignments)
    flags = {axis: flag_of(SweepOptions, f"{axis}s") for axis in AXES}
    flags |= {name: flag_of(SweepOptions, name) for name in _RESOLVED}
    for key in values:
        if key in flags:
            raise UserError(f"--set {key}=… is not possible: use {flags[key]}")
        if key == "steps":
            raise UserError("--set steps=… is not possible: use --budget steps with --epochs")
        if key in {"dataset_digest", "model_digest"}:
            what = "data" if key == "dataset_digest" else "model"
            raise UserError(f"--set {key}=… is not possible: it is computed from the {what}")
    return values


def parse_setting(text: str) -> tuple[str, Any]:
    """``"head_dropout=0.2"`` -> ``("head_dropout", 0.2)``, typed as the TrialConfig field of that name."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"'{text}' is not of the form key=value")
    if name not in FIELDS:
        raise unknown("configuration key", name, FIELDS)
    field = TrialConfig.model_fields[name]
    if field.default is None and value.lower() in {"", "none", "all"}:
        return name, None
    kind: Any = Annotated[field.annotation, field]
    try:
        return name, TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise user_error(error, TrialConfig, lambda _: name) from None
