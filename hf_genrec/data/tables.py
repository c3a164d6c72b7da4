"""
Tables in memory and in Parquet files: whatever holds columns becomes a `pyarrow.Table`.

A damaged Parquet file is a `ValueError` that names it, whichever error the reader has for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec.data.text_files import ALWAYS_ALLOWED, MAX_EXPANSION, check_distinct
from hf_genrec.files import reading


# A file, a table in memory (`pyarrow`, `pandas`, `polars`, `datasets.Dataset`), or a list of dicts.
Source: TypeAlias = Any

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


def owner_of(source: Source, unnamed: str = "the table") -> str:
    """What messages call a source: the path, or `unnamed` for a table in memory. Args: the source, and that name."""
    return str(source) if isinstance(source, str | os.PathLike) else unnamed


def open_parquet(path: str | os.PathLike[str], *, allow_huge: bool = False) -> pq.ParquetFile:
    """
    Opens a Parquet file. Where it has checksums, they are compared.

    Args: the file, and whether it may unpack to more than 200 times its size.
    """
    with reading(path, "Parquet file"):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        groups = range(file.metadata.num_row_groups)
        size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
        size = max(size, file.metadata.num_rows * file.metadata.num_columns * _VALUE_BYTES)
    if size > max(ALWAYS_ALLOWED, MAX_EXPANSION * os.path.getsize(path)) and not allow_huge:
        raise ValueError(
            f"{path} unpacks to {size:,} bytes, more than {MAX_EXPANSION} times its size. If that is right, pass "
            "`allow_huge=True`."
        )
    check_distinct(file.schema_arrow.names, str(path))
    return file


def rows_of(source: pa.Table | pq.ParquetFile, owner: str) -> Iterator[dict[str, Any]]:
    """The rows one by one; of a file never more than a few are in memory. Args: the table, and its name for errors."""
    with reading(owner, "table"):
        batches = source.to_batches(10_000) if isinstance(source, pa.Table) else source.iter_batches(10_000)
        for batch in batches:
            yield from batch.to_pylist()
