"""``--physical-batch-size auto`` on GPUs: measured once per model and kind of trial, then remembered."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch

from errors import last_line
from search_spaces import TrialConfig
from sweep.assets import ModelAssets
from sweep.cluster import Resources
from sweep.console import console
from sweep.plan import Plan
from trainables.encoder_trainable import quiet_worker, worker_device
from trainables.encoders import EncoderAssets
from trainables.largest_batch import largest_physical_batch_size
from trainables.memory import DoesNotFitError
from trainables.trial import TrialAssets

FILE_NAME = "physical_batch_sizes.json"


@dataclass(frozen=True)
class FittingSize:
    """The largest physical batch size that fits, of those up to ``limit``."""

    physical_batch_size: int
    limit: int

    def answers(self, limit: int) -> bool:
        """Whether a search up to ``limit`` could find nothing else."""
        size = self.physical_batch_size
        return size < self.limit or limit <= size


@dataclass(frozen=True)
class _Search:
    """One model's question, and its answer as far as a worker has come."""

    config: TrialConfig
    limit: int
    device: str = ""
    key: str = ""
    found: FittingSize | None = None
    source: str = "measured"
    problem: str = ""


def with_measured_sizes(
    plan: Plan,
    to_train: Sequence[TrialConfig],
    assets: Mapping[str, ModelAssets],
    resources: Resources,
    storage: Path,
) -> Plan:
    """The plan, with the physical batch size that fits onto this GPU for the models to be trained.

    Nothing changes where a size was given or trials run on the CPU. What was measured is kept in
    ``storage``. A model that cannot be measured keeps its size, which says so here and is halved by its
    trials where memory runs out. In a cluster of unlike GPUs the one that Ray picks is measured.
    """
    if not (plan.measures_physical and resources.gpus and to_train):
        return plan
    with console.status("measuring how many examples fit into memory at once"):
        return resized(plan, measured_sizes(to_train, assets, resources, storage))


def resized(plan: Plan, sizes: Mapping[str, int]) -> Plan:
    """The plan at these physical batch sizes by model; no window is larger than its target batch size."""
    cells = [
        cell.replace(physical_batch_size=min(sizes[cell.model], cell.target_batch_size))
        if cell.model in sizes
        else cell
        for cell in plan.cells
    ]
    return replace(plan, cells=cells, measures_physical=False)


def measured_sizes(
    configs: Sequence[TrialConfig],
    assets: Mapping[str, ModelAssets],
    resources: Resources,
    storage: Path,
) -> dict[str, int]:
    """Model -> the largest physical batch size that fits, from memory or by a search in a Ray worker."""
    path = storage / FILE_NAME
    remembered = read_sizes(path)
    searches = [_search(model, configs, assets) for model in dict.fromkeys(c.model for c in configs)]
    references = {search.config.model: ray.put(assets[search.config.model].trial) for search in searches}
    remote = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(_run_searches)
    try:
        answers = ray.get(remote.remote(searches, references, remembered, resources.gpus))
    except ray.exceptions.RayError as error:
        answers = [replace(search, problem=last_line(error)) for search in searches]
    for answer in answers:
        console.print(_line(answer), markup=False)
    found = {answer.key: answer.found for answer in answers if answer.found}
    if any(remembered.get(key) != size for key, size in found.items()):
        write_sizes(path, found)
    return {a.config.model: a.found.physical_batch_size for a in answers if a.found}


def read_sizes(path: Path) -> dict[str, FittingSize]:
    """What earlier studies found; entries, or a whole file, that make no sense are as good as none."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    sizes = {}
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        with contextlib.suppress(TypeError):
            size = FittingSize(**entry)
            if _is_count(size.physical_batch_size) and _is_count(size.limit):
                sizes[key] = size
    return sizes


def write_sizes(path: Path, found: Mapping[str, FittingSize]) -> None:
    """Add to what the file holds by now, in one piece. A folder that refuses costs the next search."""
    entries = {key: vars(size) for key, size in (read_sizes(path) | dict(found)).items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(entries, indent=1, sort_keys=True))
        partial.replace(path)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _search(model: str, configs: Sequence[TrialConfig], assets: Mapping[str, ModelAssets]) -> _Search:
    of_model = [config for config in configs if config.model == model]
    largest = max(config.target_batch_size for config in of_model)
    return _Search(of_model[0], min(largest, len(assets[model].trial.train)))


def _run_searches(
    searches: Sequence[_Search],
    assets: Mapping[str, "ray.ObjectRef[TrialAssets]"],
    remembered: Mapping[str, FittingSize],
    gpus: float,
) -> list[_Search]:
    """Runs on a worker, which alone knows its GPU: one model after the other."""
    quiet_worker()
    device = worker_device()
    return [
        _answer(search, ray.get(assets[search.config.model]), remembered, device, gpus)
        for search in searches
    ]


def _answer(
    search: _Search,
    assets: TrialAssets,
    remembered: Mapping[str, FittingSize],
    device: torch.device,
    gpus: float,
) -> _Search:
    key = _key(search.config, assets.encoder, device, gpus)
    search = replace(search, device=_device_name(device), key=key)
    known = remembered.get(key)
    if known and known.answers(search.limit):
        return replace(search, found=known, source="remembered")
    try:
        size = largest_physical_batch_size(search.config, assets, device, search.limit)
    except DoesNotFitError as error:
        return replace(search, problem=last_line(error))
    except Exception as error:  # a search is no reason to give up: a trial looks after itself
        return replace(search, problem=f"{type(error).__name__}: {last_line(error)}")
    return replace(search, found=FittingSize(size, search.limit))


def _key(config: TrialConfig, encoder: EncoderAssets, device: torch.device, gpus: float) -> str:
    """Everything that the answer depends on, for people and programs to read."""
    architecture = json.dumps(encoder.config, sort_keys=True, default=str)
    facts = [
        f"{config.model} ({hashlib.sha256(architecture.encode()).hexdigest()[:8]})",
        f"{config.max_length} tokens",
        _device_name(device),
        f"{gpus:g} of it",
        config.precision,
        config.optimizer,
        f"{config.engine} engine",
        f"torch {torch.__version__}",
    ]
    return ", ".join(facts)


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return "CPU"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} {properties.total_memory / 2**30:.0f} GiB"


def _line(answer: _Search) -> str:
    name = answer.config.model_name
    if answer.found is None:
        size = answer.config.physical_batch_size
        return f"physical batch size of {name}: {size}, not measured ({answer.problem})"
    size = min(answer.found.physical_batch_size, answer.limit)
    return f"physical batch size of {name}: {size} fits onto {answer.device} ({answer.source})"
