"""
The prepared folder: what every later stage reads.

    dataset.json       protocol, source, options, statistics, counts of what was skipped, fingerprint
    items.parquet      item_id, title, text, then all other metadata; the row number is the item index
    train.parquet      user_id, history, target, timestamp; one row per user; likewise validation.parquet, test.parquet
    cold_items.parquet item_id of the items that were held out of training; only where that was asked for

Histories are full (cutting them is a matter of `sequences.py`), oldest first; `timestamp` is the target's, in
milliseconds since the epoch, null where the source has no times. `datasets.load_dataset("parquet", data_files=...)`
reads every one of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_genrec.data.checks import check_splits


COLD_NAME = "cold_items.parquet"
FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
SPLIT_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("history", pa.list_(pa.string())),
        ("target", pa.string()),
        ("timestamp", pa.int64()),
    ]
)
_ROWS_AT_ONCE = 50_000  # users per row group: keeps string offsets far below 32 bits


@dataclass(frozen=True)
class PreparedDataset:
    """
    A prepared folder, opened.

    Attributes:
        folder (`Path`): where it lies.
        metadata (`dict`): the content of `dataset.json`.
        fingerprint (`str`): 16 hexadecimal digits that name the item ids in order and the content of the splits.
    """

    folder: Path
    metadata: dict[str, Any]
    fingerprint: str

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> PreparedDataset:
        """
        Opens a prepared folder.

        Args:
            folder (`str` or `os.PathLike`):
                A folder that [`~interactions.prepare`] wrote.

        Returns:
            [`PreparedDataset`]: tables are read when they are asked for.

        Raises:
            FileNotFoundError: If the folder or one of its files is missing.
            ValueError: If it was written in another format version.
        """
        folder = Path(folder)
        for name in ("dataset.json", "items.parquet", *(f"{split}.parquet" for split in SPLITS)):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is no prepared folder: it has no {name}. Run `hf-genrec prepare`.")
        metadata = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        version = metadata.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{folder} has format version {version}, this library reads {FORMAT_VERSION}: prepare again."
            )
        return cls(folder, metadata, metadata["fingerprint"])

    @cached_property
    def items(self) -> pa.Table:
        """`pyarrow.Table`: `item_id`, `title`, `text` and the other fields; the row number is the item index."""
        return pq.read_table(self.folder / "items.parquet")

    @cached_property
    def item_ids(self) -> list[str]:
        """`list[str]`: the catalog; the position is the item index."""
        return self.items["item_id"].to_pylist()

    @cached_property
    def cold_item_ids(self) -> list[str]:
        """`list[str]`: the items of the catalog that were held out of training, the newest last; mostly none."""
        path = self.folder / COLD_NAME
        return pq.read_table(path)["item_id"].to_pylist() if path.is_file() else []

    def split(self, name: str) -> datasets.Dataset:
        """
        The rows of one split, of a folder whose splits do not overlap.

        What is in the files is checked once, when a split is first asked for.

        Args:
            name (`str`):
                `"train"`, `"validation"` or `"test"`.

        Returns:
            `datasets.Dataset`: columns `user_id`, `history`, `target`, `timestamp`.

        Raises:
            ValueError: If there is no split of that name, the files are not those that were prepared, or training
                holds a target of validation or test.
        """
        if name not in SPLITS:
            raise ValueError(f"`name` must be one of {', '.join(SPLITS)}, got {name!r}.")
        self._check_files()
        return datasets.Dataset(pq.read_table(self.folder / f"{name}.parquet"), split=datasets.NamedSplit(name))

    def train_item_counts(self) -> np.ndarray:
        """
        How often each item occurs in the training part.

        Returns:
            `np.ndarray` of shape `(num_items,)`, int64: occurrences in the histories and targets of `train`; 0 for
            items that are held out of training.
        """
        self._check_files()
        table = pq.read_table(self.folder / "train.parquet", columns=["history", "target"])
        catalog = pa.array(self.item_ids, pa.string())
        counts = np.zeros(len(catalog), dtype=np.int64)
        for column in (pc.list_flatten(table["history"]), table["target"]):
            counts += np.bincount(pc.index_in(column, value_set=catalog).to_numpy(), minlength=len(catalog))
        return counts

    def compute_fingerprint(self) -> str:
        """
        Reads the files and computes what `fingerprint` should be.

        Returns:
            `str`: 16 hexadecimal digits; different from `fingerprint` if somebody changed the files.
        """
        return fingerprint_of(self.folder)

    def _check_files(self) -> None:
        """The first call reads all files, later ones cost nothing."""
        if "is_checked" in self.__dict__:
            return
        computed = self.compute_fingerprint()
        if computed != self.fingerprint:
            raise ValueError(
                f"The files of {self.folder} are not those that were prepared: their fingerprint is {computed}, "
                f"dataset.json says {self.fingerprint}. Prepare the log again with `hf-genrec prepare`."
            )
        tables = {
            name: pq.read_table(self.folder / f"{name}.parquet", columns=["user_id", "history", "target"])
            for name in SPLITS
        }
        check_splits(tables, self.item_ids, cold_item_ids=self.cold_item_ids, owner=str(self.folder))
        self.__dict__["is_checked"] = True


def fingerprint_of(folder: str | os.PathLike[str]) -> str:
    """
    Names the content of a prepared folder, whatever bytes Parquet wrote for it.

    Args:
        folder (`str` or `os.PathLike`): a folder with `items.parquet` and the splits.

    Returns:
        `str`: the first 16 hexadecimal digits of a SHA-256 over the item ids in order, the columns of the splits and
        the items held out of training.
    """
    folder = Path(folder)
    whole = hashlib.sha256()
    whole.update(_column_digest(pq.ParquetFile(folder / "items.parquet"), "item_id"))
    for split in SPLITS:
        file = pq.ParquetFile(folder / f"{split}.parquet")
        for column in SPLIT_SCHEMA.names:
            whole.update(_column_digest(file, column))
    if (folder / COLD_NAME).is_file():
        whole.update(_column_digest(pq.ParquetFile(folder / COLD_NAME), "item_id"))
    return whole.hexdigest()[:16]


@contextmanager
def replaced_folder(target: str | os.PathLike[str], *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """
    Gives a temporary folder that takes the place of `target` when the block ends without an error.

    Args:
        target (`str` or `os.PathLike`):
            The folder that shall exist afterwards; its parents are made.
        marker (`str`):
            A file that only folders of our own kind have, such as `"dataset.json"`.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether an existing folder of our kind is replaced.

    Yields:
        `Path`: the folder to write to, beside the target.

    Raises:
        FileExistsError: If the target holds something that is not ours, or is ours and `overwrite` is `False`.
    """
    target = Path(os.path.abspath(target))  # `.` has no name of its own
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not (target / marker).is_file():
            raise FileExistsError(
                f"{target} is not empty and no folder of this kind (no {marker}); nothing is written."
            )
        if not overwrite:
            raise FileExistsError(f"{target} exists already. Pass `overwrite=True` to replace it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    fresh.mkdir()
    try:
        yield fresh
        if target.exists():
            old = fresh.with_name(f"{fresh.name}.old")
            os.replace(target, old)
            os.replace(fresh, target)
            shutil.rmtree(old)
        else:
            os.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


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

    Args:
        path (`str` or `os.PathLike`):
            The Parquet file.
        user_ids (`pyarrow.Array` of `num_rows` strings):
            The user of each row.
        item_ids (`pyarrow.Array` of `num_interactions` strings):
            The items of all users, each user's in order; may be dictionary-encoded.
        timestamps (`pyarrow.Array` of `num_interactions` int64):
            Milliseconds since the epoch, or null.
        starts (`np.ndarray` of shape `(num_rows,)`):
            Position of the first item of each history.
        ends (`np.ndarray` of shape `(num_rows,)`):
            Position of each target.
    """
    with pq.ParquetWriter(path, SPLIT_SCHEMA) as writer:
        for first in range(0, max(len(starts), 1), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            lengths = ends[rows] - starts[rows]
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            positions = np.arange(offsets[-1]) + np.repeat(starts[rows] - offsets[:-1], lengths)
            history = pa.ListArray.from_arrays(offsets, item_ids.take(pa.array(positions)).cast(pa.string()))
            targets = pa.array(ends[rows])
            columns = [
                user_ids.slice(first, _ROWS_AT_ONCE).cast(pa.string()),
                history,
                item_ids.take(targets).cast(pa.string()),
                timestamps.take(targets),
            ]
            writer.write_table(pa.table(columns, schema=SPLIT_SCHEMA))


def interaction_matrix(prepared: PreparedDataset, item_ids: Sequence[str] | NDArray[np.object_]) -> sp.csr_array:
    """
    Who took what in the training part.

    Args:
        prepared ([`PreparedDataset`]):
            The data set.
        item_ids (`list[str]`):
            All item ids in the order of the columns.

    Returns:
        `scipy.sparse.csr_array` of shape `(num_users, num_items)`, float64: 1 where the user took the item.
    """
    table = prepared.split("train").with_format("arrow")[:]
    histories = table["history"].combine_chunks()
    lengths = np.append(histories.value_lengths().to_numpy(), np.ones(len(table), dtype=np.int64))
    users = np.repeat(np.tile(np.arange(len(table)), 2), lengths)
    names = np.append(histories.flatten().to_numpy(zero_copy_only=False), table["target"].to_numpy())
    items = pd.Index(item_ids).get_indexer(names)
    matrix = sp.coo_array((np.ones(len(items)), (users, items)), shape=(len(table), len(item_ids))).tocsr()
    matrix.data[:] = 1.0
    return matrix


def _column_digest(file: pq.ParquetFile, column: str) -> bytes:
    """A digest of lengths and one of bytes, so that it does not depend on where batches end."""
    lengths, content = hashlib.sha256(), hashlib.sha256()
    for batch in file.iter_batches(columns=[column], batch_size=_ROWS_AT_ONCE):
        array = batch.column(0)
        if pa.types.is_list(array.type):
            lengths.update(pc.list_value_length(array).to_numpy().astype("<i8").tobytes())
            array = array.flatten()
        if pa.types.is_string(array.type):
            lengths.update(pc.binary_length(array).to_numpy().astype("<i8").tobytes())
            content.update("".join(array.to_pylist()).encode())
        else:
            lengths.update(array.is_null().to_numpy(zero_copy_only=False).tobytes())
            content.update(array.fill_null(0).to_numpy().astype("<i8").tobytes())
    return lengths.digest() + content.digest()
