"""A folder of a stranger may name files and addresses: only files in the folder itself are opened."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from errors import UserError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|.*::", re.DOTALL)
_DEEPEST = 4  # a list of splits with lists of paths; the datasets library refuses deeper nesting
_WEIGHT_MAPS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def check_data_folder(folder: Path) -> None:
    """Raise UserError if a folder's README.md or state.json names data outside the folder."""
    from huggingface_hub import DatasetCard  # slow to import, and only data sets need it

    for name, fences in (("README.md", ""), (".huggingface.yaml", "---\n")):
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8")
            configs = DatasetCard(f"{fences}{text}\n{fences}").data.get("configs") or []
            _check(folder, name, _texts([_files_of(config) for config in configs]))
    if (folder / "state.json").is_file():  # written by Dataset.save_to_disk
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        _check(folder, "state.json", (file["filename"] for file in state["_data_files"]))


def check_model_folder(folder: Path) -> None:
    """Raise UserError if a model's folder names files outside itself, or holds part of another model."""
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds an adapter of another model: merge the two and give the result")
    for name in _WEIGHT_MAPS:
        if (folder / name).is_file():
            index = json.loads((folder / name).read_text(encoding="utf-8"))
            _check(folder, name, _texts(list(index["weight_map"].values())))
    name = "tokenizer_config.json"
    if (folder / name).is_file():
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        # without a tokenizer.json, these are opened, relative to the current folder
        if isinstance(config, dict):
            named = _texts([config.get(each) for each in ("vocab", "merges", "init_inputs")])
            _check(folder, name, map(os.path.abspath, named))


def _files_of(config: Any) -> list[Any]:
    return [config.get("data_files"), config.get("data_dir")] if isinstance(config, dict) else []


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict) and depth <= _DEEPEST:
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each, depth + 1)


def _check(folder: Path, source: str, names: Iterable[str]) -> None:
    home = os.path.abspath(folder)  # noqa: PTH100 - links inside the folder are its owner's
    for name in names:
        place = os.path.normpath(os.path.join(home, name))  # noqa: PTH118
        if _ADDRESS.match(name) or not Path(place).is_relative_to(home):
            raise UserError(
                f"{source} in {folder} names '{name}', which is not in that folder: put the file there, "
                "and name it so"
            )
