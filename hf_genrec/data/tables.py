"""
Tables in memory and in Parquet files: whatever holds columns becomes a `pyarrow.Table`.

A damaged Parquet file is a `ValueError` that names it, whichever error the reader has for it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import datasets
import duckdb
import huggingface_hub
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec.data.text_files import ALWAYS_ALLOWED, MAX_EXPANSION, check_distinct
from hf_genrec.files import reading


# A file, a table in memory (`pyarrow`, `pandas`, `polars`, `datasets.Dataset`), or a list of dicts.
Source: TypeAlias = Any

_HUB = "hf://"
_ROWS_AT_ONCE = 2**19
_VALUE_BYTES = 8  # of a value in memory; in a Parquet file a column that repeats one value takes nothing


def table_of(source: Source) -> pa.Table | list[Mapping[str, Any]] | None:
    """
    A table in memory as `pyarrow.Table`, or as a list of records where its columns are mixtures; `None` for a path.

    Args: a path, a table of pyarrow, pandas or polars, a `datasets.Dataset`, a list of dicts; else a `TypeError`.
    """
    if isinstance(source, str | os.PathLike):
        return None
    if isinstance(source, list | tuple):
        return list(source)
    if isinstance(source, datasets.Dataset):
        source = source.with_format("arrow")[:]  # with the rows that were selected, in their order
    elif isinstance(source, pd.DataFrame):
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
    check_distinct(source.column_names, "the table")
    return source


def columns_in(source: Source) -> list[str] | None:
    """
    The columns of a table that [`batches_of`] reads without ever holding it whole; `None` for every other source.

    Args: a table in memory or of an engine.
    """
    if isinstance(source, pa.Table | datasets.Dataset):
        names = source.column_names
    elif isinstance(source, duckdb.DuckDBPyRelation):
        names = source.columns
    else:
        return None
    check_distinct(names, "the table")
    return names


def batches_of(source: Source, columns: Sequence[str]) -> Iterator[pa.Table]:
    """
    Some columns of a table in memory, a `datasets.Dataset` (with the rows that were selected, in their order) or a
    relation of DuckDB, batch by batch. Args: the table, and the columns, each once.
    """
    if isinstance(source, pa.Table):
        for start in range(0, source.num_rows, _ROWS_AT_ONCE):
            yield source.select(columns).slice(start, _ROWS_AT_ONCE)
    elif isinstance(source, datasets.Dataset):
        yield from source.select_columns(list(columns)).with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)
    else:
        names = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
        for batch in source.project(names).to_arrow_reader(_ROWS_AT_ONCE):
            yield pa.Table.from_batches([batch])


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
    if size > max(ALWAYS_ALLOWED, MAX_EXPANSION * packed) and not allow_huge:
        raise ValueError(
            f"{path} unpacks to {size:,} bytes, more than {MAX_EXPANSION} times its size. If that is right, pass "
            "`allow_huge=True`."
        )
    check_distinct(file.schema_arrow.names, str(path))
    return file


def _hub() -> Any:
    return huggingface_hub.HfFileSystem()


def rows_of(source: pa.Table | pq.ParquetFile, owner: str) -> Iterator[dict[str, Any]]:
    """The rows one by one; of a file never more than a few are in memory. Args: the table, and its name for errors."""
    with reading(owner, "table"):
        batches = source.to_batches(10_000) if isinstance(source, pa.Table) else source.iter_batches(10_000)
        for batch in batches:
            yield from batch.to_pylist()
