"""
Writing the splits: a sorted stream of interactions comes in, three Parquet files with a row per user go out.

However long the log is, about a million interactions, or those of one user, are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec.data.split_times import SplitTimes
from hf_genrec.data.splits import SPLIT_SCHEMA, SPLITS


_INTERACTIONS_AT_ONCE = 2**20  # that are written at a time, or those of one user if they are more


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
    With `times` the splits are those of [`SplitTimes`].

    Args: the folder; interactions as [`~steps.sorted_rows`] gives them, and users as [`~steps.sorted_users`]; the ids
        by item number, and which items are held out of training, bool of shape `(num_items,)`.
    """
    sizes, users = SplitSizes(), _Queue(user_ids)
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                pq.ParquetWriter(folder / f"{split}.parquet", SPLIT_SCHEMA, write_page_checksum=True)
            )
            for split in SPLITS
        }
        for numbers, items, moments in _whole_users(rows):
            starts = np.flatnonzero(np.diff(numbers, prepend=-1))
            if times is None:
                pieces = _leave_last_out(starts, is_cold[items], sizes)
            else:
                pieces = _cut_in_time(starts, moments.to_numpy(), times, sizes)
            ids = users.take(len(starts))
            for split, (kept, places, begins, ends) in pieces.items():
                table = split_rows(
                    user_ids=ids.take(pa.array(kept)),
                    item_ids=item_ids.take(pa.array(items[places])),
                    timestamps=moments.take(pa.array(places)),
                    starts=begins,
                    ends=ends,
                )
                if split == "train":
                    sizes.num_repeats += _count_repeats(items[places], begins, ends)
                sizes.num_rows[split] += len(kept)
                writers[split].write_table(table)
    return sizes


def split_rows(
    *, user_ids: pa.Array, item_ids: pa.Array, timestamps: pa.Array, starts: np.ndarray, ends: np.ndarray
) -> pa.Table:
    """
    Rows of a split: the history of row `i` is `item_ids[starts[i]:ends[i]]`, its target `item_ids[ends[i]]`. Without
    any times `timestamps` of a row is null.

    Args: `user_ids`, `starts` and `ends` have an entry per row, `item_ids` (strings) and `timestamps` (int64,
    milliseconds or null) one per interaction.
    """
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    # Histories overlap between splits and lie apart where items are held out, so they are gathered one by one:
    # place `p` of the flat result belongs to the row whose `offsets` enclose it, at `starts + (p - offset)`.
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    places, targets = pa.array(positions), pa.array(ends)
    times = pa.ListArray.from_arrays(offsets, timestamps.take(places))
    columns = [
        user_ids.cast(pa.string()),
        pa.ListArray.from_arrays(offsets, item_ids.take(places).cast(pa.string())),
        item_ids.take(targets).cast(pa.string()),
        timestamps.take(targets),
        times if timestamps.null_count < len(timestamps) else pa.nulls(len(times), times.type),
    ]
    return pa.table(columns, schema=SPLIT_SCHEMA)


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


def _count_repeats(items: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> int:
    """How many items of the sequences `items[starts[i]:ends[i] + 1]` came before in the same sequence."""
    lengths = ends - starts + 1
    places = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    pairs = np.repeat(np.arange(len(starts)), lengths) * (int(items.max(initial=0)) + 1) + items[places]
    pairs.sort()  # `numpy.unique` would put them into a hash table, several times slower
    return int((pairs[1:] == pairs[:-1]).sum())
