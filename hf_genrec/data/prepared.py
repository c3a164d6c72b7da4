"""
The prepared folder: what every later stage reads.

    dataset.json       protocol, source, options, statistics, counts of what was skipped, fingerprint
    items.parquet      item_id, title, text, then all other metadata; the row number is the item index
    train.parquet      user_id, history, target, timestamp, timestamps; one row per user; likewise validation.parquet,
                       test.parquet. Large ones are shards: train/00000.parquet, train/00001.parquet, ... in order
    cold_items.parquet item_id of the items that were held out of training; only where that was asked for

Histories are full (cutting them is a matter of `sequences.py`), oldest first; `timestamp` is the target's and
`timestamps` are the history's, in milliseconds since the epoch, null where the source has no times.
`datasets.load_dataset("parquet", data_files=...)` reads every one of them. Format 1 has no `timestamps`.
"""

from __future__ import annotations

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

from hf_genrec.data.checks import check_split_times, check_splits, check_times
from hf_genrec.data.fingerprint import fingerprint_of, times_fingerprint_of
from hf_genrec.data.split_times import SplitTimes
from hf_genrec.data.splits import COLD_NAME, ROWS_AT_ONCE, SPLITS, flat_sequences, read_split, split_files
from hf_genrec.files import hidden_folder, put_in_place, read_json, read_table, reading, restored


FORMAT_VERSION = 2
LARGE = 20_000_000  # training targets; of more, splits are read in pieces
MAX_REPEAT_RATE = 0.01  # up to this, items of the history are left out by `exclude_seen="auto"`


@dataclass(frozen=True)
class PreparedDataset:
    """
    A prepared folder, opened.

    Attributes:
        folder (`Path`): where it lies.
        metadata (`dict`): the content of `dataset.json`.
        fingerprint (`str`):
            16 hexadecimal digits that name the item ids in order and the content of the splits, but for `timestamps`,
            which have a name of their own in `metadata`.
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
        for name in ("dataset.json", "items.parquet"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} is not a prepared folder: it has no {name}. Run `hf-genrec prepare`."
                )
        for name in SPLITS:
            split_files(folder, name)
        metadata = read_json(folder / "dataset.json")
        with reading(folder / "dataset.json", "record of a prepared folder"):
            version, fingerprint = metadata["format_version"], str(metadata["fingerprint"])
        if version not in (1, FORMAT_VERSION):
            raise ValueError(
                f"{folder} has format version {version}, this library reads 1 and {FORMAT_VERSION}: prepare again."
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
            `datasets.Dataset`: columns `user_id`, `history`, `target`, `timestamp` (of the target, milliseconds) and
            `timestamps` (of the history's items; null without times). Folders of format 1 have no `timestamps`.

        Raises:
            ValueError: If there is no such split, the files have changed, training holds a later target, or times go
                backwards.
        """
        if name not in SPLITS:
            raise ValueError(f"`name` must be one of {', '.join(SPLITS)}, got {name!r}.")
        self._check_files()
        rows, fingerprint = read_split(self.folder, name), f"{self.fingerprint}_{name}"  # else all rows are hashed
        return datasets.Dataset(rows, split=datasets.NamedSplit(name), fingerprint=fingerprint)

    def train_item_counts(self) -> np.ndarray:
        """Occurrences of each item in the training part, int64 of shape `(num_items,)`; 0 for cold items."""
        self._check_files()
        catalog = self.items["item_id"].cast(pa.string())
        counts = np.zeros(len(catalog), dtype=np.int64)
        for path in split_files(self.folder, "train"):
            with reading(path, "Parquet file of a prepared folder"):
                file = pq.ParquetFile(path, page_checksum_verification=True)
                for batch in file.iter_batches(columns=["history", "target"], batch_size=ROWS_AT_ONCE):
                    ids = pa.chunked_array([batch["history"].flatten(), batch["target"]])
                    found = ids.value_counts()
                    items = pc.index_in(found.field("values"), value_set=catalog)
                    known = items.is_valid().to_numpy(zero_copy_only=False)
                    counts[items.drop_null().to_numpy()] += found.field("counts").to_numpy()[known]
        return counts

    @cached_property
    def repeat_rate(self) -> float:
        """`float`: share of the training targets that the user had taken before; of older folders it is counted."""
        if "repeat_rate" not in self.metadata:
            return repeat_rate(*split_files(self.folder, "train"))
        return self.metadata["repeat_rate"]

    @property
    def has_repeats(self) -> bool:
        """
        `bool`: whether a list should hold items of the history, which is what `exclude_seen="auto"` asks.

        At most one target in a hundred may be out of reach where there are none: lists without seen items gain more
        than that (13 to 30 % of ndcg@10 on two data sets without repeats).
        """
        return self.repeat_rate > MAX_REPEAT_RATE

    @property
    def is_large(self) -> bool:
        """
        `bool`: whether there are more than 20 million training targets. Then only the checksums of pages say whether
        files are whole, and training reads them anew in each epoch.
        """
        return int(self.metadata.get("num_train_targets", 0)) > LARGE

    def interaction_matrix(self, item_ids: Sequence[str] | np.ndarray | None = None) -> sp.csr_array:
        """
        Who took what in the training part, float64 of shape `(num_users, num_items)`: 1 where the user took the item.

        Args:
            item_ids (`Sequence[str]`, *optional*): All items, as columns; `None` is the order of the catalog.
        """
        table = self.split("train").with_format("arrow")[:]
        item_ids = self.items["item_id"].cast(pa.string()) if item_ids is None else item_ids
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
        if "is_checked" in self.__dict__ or self.is_large:
            return
        self._check_same("fingerprint", self.compute_fingerprint(), self.fingerprint)
        if self.metadata["format_version"] > 1:
            named = str(self.metadata.get("times_fingerprint"))
            self._check_same("times_fingerprint", times_fingerprint_of(self.folder), named)
            times = {name: read_split(self.folder, name, ["user_id", "timestamp", "timestamps"]) for name in SPLITS}
            for name, table in times.items():
                check_times(table, owner=f"the {name} split of {self.folder}")
            if self.metadata.get("split_times"):
                check_split_times(times, SplitTimes.from_record(self.metadata["split_times"]), owner=str(self.folder))
        tables = {name: read_split(self.folder, name, ["user_id", "history", "target"]) for name in SPLITS}
        check_splits(tables, self.item_ids, cold_item_ids=self.cold_item_ids, owner=str(self.folder))
        self.__dict__["is_checked"] = True

    def _check_same(self, name: str, computed: str, named: str) -> None:
        if computed != named:
            raise ValueError(
                f"The files of {self.folder} are not those that were prepared: their {name} is {computed}, "
                f"dataset.json says {named}. Prepare the log again with `hf-genrec prepare`."
            )


def repeat_rate(*paths: str | os.PathLike[str]) -> float:
    """
    Share of the training targets (all items of a user but the first) that the user had taken before.

    Args: the Parquet files of the training part.
    """
    num_targets = num_repeats = 0
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(columns=["history", "target"]):
            columns = pa.concat_arrays([batch["history"].flatten(), batch["target"]]).dictionary_encode()
            rows = np.append(pc.list_parent_indices(batch["history"]).to_numpy(), np.arange(len(batch)))
            pairs = rows * max(1, len(columns.dictionary)) + columns.indices.to_numpy()
            num_targets += len(pairs) - len(batch)
            num_repeats += len(pairs) - len(np.unique(pairs))
    return num_repeats / max(1, num_targets)


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
