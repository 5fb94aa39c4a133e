"""Parquet files: the wanted columns, batch by batch, and no more than memory holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import table_cast

from trainables.memory import check_fits

# rows read at once: few, because a file of some kilobytes may hold megabytes in each row; more are hardly
# faster
_ROWS = 64


class ParquetColumns(NamedTuple):
    """Column -> its values, (n,) each; and the bytes read so far."""

    columns: dict[str, list[Any]]
    read: int


def column_names(files: Sequence[Path]) -> list[str]:
    """The columns of the first file; the other files must have them too."""
    return pq.read_schema(files[0]).names


def declared_types(path: Path, columns: Sequence[str]) -> datasets.Features:
    """The types, with class names, of those ``columns`` that the file has."""
    schema = pq.read_schema(path)
    fields = [schema.field(name) for name in columns if name in schema.names]
    return datasets.Features.from_arrow_schema(pa.schema(fields, schema.metadata))


def read_parquet(
    files: Sequence[Path], columns: Sequence[str], types: datasets.Features, read: int, free: int
) -> ParquetColumns:
    """Those ``columns`` that the files have, their rows one file after the other, cast to ``types``.

    ``read``: bytes that were read before. Raises UserError as soon as ``free`` bytes do not hold them all.
    """
    found = [name for name in columns if name in column_names(files)]
    wanted = datasets.Features(
        {name: types[name] if name in types else declared_types(files[0], [name])[name] for name in found}
    )
    values: dict[str, list[Any]] = {name: [] for name in found}
    for path in files:
        with pq.ParquetFile(path) as file:
            if missing := set(found) - set(file.schema_arrow.names):
                raise ValueError(f"{path.name} has no column '{min(missing)}', which {files[0].name} has")
            for batch in file.iter_batches(_ROWS, columns=found, use_threads=False):
                table = table_cast(pa.Table.from_batches([batch]).select(found), wanted.arrow_schema)
                read += table.nbytes
                check_fits(str(path), read, free)
                for name in found:
                    values[name] += table[name].to_pylist()
    return ParquetColumns(values, read)
