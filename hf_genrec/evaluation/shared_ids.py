"""
Catalogs in which several items share a semantic ID: what a list is worth if an id counts for its items.

A model cannot tell apart the items of one id: they stand together in its lists, in the order of the catalog, which is
not the model's and may lean to popular items; and a metric that takes the id for the item overestimates. Beside the
item-level metric of the lists as they are stand the *corrected* one, its expectation if the items of an id stood in a
random order, and the *id-level* one, which takes the id for the item. Ranks and starts are 0-based, `-1` where a list
has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from hf_genrec.tokenizers.collisions import group_by_codes


@dataclass(frozen=True)
class IdRanks:
    """Where each user's list holds the semantic ID of the target; all arrays of shape `(num_users,)`."""

    id_rank: NDArray[np.int64]  # how many other ids stand before the target's id
    group_start: NDArray[np.int64]  # position of the first item with the target's id; `-1` if there is none
    group_size: NDArray[np.int64]  # how many items of the catalog share the target's id, itself among them
    num_ids: NDArray[np.int64]  # how many distinct ids the list holds


def shared_id_groups(items: pa.Table) -> NDArray[np.int64] | None:
    """Number of each item's semantic ID, if any items share one; else `None`. Args: a model's item table."""
    if "codes" not in items.column_names or not items.num_rows:
        return None
    codes = items["codes"].combine_chunks()
    groups, sizes = group_by_codes(codes.flatten().to_numpy(zero_copy_only=False).reshape(len(codes), -1))
    return groups if len(sizes) < len(groups) else None


def rank_ids(lists: ArrayLike, targets: ArrayLike, *, groups: ArrayLike) -> IdRanks:
    """
    Where the semantic ID of each target stands.

    Args: item indices `(num_users, list_length)`, best first, `-1` where a list is shorter; the index of each target;
    and the number of each item's id, see [`shared_id_groups`].

    >>> found = rank_ids([[4, 0, 1, 3]], [2], groups=[0, 1, 1, 0, 2])  # items 1 and 2 share an id, and so 0 and 3
    >>> found.group_start, found.id_rank, found.group_size, found.num_ids
    (array([2]), array([2]), array([2]), array([3]))
    """
    items, target_items, group_of = (np.asarray(values, dtype=np.int64) for values in (lists, targets, groups))
    if items.ndim != 2 or target_items.shape != items.shape[:1]:
        raise ValueError(
            f"`lists` must hold one row per target, got shapes {items.shape} and {target_items.shape} of `targets`."
        )
    smallest = min(items.min(initial=0) + 1, target_items.min(initial=0))
    if smallest < 0 or max(items.max(initial=-1), target_items.max(initial=-1)) >= len(group_of):
        raise ValueError(
            f"`lists` and `targets` must hold item indices below {len(group_of)}, the number of items in `groups`."
        )
    ids = np.where(items >= 0, group_of[items], -1)  # (B, list_length)
    again = pd.DataFrame({"user": np.arange(len(ids)).repeat(ids.shape[1]), "id": ids.ravel()}).duplicated()
    is_first = ~again.to_numpy().reshape(ids.shape) & (ids >= 0)
    is_target = ids == group_of[target_items][:, None]
    is_found = is_target.any(axis=1)
    start = np.where(is_found, is_target.argmax(axis=1) if ids.shape[1] else 0, -1)
    before = np.where(np.arange(ids.shape[1]) < start[:, None], is_first, False).sum(axis=1)
    return IdRanks(
        id_rank=np.where(is_found, before, -1),
        group_start=start,
        group_size=np.bincount(group_of)[group_of[target_items]],
        num_ids=is_first.sum(axis=1),
    )


def corrected_recall_per_user(group_start: ArrayLike, group_size: ArrayLike, *, k: int) -> NDArray[np.float64]:
    """
    Chance that the target is among the first `k`, if the items of its id stand in a random order.

    With `g` items from 1-based position `p` on: `m / g` with `m = min(g, max(0, k - p + 1))`, as in arXiv 2605.25330.

    Args: `group_start` and `group_size` as in [`IdRanks`], and the cut-off `k`.
    """
    first, end, size = _span(group_start, group_size, k)
    return (end - first) / size


def corrected_ndcg_per_user(group_start: ArrayLike, group_size: ArrayLike, *, k: int) -> NDArray[np.float64]:
    """
    Expected discounted gain of the target: the mean over the positions of the items of its id, 0 behind `k`.

    Args: see [`corrected_recall_per_user`].
    """
    first, end, size = _span(group_start, group_size, k)
    gain_before = np.append(0.0, np.cumsum(1 / np.log2(np.arange(k) + 2)))  # of the first 0 ... k positions together
    return (gain_before[end] - gain_before[first]) / size


def _span(
    group_start: ArrayLike, group_size: ArrayLike, k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """First position and end of each group, both cut off at `k`, and the size; an empty span for a miss."""
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    start, size = np.asarray(group_start, dtype=np.int64), np.asarray(group_size, dtype=np.int64)
    if start.ndim != 1 or start.shape != size.shape or (start < -1).any() or (size < 1).any():
        raise ValueError(
            "`group_start` must be a vector of 0-based positions or -1 and `group_size` one of sizes of at least 1, "
            f"got {start!r} and {size!r}."
        )
    is_found = start >= 0
    return np.where(is_found, np.minimum(start, k), 0), np.where(is_found, np.minimum(start + size, k), 0), size
