"""
The rows of a split: one per user, with `user_id`, `history` (item ids, oldest first), `target` and `timestamp`.

How they are written, and how they are read as flat arrays: a user's *sequence* is the history, then the target.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


SPLITS = ("train", "validation", "test")
SPLIT_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("history", pa.list_(pa.string())),
        ("target", pa.string()),
        ("timestamp", pa.int64()),
    ]
)
ROWS_AT_ONCE = 50_000  # users per row group: keeps string offsets far below 32 bits


def write_split(
    path: str | os.PathLike[str],
    *,
    user_ids: pa.Array,
    item_ids: pa.Array,
    timestamps: pa.Array,
    starts: np.ndarray,
    ends: np.ndarray,
) -> None:
    """
    Writes one split: the history of row `i` is `item_ids[starts[i]:ends[i]]`, its target `item_ids[ends[i]]`.

    Args: the Parquet file; `user_ids`, `starts` and `ends` have an entry per row, `item_ids` (strings, maybe
    dictionary-encoded) and `timestamps` (int64, milliseconds or null) one per interaction.
    """
    with pq.ParquetWriter(path, SPLIT_SCHEMA, write_page_checksum=True) as writer:
        for first in range(0, max(len(starts), 1), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            lengths = ends[rows] - starts[rows]
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            # Histories overlap between splits and lie apart where items are held out, so they are gathered one by one:
            # place `p` of the flat result belongs to the row whose `offsets` enclose it, at `starts + (p - offset)`.
            positions = np.arange(offsets[-1]) + np.repeat(starts[rows] - offsets[:-1], lengths)
            history = pa.ListArray.from_arrays(offsets, item_ids.take(pa.array(positions)).cast(pa.string()))
            targets = pa.array(ends[rows])
            columns = [
                user_ids.slice(first, ROWS_AT_ONCE).cast(pa.string()),
                history,
                item_ids.take(targets).cast(pa.string()),
                timestamps.take(targets),
            ]
            writer.write_table(pa.table(columns, schema=SPLIT_SCHEMA))


def flat_sequences(split: pa.Table, item_ids: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    All sequences of a split in one array: item indices (int32, -1 for an item that is not in the catalog), and offsets
    of shape `(num_rows + 1,)`, int64. Row `i` is `indices[offsets[i]:offsets[i + 1]]`.

    Args: a table with `history` and `target`, and the catalog, in which the position of an item is its index.
    """
    catalog = pa.array(item_ids, pa.string())
    lengths = pc.list_value_length(split["history"]).to_numpy().astype(np.int64) + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.empty(offsets[-1], dtype=np.int32)
    is_target = np.zeros(len(indices), dtype=bool)
    is_target[offsets[1:] - 1] = True
    for places, column in ((is_target, split["target"]), (~is_target, pc.list_flatten(split["history"]))):
        indices[places] = pc.fill_null(pc.index_in(column, value_set=catalog), -1).to_numpy()
    return indices, offsets
