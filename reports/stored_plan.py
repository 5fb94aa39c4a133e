"""The plan as it lies in MLflow, checked: somebody else may have put it there."""

from collections.abc import Iterable, Mapping
from typing import Any

from errors import UserError, printable

AXES = ("model", "target_batch_size", "scaling_rule", "seed")
SHARED_SETTINGS = ("optimizer", "scheduler", "epochs", "head_dropout", "max_length", "precision", "engine")
_LARGEST = 2**63 - 1
_PLAN = {"study": str, "question": str, "dataset": dict, "cells": list}
_DATASET = {
    "name": str,
    "source": str,
    "digest": str,
    "sizes": dict,
    "label_names": list,
    "duplicates_dropped": int,
}
_SIZES = {"train": int, "val": int, "test": int}
_CELL = {
    "model": str,
    "target_batch_size": int,
    "scaling_rule": str,
    "seed": int,
    "learning_rate": float,
    "trial_hash": str,
    "config": dict,
}
_POSITIVE = {"train", "val", "test", "target_batch_size", "learning_rate", "physical_batch_size"}


def checked_plan(plan: Any) -> dict[str, Any]:
    """The plan, its texts printable; a UserError where it is not what this program stores."""
    plan = _printable(plan)
    _check("plan", plan, _PLAN)
    _check("dataset", plan["dataset"], _DATASET)
    _check("sizes", plan["dataset"]["sizes"], _SIZES)
    names = plan["dataset"]["label_names"]
    if not names or not all(isinstance(name, str) for name in names):
        raise _not_ours("label_names")
    for cell in plan["cells"]:
        _check("cell", cell, _CELL)
        settings: dict[str, Any] = dict.fromkeys((*SHARED_SETTINGS, "split_seed"), object)
        _check("config", cell["config"], settings | {"physical_batch_size": int})
    _check_baselines(plan.get("baselines", {}))
    if not plan["cells"]:
        raise _not_ours("cells")
    return plan


def _printable(value: Any) -> Any:
    """Names go to terminals, files and pictures: nothing in them may steer the one or break the others."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _check(where: str, values: Any, kinds: Mapping[str, Any]) -> None:
    if not isinstance(values, dict):
        raise _not_ours(where)
    for name, kind in kinds.items():
        if name not in values or not _is_good(name, values[name], kind):
            raise _not_ours(f"{where}, {name}")


def _is_good(name: str, value: Any, kind: type) -> bool:
    if kind not in (int, float):
        return isinstance(value, kind)
    wanted = (int, float) if kind is float else int
    if not isinstance(value, wanted) or isinstance(value, bool) or not abs(value) <= _LARGEST:
        return False
    return value > 0 or name not in _POSITIVE


def _check_baselines(baselines: Any) -> None:
    if not isinstance(baselines, dict) or not _all_plain(baselines.values()):
        raise _not_ours("baselines")
    if not set(baselines) <= set(AXES):
        raise _not_ours("baselines")


def _all_plain(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (str, int)) for value in values)


def _not_ours(where: str) -> UserError:
    return UserError(f"the study's plan in MLflow is not one that this program stores: see its {where}")
