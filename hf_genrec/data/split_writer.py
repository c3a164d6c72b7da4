"""
Writing the splits: a sorted stream of interactions comes in, Parquet files with a row per user go out.

However long the log is, about two million interactions, or those of one user, are in memory at a time. The splits are
written and named (see `fingerprint.py`) side by side, while the next interactions are cut into users.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec.data.fingerprint import Digests
from hf_genrec.data.split_times import SplitTimes
from hf_genrec.data.splits import SPLIT_SCHEMA, SPLITS


INTERACTIONS_OF_A_SHARD = 2**22  # about; a split with fewer is one file
_INTERACTIONS_AT_ONCE = 2**20  # that are written at a time, or those of one user if they are more
_IDS = pa.dictionary(pa.int32(), pa.string())
_WRITTEN = pa.schema(
    [SPLIT_SCHEMA.field("user_id"), ("history", pa.list_(_IDS)), ("target", _IDS), *list(SPLIT_SCHEMA)[3:]]
)
# Ids go as dictionaries, in which nothing is looked up; bounds of lists, which nothing reads, would take most time.
_WRITING: dict[str, Any] = {
    "store_schema": False,  # of the types that are written, which are not those that are read
    "write_page_checksum": True,
    "use_dictionary": ["history.list.element", "target"],
    "dictionary_pagesize_limit": 2**24,
    "column_encoding": dict.fromkeys(["timestamp", "timestamps.list.element"], "DELTA_BINARY_PACKED"),
    "write_statistics": ["user_id", "target", "timestamp"],
}


@dataclass
class SplitSizes:
    """What [`write_splits`] counted on the way."""

    num_rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    num_train_targets: int = 0
    num_repeats: int = 0  # training targets that the user had taken before
    users_without_evaluation: int = 0
    users_without_training: int = 0
    num_cold_interactions: int = 0  # that left the training part
    num_cold_users: int = 0  # whose training part lost some
    num_cold_targets: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS[1:], 0))
    num_unused: int = 0  # interactions of no split, see [`SplitTimes`]
    num_copies: int = 0  # interactions that repeat another one in user, item and time
    digests: Digests = field(default_factory=Digests)  # of the rows that were written


def write_splits(
    folder: Path,
    rows: Iterable[pa.RecordBatch],
    *,
    user_ids: Iterable[pa.RecordBatch],
    item_ids: pa.Array,
    is_cold: np.ndarray,
    times: SplitTimes | None = None,
) -> SplitSizes:
    """
    Writes the three splits, leave-last-out: the last item of a user is the test target, the one before it the
    validation target, the rest the training part. Users with fewer than three interactions have a training part only.
    With `times` the splits are those of [`SplitTimes`]. A split of many interactions is written in shards.

    Args: the folder; interactions as [`~steps.sorted_rows`] gives them, and users as [`~steps.sorted_users`]; the ids
        by item number, and which items are held out of training, bool of shape `(num_items,)`.
    """
    sizes, users = SplitSizes(), _Queue(user_ids)
    with ExitStack() as stack:
        writers = {split: stack.enter_context(_Writer(folder, split, sizes)) for split in SPLITS}
        pool = stack.enter_context(ThreadPoolExecutor(len(SPLITS)))
        running: list[Future[None]] = []
        for numbers, items, moments in _whole_users(rows):
            starts = np.flatnonzero(np.diff(numbers, prepend=-1))
            if times is None:
                pieces = _leave_last_out(starts, is_cold[items], sizes)
            else:
                pieces = _cut_in_time(starts, moments.to_numpy(), times, sizes)
            ids, named = users.take(len(starts)), _named(items, item_ids)
            sizes.num_copies += _count_copies(numbers, items, moments)
            for done in running:
                done.result()
            running = [
                pool.submit(writers[split].write, piece, ids, named, moments) for split, piece in pieces.items()
            ]
        for done in running:
            done.result()
    return sizes


def split_rows(
    *, user_ids: pa.Array, item_ids: pa.Array, timestamps: pa.Array, starts: np.ndarray, ends: np.ndarray
) -> pa.Table:
    """
    Rows of a split: the history of row `i` is `item_ids[starts[i]:ends[i]]`, its target `item_ids[ends[i]]`. Without
    any times `timestamps` of a row is null.

    Args: `user_ids`, `starts` and `ends` have an entry per row, `item_ids` (a dictionary of strings) and `timestamps`
        (int64, milliseconds or null) one per interaction.
    """
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    # Histories overlap between splits and lie apart where items are held out, so they are gathered one by one:
    # place `p` of the flat result belongs to the row whose `offsets` enclose it, at `starts + (p - offset)`.
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    places, targets = pa.array(positions), pa.array(ends)
    times = pa.ListArray.from_arrays(offsets, timestamps.take(places))
    columns = {
        "user_id": user_ids.cast(pa.string()),
        "history": pa.ListArray.from_arrays(offsets, item_ids.take(places)),
        "target": item_ids.take(targets),
        "timestamp": timestamps.take(targets),
        "timestamps": times if timestamps.null_count < len(timestamps) else pa.nulls(len(times), times.type),
    }
    return pa.table(columns)


class _Writer:
    """One split on its way into shards, or a file where one is enough. Args: the folder, the split, the sizes."""

    def __init__(self, folder: Path, split: str, sizes: SplitSizes) -> None:
        self._file, self._shards, self._split, self._sizes = folder / f"{split}.parquet", folder / split, split, sizes
        self._writer: pq.ParquetWriter | None = None
        self._num_shards = self._num_interactions = 0  # the interactions are those of the open shard

    def __enter__(self) -> _Writer:
        self._shards.mkdir()
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if self._num_shards == 1:
            self._path(0).rename(self._file)
            self._shards.rmdir()

    def write(self, piece: _Piece, user_ids: pa.Array, item_ids: pa.Array, timestamps: pa.Array) -> None:
        """Writes and counts the rows of a piece. Args: the piece, its users' ids, and the interactions'."""
        kept, places, begins, ends = piece
        items, moments = item_ids, timestamps
        if len(places) < len(item_ids):
            items, moments = items.take(pa.array(places)), moments.take(pa.array(places))
        rows = split_rows(
            user_ids=user_ids.take(pa.array(kept)), item_ids=items, timestamps=moments, starts=begins, ends=ends
        )
        if self._num_interactions >= INTERACTIONS_OF_A_SHARD:
            self._close()
            self._open()
        if self._writer is not None:
            self._writer.write_table(rows)
        self._num_interactions += int((ends - begins + 1).sum())
        self._sizes.digests.add(self._split, rows)
        self._sizes.num_rows[self._split] += len(kept)
        if self._split == "train":
            self._sizes.num_repeats += _count_repeats(items.indices.to_numpy(), begins, ends)

    def _open(self) -> None:
        self._writer = pq.ParquetWriter(self._path(self._num_shards), _WRITTEN, **_WRITING)
        self._num_shards, self._num_interactions = self._num_shards + 1, 0

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _path(self, number: int) -> Path:
        return self._shards / f"{number:05d}.parquet"


def _named(items: np.ndarray, item_ids: pa.Array) -> pa.DictionaryArray:
    """Numbers of items as their ids, in a dictionary of those that are there: Parquet takes it as it is."""
    used = np.flatnonzero(np.bincount(items, minlength=len(item_ids)))
    codes = np.zeros(len(item_ids), np.int32)
    codes[used] = np.arange(len(used), dtype=np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(codes[items]), item_ids.take(pa.array(used)).cast(pa.string()))


class _Queue:
    """One column in batches, of which any number of values may be taken at a time. Args: the batches."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches, self._rest = iter(batches), pa.array([], pa.large_string())

    def take(self, number: int) -> pa.Array:
        """The next `number` values."""
        parts = [self._rest]
        while sum(map(len, parts)) < number:
            parts.append(next(self._batches).column(0).cast(pa.large_string()))
        values = pa.concat_arrays(parts)
        self._rest = values.slice(number)
        return values.slice(0, number)


def _whole_users(rows: Iterable[pa.RecordBatch]) -> Iterator[tuple[np.ndarray, np.ndarray, pa.Array]]:
    """The numbers of users and items and the times, many rows at once, cut where a new user begins."""
    parts: list[pa.RecordBatch] = []
    for batch in rows:
        parts.append(batch)
        if sum(part.num_rows for part in parts) >= _INTERACTIONS_AT_ONCE:
            whole = pa.Table.from_batches(parts).combine_chunks()
            users = whole["user_number"].to_numpy()
            end = int(np.searchsorted(users, users[-1]))  # the last user may go on
            parts = whole.slice(end).to_batches()
            if end:
                yield _arrays_of(whole.slice(0, end))
    if parts:
        yield _arrays_of(pa.Table.from_batches(parts))


def _arrays_of(rows: pa.Table) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    return rows["user_number"].to_numpy(), rows["item_number"].to_numpy(), rows["timestamp"].combine_chunks()


# Of a split: its users, the places of its interactions among all rows, and where histories begin and end among these.
_Piece: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _leave_last_out(starts: np.ndarray, is_cold: np.ndarray, sizes: SplitSizes) -> dict[str, _Piece]:
    """Cuts sequences, which begin at `starts`, into the three splits and adds to what was counted."""
    lengths = np.diff(starts, append=len(is_cold))
    last = starts + lengths - 1
    is_evaluated = lengths >= 3
    evaluated = np.flatnonzero(is_evaluated)
    train_lengths = np.where(is_evaluated, lengths - 2, lengths)
    warm_before = np.append(0, np.cumsum(~is_cold))
    warm_starts = warm_before[starts]
    warm_lengths = warm_before[starts + train_lengths] - warm_starts
    trained = np.flatnonzero(warm_lengths)
    num_lost = train_lengths - warm_lengths
    sizes.num_train_targets += int(np.maximum(warm_lengths - 1, 0).sum())
    sizes.users_without_evaluation += int((~is_evaluated).sum())
    sizes.users_without_training += len(starts) - len(trained)
    sizes.num_cold_interactions += int(num_lost.sum())
    sizes.num_cold_users += int((num_lost > 0).sum())
    everything, pieces = np.arange(len(is_cold)), {}
    begins, warm_ends = warm_starts[trained], (warm_starts + warm_lengths - 1)[trained]
    pieces["train"] = (trained, np.flatnonzero(~is_cold), begins, warm_ends)
    for split, targets in (("validation", last - 1), ("test", last)):
        sizes.num_cold_targets[split] += int(is_cold[targets[evaluated]].sum())
        pieces[split] = (evaluated, everything, starts[evaluated], targets[evaluated])
    return pieces


def _cut_in_time(starts: np.ndarray, moments: np.ndarray, times: SplitTimes, sizes: SplitSizes) -> dict[str, _Piece]:
    """Cuts sequences, which begin at `starts`, at the same moments and adds to what was counted."""
    lengths = np.diff(starts, append=len(moments))
    num_trained, num_known = times.numbers(moments, starts)
    is_tested = (num_known > 0) & (lengths > num_known)
    is_kept = {
        "train": num_trained > 0,
        "validation": (num_trained > 0) & (num_known > num_trained),
        "test": is_tested,
    }
    targets = {"train": num_trained - 1, "validation": num_trained, "test": num_known}
    sizes.num_train_targets += int(np.maximum(num_trained - 1, 0).sum())
    sizes.users_without_evaluation += int((~is_tested).sum())
    sizes.users_without_training += int((num_trained == 0).sum())
    sizes.num_unused += int((lengths - num_known - is_tested).sum())
    pieces, everything = {}, np.arange(len(moments))
    for split, kept in ((name, np.flatnonzero(mask)) for name, mask in is_kept.items()):
        pieces[split] = (kept, everything, starts[kept], starts[kept] + targets[split][kept])
    return pieces


def _count_copies(users: np.ndarray, items: np.ndarray, moments: pa.Array) -> int:
    """How many rows, sorted by user and time, are there before with the same user, item and time."""
    if moments.null_count:
        return 0
    times = moments.to_numpy()
    is_tied = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    ends = np.flatnonzero(np.diff(np.concatenate([[False], is_tied, [False]]).astype(np.int8)))
    return _count_repeats(items, ends[::2], ends[1::2])


def _count_repeats(items: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> int:
    """How many items of the sequences `items[starts[i]:ends[i] + 1]` came before in the same sequence."""
    lengths = ends - starts + 1
    places = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    pairs = np.repeat(np.arange(len(starts)), lengths) * (int(items.max(initial=0)) + 1) + items[places]
    pairs.sort()  # `numpy.unique` would put them into a hash table, several times slower
    return int((pairs[1:] == pairs[:-1]).sum())
