"""
Lists, targets and semantic IDs in, out how often lists begin with popular codes and how much of their IDs they share.

A beam search keeps what is likely at every level, so a prefix that many users are drawn to can take the beams of all:
lists show popular prefixes more often than targets do (amplification), and the items of a list look alike
(homogeneity). Neither needs a model: lists of any recommender are read through any table of semantic IDs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_genrec.tokenizers.collisions import group_by_codes


POPULAR_SHARE = 0.5  # of the training interactions, which popular prefixes hold together


def popular_prefixes(
    lists: ArrayLike, targets: ArrayLike, *, codes: NDArray[np.integer], counts: ArrayLike
) -> list[dict[str, Any]]:
    """
    How often lists and targets begin with popular prefixes, for every length of prefix.

    Popular are the most frequent prefixes that hold half of the training interactions, as few as suffice. See
    [`~lists.popularity_lift_per_user`] for the popularity of single items against a user's own taste.

    Args:
        lists (`array` of shape `(num_users, k)`): Item indices, `-1` where a list is shorter.
        targets (`array` of shape `(num_users,)`): The next item of each user, `-1` where it is not in the catalog.
        codes (`array` of shape `(num_items, num_levels)`): Semantic IDs.
        counts (`array` of shape `(num_items,)`): How often each item occurs in the training part.

    Returns:
        `list[dict]`: for each length `num_codes`, from one code to the whole ID: `num_prefixes` and `num_popular`; the
        shares `in_targets` and `in_lists` (of all places of all lists) that begin with a popular one, and
        `amplification`, the latter over the former; `None` where there is nothing to count.

    Example:

    ```python
    >>> codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> first, whole = popular_prefixes([[0, 1], [0, 2]], [0, 3], codes=codes, counts=[5, 1, 2, 2])
    >>> first["in_targets"], first["in_lists"], first["amplification"]
    (0.5, 0.75, 1.5)

    ```
    """
    weights = np.asarray(counts, dtype=np.float64)
    if not weights.sum():
        raise ValueError("`counts` must hold at least one interaction.")
    shown, wanted = _known(lists), _known(targets)
    rows = []
    for num_codes in range(1, codes.shape[1] + 1):
        group_of, sizes = group_by_codes(codes[:, :num_codes])
        held = np.bincount(group_of, weights=weights, minlength=len(sizes))
        order = np.argsort(-held, kind="stable")
        num_popular = int(np.searchsorted(np.cumsum(held[order]), POPULAR_SHARE * held.sum())) + 1
        is_popular = np.isin(group_of, order[:num_popular])
        in_targets, in_lists = (float(is_popular[items].mean()) if len(items) else None for items in (wanted, shown))
        growth = in_lists / in_targets if in_lists is not None and in_targets else None
        row: dict[str, Any] = {"num_codes": num_codes, "num_prefixes": len(sizes), "num_popular": num_popular}
        rows.append(row | {"in_targets": in_targets, "in_lists": in_lists, "amplification": growth})
    return rows


def shared_codes_per_user(lists: ArrayLike, *, codes: NDArray[np.integer]) -> NDArray[np.float64]:
    """
    How many first codes two items of a list share, mean over the pairs of each list; NaN for less than two items.

    Args: item indices `(num_users, k)`, `-1` where a list is shorter; and semantic IDs `(num_items, num_levels)`.

    >>> shared_codes_per_user([[0, 1, 2], [0, 2, -1]], codes=np.array([[0, 0], [0, 1], [1, 0]]))
    array([0.33333333, 0.        ])
    """
    rows = np.asarray(lists, dtype=np.int64)
    first, second = np.triu_indices(rows.shape[1], k=1)
    left, right = rows[:, first], rows[:, second]
    is_pair = (left >= 0) & (right >= 0)  # (num_users, num_pairs)
    alike = np.ones(is_pair.shape, dtype=bool)
    total = np.zeros(len(rows))
    for level in range(codes.shape[1]):
        alike &= codes[left, level] == codes[right, level]
        total += (alike & is_pair).sum(axis=1)
    num_pairs = is_pair.sum(axis=1)
    return np.divide(total, num_pairs, out=np.full(len(rows), np.nan), where=num_pairs > 0)


def shared_codes_of_pairs(items: ArrayLike, *, codes: NDArray[np.integer]) -> float | None:
    """
    How many first codes two of these items share, mean over all pairs: of targets, what lists of strangers would have.

    Args: item indices, `-1` for none; and semantic IDs `(num_items, num_levels)`. `None` for less than two items.

    >>> shared_codes_of_pairs([0, 1, 2], codes=np.array([[0, 0], [0, 1], [1, 0]]))
    0.3333333333333333
    """
    known = _known(items)
    if len(known) < 2:
        return None
    pairs = 0.0
    for num_codes in range(1, codes.shape[1] + 1):
        group_of, sizes = group_by_codes(codes[:, :num_codes])
        times = np.bincount(group_of[known], minlength=len(sizes)).astype(np.float64)
        pairs += float((times * (times - 1)).sum())
    return pairs / (len(known) * (len(known) - 1))


def _known(items: ArrayLike) -> NDArray[np.int64]:
    flat = np.asarray(items, dtype=np.int64).ravel()
    return flat[flat >= 0]
