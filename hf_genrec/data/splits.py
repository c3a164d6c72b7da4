"""
The rows of a split: one per user, with `user_id`, `history` (item ids, oldest first), `target`, `timestamp` (of the
target) and `timestamps` (of the history's items).

How they are read as flat arrays (`split_writer.py` writes them): a user's *sequence* is the history, then the target.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_genrec.files import read_table


SPLITS = ("train", "validation", "test")
SPLIT_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("history", pa.list_(pa.string())),
        ("target", pa.string()),
        ("timestamp", pa.int64()),
        ("timestamps", pa.list_(pa.int64())),
    ]
)
NAMED_COLUMNS = ("user_id", "history", "target", "timestamp")  # those of format 1, which the fingerprint names
COLD_NAME = "cold_items.parquet"
ROWS_AT_ONCE = 50_000  # users that are read at a time: keeps string offsets far below 32 bits


def split_files(folder: str | os.PathLike[str], name: str) -> list[Path]:
    """
    The Parquet files of a split, in order: `NAME.parquet`, or the shards `NAME/00000.parquet` and so on.

    Args: a prepared folder, and the split; a `FileNotFoundError` where it has neither.
    """
    whole = Path(folder) / f"{name}.parquet"
    files = [whole] if whole.is_file() else sorted((Path(folder) / name).glob("[0-9]*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} is not a prepared folder: it has no {whole.name}. Run `hf-genrec prepare`.")
    return files


def read_split(folder: str | os.PathLike[str], name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a split, from its file or shards. Args: see [`split_files`]; the columns, all by default."""
    return pa.concat_tables([read_table(path, columns) for path in split_files(folder, name)])


def flat_sequences(
    split: pa.Table, item_ids: Sequence[str] | np.ndarray | pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray]:
    """
    All sequences of a split in one array: item indices (int32, -1 for an item that is not in the catalog), and offsets
    of shape `(num_rows + 1,)`, int64. Row `i` is `indices[offsets[i]:offsets[i + 1]]`.

    Args: a table with `history` and `target`, and the catalog, in which the position of an item is its index.
    """
    catalog = item_ids if isinstance(item_ids, pa.ChunkedArray) else pa.array(item_ids, pa.string())
    lengths = pc.list_value_length(split["history"]).to_numpy().astype(np.int64) + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.empty(offsets[-1], dtype=np.int32)
    is_target = np.zeros(len(indices), dtype=bool)
    is_target[offsets[1:] - 1] = True
    for places, column in ((is_target, split["target"]), (~is_target, pc.list_flatten(split["history"]))):
        indices[places] = pc.fill_null(pc.index_in(column, value_set=catalog), -1).to_numpy()
    return indices, offsets


def flat_times(split: pa.Table) -> np.ndarray:
    """
    The times of all sequences, int64 milliseconds, one per entry of [`flat_sequences`].

    Args: a table with `timestamps` and `timestamp`; a `ValueError` where an item has no time.
    """
    history, target = split["timestamps"], split["timestamp"]
    if history.null_count or target.null_count or pc.list_flatten(history).null_count:
        raise ValueError("Items have no times: the log was prepared without them. Prepare it with a column of times.")
    ends = np.cumsum(pc.list_value_length(history).to_numpy().astype(np.int64) + 1)
    times = np.empty(ends[-1] if len(ends) else 0, dtype=np.int64)
    is_target = np.zeros(len(times), dtype=bool)
    is_target[ends - 1] = True
    times[is_target], times[~is_target] = target.to_numpy(), pc.list_flatten(history).to_numpy()
    return times
