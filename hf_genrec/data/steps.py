"""
The steps between a log and its splits: order, de-duplication, k-core, minimum history, newest items, and counting.

A table of interactions has the columns `user_id`, `item_id` (strings, possibly dictionary-encoded) and `timestamp`
(int64, milliseconds since the epoch, or null throughout). Every step takes one and returns a new one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa


def statistics_of(interactions: pa.Table) -> dict[str, int | float]:
    """
    Distinct users and items, rows, rows per user, and rows per possible pair of user and item.

    Args: a table with the columns `user_id` and `item_id`.
    """
    num_users, num_items = (
        int((np.bincount(_codes(interactions, name)) > 0).sum()) for name in ("user_id", "item_id")
    )
    num_rows = interactions.num_rows
    sizes = {"num_users": num_users, "num_items": num_items, "num_interactions": num_rows}
    return sizes | {"mean_length": num_rows / max(num_users, 1), "density": num_rows / max(num_users * num_items, 1)}


def sort_by_time(interactions: pa.Table) -> pa.Table:
    """
    Puts each user's interactions together, oldest first; users stand in order of first appearance. Equal (or no) times
    keep their order. Args: a table of interactions.
    """
    keys = [_codes(interactions, "user_id")]
    if interactions["timestamp"].null_count < interactions.num_rows:
        keys.insert(0, interactions["timestamp"].to_numpy())
    return interactions.take(pa.array(np.lexsort(keys)))


def count_duplicates(interactions: pa.Table) -> int:
    """
    Rows that repeat an earlier one in user, item and time; 0 for a log without times. Args: a table of interactions.
    """
    if interactions["timestamp"].null_count:
        return 0
    keys = {name: _codes(interactions, name) for name in ("user_id", "item_id")}
    return int(pd.DataFrame(keys | {"timestamp": interactions["timestamp"].to_numpy()}).duplicated().sum())


def deduplicate(interactions: pa.Table) -> pa.Table:
    """Keeps the first row of every pair of user and item. Args: a table of interactions, in order of time."""
    items = _codes(interactions, "item_id")
    pairs = _codes(interactions, "user_id").astype(np.int64) * (int(items.max(initial=0)) + 1) + items
    first_rows = np.unique(pairs, return_index=True)[1]
    return interactions.take(pa.array(np.sort(first_rows)))


def k_core(interactions: pa.Table, k: int) -> pa.Table:
    """
    Drops users and items with fewer than `k` interactions until none is left to drop; rows keep their order.

    Args: a table of interactions; with a `k` of 0 or 1 nothing is dropped.
    """
    if k < 0:
        raise ValueError(f"`k` must be at least 0, got {k}.")
    rows = np.arange(interactions.num_rows)
    users, items = _codes(interactions, "user_id"), _codes(interactions, "item_id")
    while True:
        kept = (np.bincount(users)[users] >= k) & (np.bincount(items)[items] >= k)
        if kept.all():
            return interactions.take(pa.array(rows))
        rows, users, items = rows[kept], users[kept], items[kept]


def drop_short_histories(interactions: pa.Table, min_history: int) -> pa.Table:
    """
    Drops users with fewer than `min_history` items before their last one. Args: a table of interactions; the least.
    """
    if min_history < 0:
        raise ValueError(f"`min_history` must be at least 0, got {min_history}.")
    users = _codes(interactions, "user_id")
    return interactions.filter(pa.array(np.bincount(users)[users] > min_history))


def newest_items(interactions: pa.Table, share: float) -> pa.Array:
    """
    Ids of the items that appeared in a log last, the newest of all last.

    An item is as old as its first interaction. In a log without times its age is its earliest place: the least number
    of items that any user took before it. Of equally old items the one that the log names first is older.

    Args: what [`sort_by_time`] returned, and the share of the items; their number is rounded, and may not be 0 or all.
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must lie between 0 and 1, got {share}.")
    dictionary = _encoded(interactions["item_id"]).dictionary
    ages, items = _ages(interactions), _codes(interactions, "item_id")
    first = np.full(len(dictionary), np.iinfo(np.int64).max)
    np.minimum.at(first, items, ages)
    present = np.unique(items)  # a filter leaves items in the dictionary that have no row any more
    number = round(share * len(present))
    if not 0 < number < len(present):
        raise ValueError(f"`share` must leave items on both sides: {share:g} of {len(present)} items are {number}.")
    order = present[np.lexsort((present, first[present]))]
    return dictionary.take(pa.array(order[-number:])).cast(pa.string())


def _ages(interactions: pa.Table) -> np.ndarray:
    """The time of each row, or without times the number of rows of its user before it."""
    if interactions["timestamp"].null_count < interactions.num_rows:
        return interactions["timestamp"].to_numpy()
    users = _codes(interactions, "user_id")
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    return np.arange(len(users)) - np.repeat(starts, np.diff(starts, append=len(users)))


def _codes(interactions: pa.Table, name: str) -> np.ndarray:
    """A column of ids as integers, numbered in order of first appearance."""
    return _encoded(interactions[name]).indices.to_numpy()


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    if not len(column):  # `combine_chunks` has no dictionary then
        return pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], column.type.value_type))
    return column.unify_dictionaries().combine_chunks()
