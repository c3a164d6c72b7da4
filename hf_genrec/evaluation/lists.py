"""
Whole lists in, what they are like out: how much of the catalog they show, how evenly, how popular and how alike.

No target is needed. `lists` are item indices, a matrix with one row per user, best first, `-1` where a list is
shorter, as from [`item_indices`]. `counts` says how often each item occurs in the training part. A user whose
list is empty has no value (NaN).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray


_CHUNK_ENTRIES = 2**22  # of the vectors of items that are compared at a time


def item_indices(
    lists: Sequence[Sequence[str]], *, item_ids: Sequence[str] | pd.Index, k: int | None = None
) -> NDArray[np.int64]:
    """
    Lists of item ids as a matrix of item indices, `-1` where there is no item.

    Args: ranked item ids per user, lists of any length; the catalog; and how many of each list are kept, `None` for
    as many as the longest has.

    >>> item_indices([["comb", "soap"], ["rock"]], item_ids=["soap", "brush", "comb"])
    array([[ 2,  0],
           [-1, -1]])
    """
    if k is not None and k < 1:
        raise ValueError(f"`k` must be at least 1 or None, got {k}.")
    cut = lists if k is None else [row[:k] for row in lists]
    lengths = np.fromiter(map(len, cut), dtype=np.int64, count=len(cut))
    indices = np.full((len(cut), k or int(lengths.max(initial=0))), -1, dtype=np.int64)
    flat = np.fromiter(chain.from_iterable(cut), dtype=object, count=int(lengths.sum()))
    indices[np.arange(indices.shape[1]) < lengths[:, None]] = _index(item_ids).get_indexer(flat)
    return indices


def history_matrix(
    histories: Sequence[Sequence[str]], *, item_ids: Sequence[str] | pd.Index, decay: float = 1.0
) -> sp.csr_array:
    """
    `decay ** age` of each item of each user, age 0 being the latest entry, summed over the entries of the item.

    Args: item ids per user, others are left out; the catalog; and the weight of an entry relative to the one after it,
    1 to count them.

    >>> history_matrix([["comb", "soap", "comb"], ["rock"]], item_ids=["soap", "brush", "comb"], decay=0.5).toarray()
    array([[0.5 , 0.  , 1.25],
           [0.  , 0.  , 0.  ]])
    """
    lengths = np.fromiter(map(len, histories), dtype=np.int64, count=len(histories))
    flat = np.fromiter(chain.from_iterable(histories), dtype=object, count=int(lengths.sum()))
    items = _index(item_ids).get_indexer(flat)
    users = np.repeat(np.arange(len(lengths)), lengths)
    ages = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(items))
    # at least tiny: 0 would mean that the user did not take it
    weights = np.maximum(decay ** ages.astype(np.float64), np.finfo(np.float64).tiny)
    is_known = items >= 0
    entries = (weights[is_known], (users[is_known], items[is_known]))
    return sp.coo_array(entries, shape=(len(histories), len(item_ids))).tocsr()


def _index(item_ids: Sequence[str] | pd.Index) -> pd.Index:
    """An index is taken as it is: `pd.Index` of one hashes all its ids again."""
    return item_ids if isinstance(item_ids, pd.Index) else pd.Index(item_ids)


def is_invalid_list(lists: ArrayLike, lengths: ArrayLike, *, expected: ArrayLike) -> NDArray[np.bool_]:
    """
    Which users got something else than as many distinct items of the catalog as they were to get.

    Args: `lists`, see the module, here `-1` inside a list is a foreign id; how many entries each list has, foreign
    ones among them; and how many items each user was to get.
    """
    items = np.sort(np.asarray(lists, dtype=np.int64), axis=1)
    is_new = items >= 0
    is_new[:, 1:] &= items[:, 1:] != items[:, :-1]
    return (np.asarray(lengths) != expected) | (is_new.sum(axis=1) != expected)


def list_values(
    lists: ArrayLike, histories: sp.csr_array, *, counts: ArrayLike, items: sp.csc_array, k: int
) -> dict[str, float | None]:
    """All properties of lists of this module. Args: those of the functions below; `k` stands behind the `@`."""
    num_items = items.shape[1]
    values: dict[str, NDArray[np.float64] | float] = {
        "coverage": coverage(lists, num_items=num_items),
        "gini": gini(lists, num_items=num_items),
        "novelty": novelty_per_user(lists, counts=counts),
        "diversity": diversity_per_user(lists, items=items),
        "popularity_lift": popularity_lift_per_user(lists, histories, counts=counts),
    }
    known = {name: np.atleast_1d(value)[~np.isnan(np.atleast_1d(value))] for name, value in values.items()}
    return {f"{name}@{k}": float(value.mean()) if len(value) else None for name, value in known.items()}


def coverage(lists: ArrayLike, *, num_items: int) -> float:
    """Share of the catalog that is in any list. Args: `lists`, see the module."""
    return float((_num_recommended(lists, num_items) > 0).mean())


def gini(lists: ArrayLike, *, num_items: int) -> float:
    """
    How unevenly the recommendations are spread over the catalog: 0 if all items are recommended equally often,
    `1 - 1 / N` if only one is.

    With `x_i` the number of lists that hold item `i`, in increasing order, `sum_i (2 i - N - 1) x_i / (N sum_i x_i)`
    over `i = 1 ... N`. Args: `lists`, see the module.
    """
    times = np.sort(_num_recommended(lists, num_items))
    if not times.sum():
        return float("nan")
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(weights @ times / (num_items * times.sum()))


def novelty_per_user(lists: ArrayLike, *, counts: ArrayLike) -> NDArray[np.float64]:
    """
    Mean self-information of each list in bits: `-log2(count_i / sum_j count_j)` over its items, where 0 counts as 1.

    Args: `lists` and `counts`, see the module.
    """
    count_array = np.asarray(counts, dtype=np.float64)
    if not count_array.sum():
        raise ValueError("`counts` must hold at least one interaction.")
    bits = np.log2(count_array.sum()) - np.log2(np.maximum(count_array, 1))
    return _mean_over_items(lists, bits)


def popularity_lift_per_user(lists: ArrayLike, histories: sp.csr_array, *, counts: ArrayLike) -> NDArray[np.float64]:
    """
    How much more popular each list is than the user's own taste: mean count of the list over that of the history, - 1.

    Args: `lists` and `counts`, see the module; `histories` is a [`history_matrix`].

    Source: Abdollahpouri et al. 2020, section 3 (https://arxiv.org/abs/2007.12230), there over groups of users.
    """
    count_array = np.asarray(counts, dtype=np.float64)
    listed, lengths = _mean_over_items(lists, count_array), histories.sum(axis=1)
    taken = (histories @ count_array) / np.maximum(lengths, 1)
    return np.divide(listed, taken, out=np.full(len(listed), np.nan), where=taken > 0) - 1


def unit_columns(interactions: sp.sparray) -> sp.csc_array:
    """Items as vectors of length 1 over the users who took them. Args: the training part `(num_users, num_items)`."""
    matrix = sp.csc_array(interactions, dtype=np.float32)
    lengths = np.sqrt(matrix.power(2).sum(axis=0))
    return sp.csc_array(matrix @ sp.diags_array(np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)))


def diversity_per_user(lists: ArrayLike, *, items: sp.csc_array) -> NDArray[np.float64]:
    """
    How unlike the items of each list are: 1 - the mean cosine over the pairs of the list.

    Items are compared by who took them, not by ids or texts, so that systems with other ids are measured alike.

    Args: `lists`, see the module; `items` are the vectors of [`unit_columns`].

    Source: Ziegler et al. 2005, section 3.3 (https://doi.org/10.1145/1060745.1060754).
    """
    num_items = items.shape[1]
    rows = np.asarray(lists, dtype=np.int64)
    first, second = np.triu_indices(rows.shape[1], k=1)
    left, right = rows[:, first], rows[:, second]
    is_pair = (left >= 0) & (right >= 0)  # (B, num_pairs)
    keys = np.minimum(left, right)[is_pair] * num_items + np.maximum(left, right)[is_pair]
    pairs, place = np.unique(keys, return_inverse=True)
    alike = np.zeros(is_pair.shape)
    alike[is_pair] = _cosines(items, *np.divmod(pairs, num_items))[place]
    num_pairs = is_pair.sum(axis=1)
    return 1 - np.divide(alike.sum(axis=1), num_pairs, out=np.full(len(rows), np.nan), where=num_pairs > 0)


def _cosines(items: sp.csc_array, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of pairs of columns; never all pairs of the catalog, which are as many as the square of the longest history."""
    sizes = np.diff(items.indptr)
    chunk_of = np.cumsum(sizes[left] + sizes[right]) // _CHUNK_ENTRIES
    ends = [*(np.flatnonzero(np.diff(chunk_of)) + 1), len(left)]
    parts = [
        items[:, left[start:end]].multiply(items[:, right[start:end]]).sum(axis=0)
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return np.minimum(np.concatenate([np.zeros(0), *parts]), 1)  # rounding goes beyond


def _num_recommended(lists: ArrayLike, num_items: int) -> NDArray[np.int64]:
    items = np.asarray(lists, dtype=np.int64)
    return np.bincount(items[items >= 0], minlength=num_items)


def _mean_over_items(lists: ArrayLike, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of `values` over the items of each row, NaN where it has none."""
    items = np.asarray(lists, dtype=np.int64)
    is_item = items >= 0
    total = np.where(is_item, values[items], 0.0).sum(axis=1)  # -1 reads the last value, which is not used
    num_listed = is_item.sum(axis=1)
    return np.divide(total, num_listed, out=np.full(len(items), np.nan), where=num_listed > 0)
