"""Data sets as they lie in files or on the hub: the columns that a study reads, part by part, unchanged."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.json.json import JsonConfig

from errors import UserError, first_line, unknown
from trainables.memory import check_fits, free_memory, memory_limited_to, too_large
from trainables.own_files import check_data_folder
from trainables.parquet_files import column_names, declared_types, read_parquet
from trainables.text_files import JSON_SUFFIXES, SEPARATORS, TEXT_SUFFIXES, UTF_8, read_table

_FILE_FORMATS = (".csv", ".json", ".jsonl", ".parquet", ".tsv")
_AS_USUAL: dict[str, Any] = {
    # options of text files
    "sep": ",",
    "delimiter": None,
    "header": "infer",
    "names": None,
    "column_names": None,
    # options of Parquet files
    "columns": None,
    "filters": None,
    "on_bad_files": "error",
}


@dataclass(frozen=True)
class SourcePart:
    """A file, or a split of a library's data set: some of the rows of one split.

    ``columns`` are the wanted columns that the part has, (n,) each. ``class_names`` is given if labels are
    indices into it. If ``is_typed``, values have the types that the file declares, else all are text.
    ``place`` gives the place of a row in words, counted from 1.
    """

    split: str
    columns: Mapping[str, Sequence[Any]]
    class_names: tuple[str, ...] | None = None
    is_typed: bool = True
    place: Callable[[int], str] = lambda row: f"row {row + 1}"

    @property
    def size(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def read_parts(dataset: str, columns: Sequence[str], encoding: str) -> list[SourcePart]:
    """The parts of a hub id, a folder, or one CSV, TSV, JSON or Parquet file, in its own order.

    Every column is in at least one part. Raises UserError, one line, if the data cannot be read.
    """
    path = Path(os.path.expanduser(dataset))  # noqa: PTH111 - Path.expanduser raises for ~stranger
    exists = os.path.exists(path)  # noqa: PTH110 - Path.exists raises for long names
    looks_local = dataset.startswith((".", "/", "~")) or path.suffix in _FILE_FORMATS
    if looks_local and not exists:
        raise UserError(f"no such data set file or folder: {dataset}")
    if exists and path.is_file() and path.suffix not in _FILE_FORMATS:
        formats = ", ".join(_FILE_FORMATS)
        raise UserError(f"{dataset} is not one of the file formats that are read: {formats}")
    source = _Source(path, columns, dataset, encoding, free_memory())
    try:
        with memory_limited_to(source.free):
            return _read_local(source) if exists else _of_library(datasets.load_dataset(dataset), source)
    except UserError:
        raise
    except Exception as error:  # the libraries raise a different type for every kind of bad input
        if any(isinstance(each, MemoryError) or "out of memory" in str(each) for each in _chain(error)):
            raise too_large(f"data set '{dataset}'", "more", source.free) from error
        reason = first_line(error.__cause__ or error)
        hint = ": give a hub id while the hub is in reach, a folder, or a CSV, TSV, JSON or Parquet file"
        raise UserError(
            f"data set '{dataset}' cannot be read ({reason}){'' if exists else hint}"
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


@dataclass(frozen=True)
class _Source:
    """A file, a folder or a hub id; ``dataset`` as the user wrote it; ``free`` bytes of memory for it."""

    path: Path
    columns: Sequence[str]
    dataset: str
    encoding: str
    free: int


def _read_local(source: _Source) -> list[SourcePart]:
    """Read a file or a folder into memory, so that no copy of the reviews stays in the user's cache."""
    path = source.path
    if path.is_file():
        read = _of_parquet if path.suffix == ".parquet" else _of_text_files
        return read({"train": [path]}, source)
    check_data_folder(path)
    if (path / "state.json").exists():  # written by Dataset.save_to_disk
        loaded = datasets.DatasetDict(train=datasets.load_from_disk(str(path), keep_in_memory=True))
        return _of_library(loaded, source)
    with tempfile.TemporaryDirectory() as cache:
        builder = datasets.load_dataset_builder(str(path), cache_dir=cache)
        return _read_folder(source, builder, cache)


def _read_folder(source: _Source, builder: datasets.DatasetBuilder, cache: str) -> list[SourcePart]:
    """The library tells which files belong to which split; it reads those that this program cannot."""
    splits = {str(split): list(map(Path, files)) for split, files in builder.config.data_files.items()}
    suffixes = {file.suffix for files in splits.values() for file in files}
    is_usual = all(
        getattr(builder.config, name, value) in (value, "\t") for name, value in _AS_USUAL.items()
    )
    types = builder.info.features or datasets.Features()
    if is_usual and suffixes <= TEXT_SUFFIXES and (suffixes <= JSON_SUFFIXES or not types):
        return _of_text_files(splits, source, types)
    if is_usual and suffixes == {".parquet"}:
        return _of_parquet(splits, source, builder.info)
    if isinstance(builder.config, JsonConfig):  # the library's reader crashes on deeply nested JSON
        raise UserError(f"{source.dataset} holds JSON that is packed or oddly named: unpack it, as .jsonl")
    words = {"keep_default_na": False} if hasattr(builder.config, "keep_default_na") else {}
    loaded = datasets.load_dataset(str(source.path), cache_dir=cache, keep_in_memory=True, **words)
    return _of_library(loaded, source)


def _of_library(loaded: datasets.DatasetDict, source: _Source) -> list[SourcePart]:
    _refuse_encoding(source)
    names = {f"split {name}": split.column_names for name, split in loaded.items()}
    _check_columns(source.columns, names, source.dataset)
    check_fits(source.dataset, sum(split.data.nbytes for split in loaded.values()), source.free)
    return [_of_split(str(name), split, source.columns, len(loaded) > 1) for name, split in loaded.items()]


def _of_split(name: str, split: datasets.Dataset, columns: Sequence[str], is_one_of: bool) -> SourcePart:
    # the stored values: the library would open the files and addresses that a column of pictures names
    found = {
        column: split.data.column(column).to_pylist() for column in columns if column in split.column_names
    }
    named = _class_names(split.features, found)
    return SourcePart(name, found, named, place=_row_of(name, is_one_of))


def _row_of(split: str, is_one_of: bool) -> Callable[[int], str]:
    where = f" of split {split}" if is_one_of else ""
    return lambda row: f"row {row + 1}{where}"


def _class_names(types: Mapping[str, Any], columns: Iterable[str]) -> tuple[str, ...] | None:
    """The class names of the first of the columns that holds indices of classes; None if none does."""
    kinds = (types[column] for column in columns if column in types)
    named = next((kind for kind in kinds if isinstance(kind, datasets.ClassLabel)), None)
    return tuple(named.names) if named else None


def _refuse_encoding(source: _Source) -> None:
    if source.encoding != UTF_8:
        raise UserError(f"--encoding is for CSV and JSON files, and not for {source.dataset}: leave it out")


def _of_parquet(
    splits: Mapping[str, Sequence[Path]], source: _Source, info: datasets.DatasetInfo | None = None
) -> list[SourcePart]:
    """``info``: the types and numbers of rows that the folder declares."""
    _refuse_encoding(source)
    names = {f"split {split}": column_names(files) for split, files in splits.items()}
    _check_columns(source.columns, names, source.dataset)
    first = next(iter(splits.values()))[0]
    types = (info and info.features) or declared_types(first, source.columns)
    parts, read = [], 0
    for split, files in splits.items():
        found = read_parquet(files, source.columns, types, read, source.free)
        read = found.read
        part = SourcePart(
            split, found.columns, _class_names(types, found.columns), place=_row_of(split, len(splits) > 1)
        )
        _check_rows(part, info, source.dataset)
        parts.append(part)
    return parts


def _check_rows(part: SourcePart, info: datasets.DatasetInfo | None, dataset: str) -> None:
    declared = ((info and info.splits) or {}).get(part.split)
    if declared and declared.num_examples not in (None, part.size):
        raise UserError(
            f"split {part.split} of {dataset} has {part.size:,} rows and its description says "
            f"{declared.num_examples:,}: fetch the whole data set, or remove its description"
        )


# -- text files ------------------------------------------------------------------------------------


def _of_text_files(
    splits: Mapping[str, Sequence[Path]], source: _Source, types: Mapping[str, Any] | None = None
) -> list[SourcePart]:
    """``types``: those that the folder declares for JSON files; only their class names are used."""
    files = [(str(split), path) for split, paths in splits.items() for path in paths]
    check_fits(source.dataset, sum(path.stat().st_size for _, path in files), source.free)
    tables = [read_table(path, source.encoding) for _, path in files]
    columns = source.columns
    _check_columns(
        columns, {str(f): t.names for (_, f), t in zip(files, tables, strict=True)}, source.dataset
    )
    parts = []
    for (split, path), table in zip(files, tables, strict=True):
        if twice := [column for column in columns if column in table.ambiguous]:
            raise UserError(f"{path} has several columns called '{twice[0]}': rename all but one")
        where = f" of {path.name}" if len(files) > 1 else ""
        found = {column: table.column(column) for column in columns if column in table.names}
        parts.append(
            SourcePart(
                split,
                {column: _indices(values, (types or {}).get(column)) for column, values in found.items()},
                _class_names(types or {}, found),
                is_typed=path.suffix not in SEPARATORS,
                place=lambda row, table=table, where=where: f"{table.place(row)}{where}",  # type: ignore[misc]
            )
        )
    return parts


def _indices(values: list[Any], kind: Any) -> list[Any]:
    """The values of a column; if its classes have names, each name is replaced by its index."""
    if not isinstance(kind, datasets.ClassLabel):
        return values
    return [kind.str2int(value) if isinstance(value, str) and value else value for value in values]


def _check_columns(columns: Sequence[str], found: Mapping[str, Sequence[str]], dataset: str) -> None:
    """Raise UserError for a column that no part has, and for a part without the text column.

    ``found``: a part's name in messages -> its columns; a part without rows may have none.
    """
    whole = dict.fromkeys(name for names in found.values() for name in names)
    text, *others = columns
    for part, names in found.items():
        if names and text not in names:
            raise unknown(f"column of {part if len(found) > 1 else dataset}", text, names)
    for column in others:
        if whole and column not in whole:
            raise unknown(f"column of {dataset}", column, whole)
