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
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp

from hf_genrec.data.checks import check_splits
from hf_genrec.data.splits import ROWS_AT_ONCE, SPLIT_SCHEMA, SPLITS, flat_sequences
from hf_genrec.files import hidden_folder, put_in_place, read_json, read_table, reading, restored


COLD_NAME = "cold_items.parquet"
FORMAT_VERSION = 1
MAX_REPEAT_RATE = 0.01  # up to this, items of the history are left out by `exclude_seen="auto"`


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
        Opens a folder that [`~prepare.prepare`] wrote; tables are read when they are asked for.

        Args:
            folder (`str` or `os.PathLike`): The folder.

        Raises:
            FileNotFoundError: If the folder or one of its files is missing.
            ValueError: If it was written in another format version.
        """
        folder = restored(folder)
        for name in ("dataset.json", "items.parquet", *(f"{split}.parquet" for split in SPLITS)):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} is not a prepared folder: it has no {name}. Run `hf-genrec prepare`."
                )
        metadata = read_json(folder / "dataset.json")
        with reading(folder / "dataset.json", "record of a prepared folder"):
            version, fingerprint = metadata["format_version"], str(metadata["fingerprint"])
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{folder} has format version {version}, this library reads {FORMAT_VERSION}: prepare again."
            )
        return cls(folder, metadata, fingerprint)

    @cached_property
    def items(self) -> pa.Table:
        """`pyarrow.Table`: `item_id`, `title`, `text` and the other fields; the row number is the item index."""
        table = read_table(self.folder / "items.parquet")
        with reading(self.folder / "items.parquet", "items table"):
            table.select(["item_id", "title", "text"])
        return table

    @cached_property
    def item_ids(self) -> list[str]:
        """`list[str]`: the catalog; the position is the item index."""
        return self.items["item_id"].to_pylist()

    @cached_property
    def cold_item_ids(self) -> list[str]:
        """`list[str]`: the items of the catalog that were held out of training, the newest last; mostly none."""
        path = self.folder / COLD_NAME
        return read_table(path, ["item_id"])["item_id"].to_pylist() if path.is_file() else []

    def split(self, name: str) -> datasets.Dataset:
        """
        The rows of one split. What is in the files is checked once, when a split is first asked for.

        Args:
            name (`str`): `"train"`, `"validation"` or `"test"`.

        Returns:
            `datasets.Dataset`: columns `user_id`, `history`, `target`, `timestamp`.

        Raises:
            ValueError: If there is no such split, the files have changed, or training holds a later target.
        """
        if name not in SPLITS:
            raise ValueError(f"`name` must be one of {', '.join(SPLITS)}, got {name!r}.")
        self._check_files()
        return datasets.Dataset(read_table(self.folder / f"{name}.parquet"), split=datasets.NamedSplit(name))

    def train_item_counts(self) -> np.ndarray:
        """Occurrences of each item in the training part, int64 of shape `(num_items,)`; 0 for cold items."""
        self._check_files()
        table = read_table(self.folder / "train.parquet", ["history", "target"])
        return np.bincount(flat_sequences(table, self.item_ids)[0], minlength=len(self.item_ids))

    @cached_property
    def repeat_rate(self) -> float:
        """`float`: share of the training targets that the user had taken before; of older folders it is counted."""
        if "repeat_rate" not in self.metadata:
            return repeat_rate(self.folder / "train.parquet")
        return self.metadata["repeat_rate"]

    @property
    def has_repeats(self) -> bool:
        """
        `bool`: whether a list should hold items of the history, which is what `exclude_seen="auto"` asks.

        At most one target in a hundred may be out of reach where there are none: lists without seen items gain more
        than that (13 to 30 % of ndcg@10 on two data sets without repeats).
        """
        return self.repeat_rate > MAX_REPEAT_RATE

    def interaction_matrix(self, item_ids: Sequence[str] | np.ndarray | None = None) -> sp.csr_array:
        """
        Who took what in the training part, float64 of shape `(num_users, num_items)`: 1 where the user took the item.

        Args:
            item_ids (`Sequence[str]`, *optional*): All items, as columns; `None` is the order of the catalog.
        """
        table = self.split("train").with_format("arrow")[:]
        item_ids = self.item_ids if item_ids is None else item_ids
        items, offsets = flat_sequences(table, item_ids)
        users = np.repeat(np.arange(len(table)), np.diff(offsets))
        matrix = sp.coo_array((np.ones(len(items)), (users, items)), shape=(len(table), len(item_ids))).tocsr()
        matrix.data[:] = 1.0  # the conversion adds up what a user took several times
        return matrix

    def compute_fingerprint(self) -> str:
        """What `fingerprint` should be; different if the files were changed."""
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
            name: read_table(self.folder / f"{name}.parquet", ["user_id", "history", "target"]) for name in SPLITS
        }
        check_splits(tables, self.item_ids, cold_item_ids=self.cold_item_ids, owner=str(self.folder))
        self.__dict__["is_checked"] = True


def repeat_rate(path: str | os.PathLike[str]) -> float:
    """
    Share of the training targets (all items of a user but the first) that the user had taken before.

    Args: the Parquet file of the training part.
    """
    num_targets = num_repeats = 0
    for batch in pq.ParquetFile(path).iter_batches(columns=["history", "target"]):
        for history, target in zip(batch["history"].to_pylist(), batch["target"].to_pylist(), strict=True):
            num_targets += len(history)
            num_repeats += len(history) + 1 - len({*history, target})
    return num_repeats / max(1, num_targets)


def fingerprint_of(folder: str | os.PathLike[str]) -> str:
    """
    Names the item ids in order, the splits and the items held out of training, whatever bytes Parquet wrote for them.

    Args: a folder with `items.parquet` and the splits.
    """
    whole = hashlib.sha256()
    columns = {"items.parquet": ["item_id"], **{f"{split}.parquet": SPLIT_SCHEMA.names for split in SPLITS}}
    for name, names in (columns | {COLD_NAME: ["item_id"]}).items():
        path = Path(folder) / name
        if name in columns or path.is_file():
            with reading(path, "Parquet file of a prepared folder"):
                file = pq.ParquetFile(path, page_checksum_verification=True)
                for column in names:
                    whole.update(_column_digest(file, column))
    return whole.hexdigest()[:16]


@contextmanager
def replaced_folder(target: str | os.PathLike[str], *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """
    A temporary folder that takes the place of `target` when the block ends without an error.

    Args: the folder to make, a file that every folder of this kind has, and whether an existing one is replaced.
    """
    target = restored(os.path.abspath(target))  # `.` has no name of its own
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not (target / marker).is_file():
            raise FileExistsError(
                f"{target} is not empty and not a folder of this kind (no {marker}); nothing is written."
            )
        if not overwrite:
            raise FileExistsError(f"{target} exists already. Pass `overwrite=True` to replace it.")
    with hidden_folder(target) as fresh:
        yield fresh
        put_in_place(fresh, target)


def _column_digest(file: pq.ParquetFile, column: str) -> bytes:
    """A digest of lengths and one of bytes, so that it does not depend on where batches end."""
    lengths, content = hashlib.sha256(), hashlib.sha256()
    for batch in file.iter_batches(columns=[column], batch_size=ROWS_AT_ONCE):
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
