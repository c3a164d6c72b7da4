"""
A prepared folder's content in two short names: one of items and interactions, one of the times of all history items.

They depend on ids, order and numbers alone: not on the bytes that Parquet wrote, on the shards of a split or on the
engine that prepared it. The first one covers the columns that every format has, so a log that is prepared anew in a
later format has the name it had.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_genrec.data.splits import COLD_NAME, NAMED_COLUMNS, ROWS_AT_ONCE, SPLIT_SCHEMA, SPLITS, split_files
from hf_genrec.files import reading


class Digests:
    """
    The digests of columns of the splits, whose rows come in tables of any length.

    Args: the names of the columns.
    """

    def __init__(self, columns: Sequence[str] = SPLIT_SCHEMA.names) -> None:
        self._columns = {name: {column: _ColumnDigest(column) for column in columns} for name in SPLITS}

    def add(self, name: str, rows: pa.Table | pa.RecordBatch) -> None:
        """The next rows of a split, one thread per split. Args: the split, and its rows with all columns or some."""
        for column in rows.schema.names:
            chunks = rows[column]
            for array in chunks.chunks if isinstance(chunks, pa.ChunkedArray) else [chunks]:
                self._columns[name][column].add(array)

    def of(self, columns: Sequence[str]) -> bytes:
        """The digests of all rows, split after split. Args: the names of the columns."""
        return b"".join(digests[column].result() for digests in self._columns.values() for column in columns)


def fingerprint_of(folder: str | os.PathLike[str], digests: Digests | None = None) -> str:
    """
    Names the item ids in order, the splits without the times of history items, and the items held out of training.

    Args: a folder with `items.parquet` and the splits; the digests of their rows, where they are known.
    """
    folder = Path(folder)
    whole = hashlib.sha256(_ids_of(folder / "items.parquet"))
    whole.update((digests or read_digests(folder, NAMED_COLUMNS)).of(NAMED_COLUMNS))
    if (folder / COLD_NAME).is_file():
        whole.update(_ids_of(folder / COLD_NAME))
    return whole.hexdigest()[:16]


def times_fingerprint_of(folder: str | os.PathLike[str], digests: Digests | None = None) -> str:
    """Names the column `timestamps` of the splits. Args: see [`fingerprint_of`]; the splits are of format 2."""
    return hashlib.sha256((digests or read_digests(folder, ("timestamps",))).of(("timestamps",))).hexdigest()[:16]


class _ColumnDigest:
    """
    A digest of lengths and nulls, and one of the values.

    It takes `ROWS_AT_ONCE` rows at a time, the last ones fewer, wherever the arrays end: the digest of a list column
    depends on these borders, since lengths of lists and of strings take turns. Args: the name of the column.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lengths, self._content = hashlib.sha256(), hashlib.sha256()
        self._waiting: list[pa.Array] = []

    def add(self, array: pa.Array) -> None:
        """The next rows."""
        values = array.flatten() if pa.types.is_list(array.type) else array
        if pa.types.is_string(values.type) and values.null_count:  # here, where the reader knows the file
            raise ValueError(f"{values.null_count} ids in the column {self._name} are null")
        number = sum(map(len, self._waiting))
        while number + len(array) >= ROWS_AT_ONCE:
            self._update([*self._waiting, array.slice(0, ROWS_AT_ONCE - number)])
            array, number = array.slice(ROWS_AT_ONCE - number), 0
            self._waiting.clear()
        self._waiting.append(array)

    def result(self) -> bytes:
        """The digest of all rows, after which none may come."""
        if sum(map(len, self._waiting)):
            self._update(self._waiting)
        return self._lengths.digest() + self._content.digest()

    def _update(self, arrays: list[pa.Array]) -> None:
        if pa.types.is_list(arrays[0].type):
            for array in arrays:
                self._lengths.update(_bytes_of(pc.list_value_length(array).fill_null(-1)))
            arrays = [array.flatten() for array in arrays]
        arrays = [array.dictionary_decode() if pa.types.is_dictionary(array.type) else array for array in arrays]
        is_text = pa.types.is_string(arrays[0].type)
        for array in arrays:
            self._lengths.update(_lengths_of(array) if is_text else array.is_null().to_numpy(zero_copy_only=False))
            self._content.update(_values_of(array) if is_text else _bytes_of(array.fill_null(0)))


def _lengths_of(texts: pa.Array) -> bytes:
    return np.diff(_places_of(texts)).astype("<i8").tobytes()


def _places_of(texts: pa.Array) -> np.ndarray:
    """The values stand one after the other in one buffer, value `i` from place `places[i]`."""
    return np.frombuffer(texts.buffers()[1] or b"", np.int32)[texts.offset :][: len(texts) + 1]


def _values_of(texts: pa.Array) -> memoryview:
    places = _places_of(texts)
    return memoryview(texts.buffers()[2] or b"")[places[0] : places[-1]] if len(places) else memoryview(b"")


def _bytes_of(numbers: pa.Array) -> bytes:
    return numbers.to_numpy().astype("<i8").tobytes()


def read_digests(folder: str | os.PathLike[str], columns: Sequence[str]) -> Digests:
    """The digests of the splits of a folder. Args: the folder, and the columns."""
    digests = Digests(columns)
    for name in SPLITS:
        for path in split_files(folder, name):
            with reading(path, "Parquet file of a prepared folder"):
                file = pq.ParquetFile(path, page_checksum_verification=True)
                for batch in file.iter_batches(columns=list(columns)):
                    digests.add(name, batch)
    return digests


def _ids_of(path: Path) -> bytes:
    digest = _ColumnDigest("item_id")
    with reading(path, "Parquet file of a prepared folder"):
        for batch in pq.ParquetFile(path, page_checksum_verification=True).iter_batches(columns=["item_id"]):
            digest.add(batch.column(0))
    return digest.result()
