"""
Tables in memory and in Parquet files: whatever holds columns becomes a [`Table`], read batch by batch.

A damaged Parquet file is a `ValueError` that names it, whichever error the reader has for it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import datasets
import duckdb
import huggingface_hub
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec.data.text_files import MAX_DEPTH, check_distinct, check_expansion, writable
from hf_genrec.files import reading


# A file, a table in memory (`pyarrow`, `pandas`, `polars`, `datasets.Dataset`), or a list of dicts.
Source: TypeAlias = Any

_HUB = "hf://"
_ROWS_AT_ONCE, _RECORDS_AT_ONCE = 2**19, 10_000
_VALUE_BYTES = 8  # of a value in memory; in a Parquet file a column that repeats one value takes nothing


@dataclass(frozen=True)
class Part:
    """A table or a file of one: what messages call it, its columns, its rows, and how some columns are read."""

    owner: str
    names: list[str]
    num_rows: int
    batches: Callable[[list[str], int], Iterable[pa.RecordBatch]]


@dataclass(frozen=True)
class Table:
    """
    A table that is never held whole, read as often as needed.

    Args: what messages call it, its parts, one after the other, and where a row stands (`None` is the row of a part).
    """

    owner: str
    parts: list[Part]
    find: Callable[[int], str] | None = None

    def scan(self, columns: Mapping[str, str]) -> Iterator[pa.Table]:
        """Some columns, batch by batch. Args: their names by the names that they get."""
        for part in self.parts:
            with reading(part.owner, "table"):
                for batch in part.batches(list(dict.fromkeys(columns.values())), _ROWS_AT_ONCE):
                    batch.validate(full=True)
                    yield pa.table({key: batch[name] for key, name in columns.items()})

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows one by one; never more than a few are in memory."""
        for part in self.parts:
            with reading(part.owner, "table"):
                for batch in part.batches(part.names, _RECORDS_AT_ONCE):
                    may_be_deep = any(str(kind).count("<") > MAX_DEPTH for kind in batch.schema.types)
                    yield from map(writable, batch.to_pylist()) if may_be_deep else batch.to_pylist()

    def place_of(self, row: int) -> str:
        """Where a row stands; slow, for messages. Args: its number, from 0."""
        if self.find is not None:
            return self.find(row)
        for part in self.parts[:-1]:
            if row < part.num_rows:
                return f"{part.owner}: row {row + 1}"
            row -= part.num_rows
        return f"{self.parts[-1].owner}: row {row + 1}"


def table_of(source: Source, *, allow_huge: bool = False) -> Table | list[Any] | None:
    """
    A source as a table, or as a list of records where its columns are mixtures; `None` for a path of one file.

    Args: a path, a table of pyarrow, pandas or polars, a `datasets.Dataset` (with the rows that were selected, in
        their order), a relation of DuckDB, several Parquet files (see [`parquet_files`]), a list of dicts, else a
        `TypeError`; and what [`parquet_table`] has.
    """
    files = parquet_files(source)
    if files is not None:
        return parquet_table(files, allow_huge=allow_huge)
    if isinstance(source, str | os.PathLike):
        return None
    if isinstance(source, list | tuple):
        return list(source)
    if isinstance(source, datasets.Dataset):
        return _in_memory(source.column_names, lambda names, size: _batches_of_dataset(source, names, size))
    if isinstance(source, duckdb.DuckDBPyRelation):
        return _in_memory(source.columns, lambda names, size: _projected(source, names).to_arrow_reader(size))
    if isinstance(source, pd.DataFrame):
        try:
            source = pa.Table.from_pandas(source, preserve_index=False)
        except (pa.ArrowException, UnicodeEncodeError):  # a column that holds 7 and "b"
            return source.to_dict("records")
    elif not isinstance(source, pa.Table) and hasattr(source, "__arrow_c_stream__"):
        source = pa.table(source)
    if not isinstance(source, pa.Table):
        raise TypeError(
            f"{type(source).__module__}.{type(source).__name__} is no source: pass a path, a table of pyarrow, pandas "
            "or polars, one split of a datasets.Dataset, or a list of dicts."
        )
    return _in_memory(source.column_names, lambda names, size: source.select(names).to_batches(size))


def _in_memory(names: list[str], batches: Callable[[list[str], int], Iterable[pa.RecordBatch]]) -> Table:
    check_distinct(names, "the table")
    return Table("the table", [Part("the table", names, 0, batches)])


def _batches_of_dataset(source: datasets.Dataset, names: list[str], size: int) -> Iterator[pa.RecordBatch]:
    for table in source.select_columns(names).with_format("arrow").iter(batch_size=size):
        yield from table.to_batches()


def _projected(source: duckdb.DuckDBPyRelation, names: list[str]) -> duckdb.DuckDBPyRelation:
    return source.project(", ".join('"' + name.replace('"', '""') + '"' for name in names))


def parquet_table(files: Sequence[Any], *, allow_huge: bool = False) -> Table:
    """Parquet files, one after the other. Args: the files, and whether they may unpack to more than 200 times."""
    opened = [(str(path), open_parquet(path, allow_huge=allow_huge)) for path in files]
    owner = opened[0][0] if len(opened) == 1 else f"{opened[0][0]} (the first of {len(opened)} files)"
    return Table(owner, [_part_of(path, file) for path, file in opened])


def _part_of(path: str, file: pq.ParquetFile) -> Part:
    def batches(names: list[str], size: int) -> Iterator[pa.RecordBatch]:
        with reading(path, "Parquet file"):
            yield from file.iter_batches(size, columns=names)

    return Part(path, file.schema_arrow.names, file.metadata.num_rows, batches)


def owner_of(source: Source, unnamed: str = "the table") -> str:
    """
    What messages call a source: the path, or `unnamed` for a table in memory. Args: the source, and that name.
    """
    if isinstance(source, list | tuple) and source and all(isinstance(part, str | os.PathLike) for part in source):
        return str(source[0])
    return str(source) if isinstance(source, str | os.PathLike) else unnamed


def parquet_files(source: Source) -> list[str] | None:
    """
    The Parquet files that a list of paths, a pattern or an address on the Hub stands for; `None` for other sources.

    Args: what a reader was given. A pattern names its files in the order of their names.
    """
    is_list = isinstance(source, list | tuple) and source and all(isinstance(x, str | os.PathLike) for x in source)
    if not is_list:
        path = str(source) if isinstance(source, str | os.PathLike) else ""
        is_remote = path.startswith(_HUB)
        if not is_remote and (os.path.exists(path) or not glob.has_magic(path)):
            return None
        found = _hub().glob(path) if is_remote else glob.glob(path, recursive=True)
        source = sorted(f"{_HUB if is_remote else ''}{file}" for file in found)
        if not source:
            raise FileNotFoundError(f"{path} names no file.")
    other = next((str(file) for file in source if not str(file).endswith(".parquet")), None)
    if other is not None:
        raise ValueError(f"{other} is no .parquet file: of other formats a log is one local file.")
    return [str(file) for file in source]


def open_parquet(path: str | os.PathLike[str], *, allow_huge: bool = False) -> pq.ParquetFile:
    """
    Opens a Parquet file, maybe on the Hub. Where it has checksums, they are compared.

    Args: the file, and whether it may unpack to more than 200 times its size.
    """
    is_remote = str(path).startswith(_HUB)
    packed = _hub().size(str(path)) if is_remote else os.path.getsize(path)
    with reading(path, "Parquet file"):
        opened = _hub().open(str(path), "rb") if is_remote else path
        file = pq.ParquetFile(opened, page_checksum_verification=True)
        groups = range(file.metadata.num_row_groups)
        size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
        size = max(size, file.metadata.num_rows * file.metadata.num_columns * _VALUE_BYTES)
    check_expansion(path, size, packed, allow_huge=allow_huge)
    check_distinct(file.schema_arrow.names, str(path))
    return file


def _hub() -> Any:
    return huggingface_hub.HfFileSystem()
