"""
A prepared folder's content in two short names: one of items and interactions, one of the times of all history items.

They depend on ids, order and numbers alone: not on the bytes that Parquet wrote, on the shards of a split or on the
engine that prepared it. The first one covers the columns that every format has, so a log that is prepared anew in a
later format has the name it had.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_genrec.data.splits import COLD_NAME, NAMED_COLUMNS, ROWS_AT_ONCE, SPLITS, split_files
from hf_genrec.files import reading


def fingerprint_of(folder: str | os.PathLike[str]) -> str:
    """
    Names the item ids in order, the splits without the times of history items, and the items held out of training.

    Args: a folder with `items.parquet` and the splits.
    """
    folder = Path(folder)
    whole = hashlib.sha256()
    tables = {name: (split_files(folder, name), NAMED_COLUMNS) for name in SPLITS}
    for files, columns in ([folder / "items.parquet"], ("item_id",)), *tables.values():
        whole.update(_digests(files, columns))
    if (folder / COLD_NAME).is_file():
        whole.update(_digests([folder / COLD_NAME], ("item_id",)))
    return whole.hexdigest()[:16]


def times_fingerprint_of(folder: str | os.PathLike[str]) -> str:
    """Names the column `timestamps` of the splits. Args: a folder with splits of format 2."""
    whole = hashlib.sha256()
    for name in SPLITS:
        whole.update(_digests(split_files(folder, name), ("timestamps",)))
    return whole.hexdigest()[:16]


def _digests(files: Sequence[Path], columns: Sequence[str]) -> bytes:
    return b"".join(_column_digest(files, column) for column in columns)


def _column_digest(files: Sequence[Path], column: str) -> bytes:
    """A digest of lengths and nulls, and one of the values."""
    lengths, content = hashlib.sha256(), hashlib.sha256()
    for array in _batches(files, column):
        if pa.types.is_list(array.type):
            lengths.update(_bytes_of(pc.list_value_length(array).fill_null(-1)))
            array = array.flatten()
        if pa.types.is_string(array.type):
            if array.null_count:
                raise ValueError(f"the column {column} of {files[0]} has {array.null_count} ids that are null")
            # The values stand one after the other in one buffer, value `i` from place `offsets[i]`.
            places = np.frombuffer(array.buffers()[1] or b"", np.int32)[array.offset :][: len(array) + 1]
            lengths.update(np.diff(places).astype("<i8").tobytes())
            if len(places):
                content.update(memoryview(array.buffers()[2] or b"")[places[0] : places[-1]])
        else:
            lengths.update(array.is_null().to_numpy(zero_copy_only=False).tobytes())
            content.update(_bytes_of(array.fill_null(0)))
    return lengths.digest() + content.digest()


def _bytes_of(numbers: pa.Array) -> bytes:
    return numbers.to_numpy().astype("<i8").tobytes()


def _batches(files: Sequence[Path], column: str) -> Iterator[pa.Array]:
    """
    A column in arrays of `ROWS_AT_ONCE` rows, the last one shorter, wherever files and row groups end.

    The digest of a list column depends on these borders: lengths of lists and of strings take turns.
    """
    waiting: list[pa.Array] = []
    for path in files:
        with reading(path, "Parquet file of a prepared folder"):
            for batch in pq.ParquetFile(path, page_checksum_verification=True).iter_batches(columns=[column]):
                waiting.append(batch.column(0))
                while sum(map(len, waiting)) >= ROWS_AT_ONCE:
                    whole = pa.concat_arrays(waiting)
                    yield whole.slice(0, ROWS_AT_ONCE)
                    waiting = [whole.slice(ROWS_AT_ONCE)]
    if sum(map(len, waiting)):
        yield pa.concat_arrays(waiting)
