"""
Ranks of targets in, numbers out: metrics per user and for all users, their intervals, and tests between two systems.

Every user has one target and counts in every denominator, with or without a hit. `ranks` of shape `(num_users,)` are
the 0-based positions of the targets, `-1` where a target was not recommended; `k` is a cut-off of at least 1. All
metrics are shares in [0, 1], not percentages.

Two systems see the same users, and most users are easy or hopeless for both: the difference per user varies far less
than either value, so paired intervals are narrower than what two intervals side by side suggest.

In some catalogs several items share a semantic ID. A model cannot tell them apart: they stand together in its lists,
in the order of the catalog, which is not the model's and may lean to popular items; and a metric that takes the id for
the item overestimates. Beside the item-level metric of the lists as they are stand the *corrected* one, its
expectation if the items of an id stood in a random order, and the *id-level* one, which takes the id for the item.

>>> ranks = ranks_of_targets([["soap", "comb"], ["comb"], []], ["comb", "soap", "comb"])
>>> ranks, recall_per_user(ranks, k=2), ndcg_per_user([0, 4, -1, 2], k=3)
(array([ 1, -1, -1]), array([1., 0., 0.]), array([1. , 0. , 0. , 0.5]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from hf_genrec.tokenizers.collisions import group_by_codes


DEFAULT_NUM_RESAMPLES = 9999
_CHUNK = 1 << 21  # numbers drawn at a time: 16 MB


def ranks_of_targets(
    recommended: Sequence[Sequence[str]] | NDArray[np.integer], targets: Sequence[str] | NDArray[np.integer]
) -> NDArray[np.int64]:
    """
    Position of each user's target in the user's list.

    Args: lists of item ids, best first, or a matrix of item indices `(num_users, top_k)`; and a target per user.
    """
    if len(recommended) != len(targets):
        raise ValueError(
            f"`recommended` must hold one list per target, got {len(recommended)} lists and {len(targets)} targets."
        )
    if isinstance(recommended, np.ndarray):
        is_hit = recommended == np.asarray(targets)[:, None]  # (B, top_k)
        return np.where(is_hit.any(axis=1), is_hit.argmax(axis=1), -1).astype(np.int64)
    found = [row.index(own) if own in row else -1 for row, own in zip(map(list, recommended), targets, strict=True)]
    return np.array(found, dtype=np.int64)


def recall_per_user(ranks: ArrayLike, *, k: int) -> NDArray[np.float64]:
    """Whether each user's target is among the first `k` recommendations. Args: see the module."""
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    rank_array = np.asarray(ranks, dtype=np.int64)
    if rank_array.ndim != 1 or (rank_array < -1).any():
        raise ValueError(f"`ranks` must be a vector of 0-based ranks or -1, got {rank_array!r}.")
    return ((rank_array >= 0) & (rank_array < k)).astype(np.float64)


def ndcg_per_user(ranks: ArrayLike, *, k: int) -> NDArray[np.float64]:
    """
    Discounted gain of each user's target: `1 / log2(rank + 2)` if `rank < k`, else 0; with one target the ideal is 1.

    Args: see the module.
    """
    return recall_per_user(ranks, k=k) / np.log2(np.maximum(ranks, 0) + 2)


def mrr_per_user(ranks: ArrayLike, *, k: int) -> NDArray[np.float64]:
    """Reciprocal rank of each user's target: `1 / (rank + 1)` if `rank < k`, else 0. Args: see the module."""
    return recall_per_user(ranks, k=k) / (np.maximum(ranks, 0) + 1)


def recall_at_k(ranks: ArrayLike, *, k: int) -> float:
    """
    Share of users whose target is among the first `k`; with one target this is the hit rate. Args: see the module.
    """
    return _mean(recall_per_user(ranks, k=k))


def ndcg_at_k(ranks: ArrayLike, *, k: int) -> float:
    """Mean over all users of the discounted gain; unlike recall it rewards the top. Args: see the module."""
    return _mean(ndcg_per_user(ranks, k=k))


PER_USER = {"recall": recall_per_user, "ndcg": ndcg_per_user, "mrr": mrr_per_user}


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


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, num_resamples: int = 1000, seed: int = 0, is_share: bool = True
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of the mean of per-user values.

    Resamples of users who all have 0 are all 0, which would claim certainty. The mean of values in [0, 1] is at most
    the share of users above 0, so there the upper end is that of the exact binomial interval (Clopper and Pearson) of
    that share; where all users have 1, the lower end is that of the share of users with 1.

    Args: one value per user; the share of resampled means inside; the number of resamples and their seed; `is_share`
    is `False` where values do not lie in [0, 1], such as differences.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}.")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be at least 1, got {num_resamples}.")
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    num_users = int(counts.sum())
    if num_users == 0:
        raise ValueError("`values` must hold at least one user.")
    if is_share and len(distinct) == 1 and distinct[0] in (0.0, 1.0):
        from scipy import stats  # seldom needed, and slow to import

        exact = stats.binomtest(int(distinct[0]) * num_users, num_users).proportion_ci(confidence, method="exact")
        return float(exact.low), float(exact.high)
    # how often each distinct value is drawn is multinomial: 21 draws for ndcg@20 instead of one per user
    generator, rows = np.random.default_rng(seed), max(1, _CHUNK // len(distinct))
    sizes = [min(rows, num_resamples - start) for start in range(0, num_resamples, rows)]
    sums = [generator.multinomial(num_users, counts / num_users, size=size) @ distinct for size in sizes]
    means = np.concatenate(sums) / num_users
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """How far one system is from another, with the evidence for it: interval and two-sided p-value."""

    difference: float  # mean of the values minus mean of the reference's; above 0 where the system is better
    low: float | None
    high: float | None
    p_value: float | None  # how often chance alone makes a difference as large as this one
    num_pairs: int  # users or seeds


def paired_difference(
    values: ArrayLike,
    reference: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """
    Difference of two means over the same users: bootstrap interval and p-value of [`sign_flip_p_value`].

    Args: one value per user of each system, users in one order; the others as in [`bootstrap_interval`].

    >>> paired_difference([1.0, 0.5, 1.0, 0.0], [0.5, 0.0, 0.5, 0.0])
    PairedDifference(difference=0.375, low=0.125, high=0.5, p_value=0.25, num_pairs=4)
    """
    differences = _differences(values, reference, least=1)
    low, high = bootstrap_interval(
        differences, confidence=confidence, num_resamples=num_resamples, seed=seed, is_share=False
    )
    p_value = sign_flip_p_value(differences, num_resamples=num_resamples, seed=seed)
    return PairedDifference(float(differences.mean()), low, high, p_value, len(differences))


def seed_difference(values: ArrayLike, reference: ArrayLike, *, confidence: float = 0.95) -> PairedDifference:
    """
    Difference of two means over the same seeds of training, with the interval of the paired t-test.

    Unlike [`paired_difference`], which takes the trained models as given, this estimates what another seed would
    change. Seeds that all differ by the same say nothing about another one: neither interval nor p-value.

    Args: one value per seed of each system, seeds in one order; the confidence of the interval.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}.")
    differences = _differences(values, reference, least=2)
    difference, num_seeds = float(differences.mean()), len(differences)
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():  # no spread beyond rounding
        return PairedDifference(difference, None, None, None, num_seeds)
    from scipy import stats  # slow to import

    test = stats.ttest_1samp(differences, 0.0)
    low, high = map(float, test.confidence_interval(confidence))
    return PairedDifference(difference, low, high, float(test.pvalue), num_seeds)


def sign_flip_p_value(differences: ArrayLike, *, num_resamples: int = DEFAULT_NUM_RESAMPLES, seed: int = 0) -> float:
    """
    Two-sided p-value of the paired permutation test: how often random signs make a sum as far from 0.

    Where all combinations of signs are no more than `num_resamples`, they are counted instead of drawn.

    Args: one difference per user; the others as in [`bootstrap_interval`].
    """
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be at least 1, got {num_resamples}.")
    changed = np.asarray(differences, dtype=np.float64)
    changed = changed[changed != 0]
    if changed.size < 2:
        return 1.0  # one user, whose sign is either
    if changed.size < 64 and 2**changed.size <= num_resamples:
        from scipy import stats  # slow to import

        test = stats.permutation_test(
            (changed,), np.sum, permutation_type="samples", n_resamples=num_resamples, vectorized=True
        )
        return float(test.pvalue)
    # of n users with equal differences up to sign, the number that keeps it is binomial: a draw per distinct size
    sizes, counts = np.unique(np.abs(changed), return_counts=True)
    observed = abs(changed.sum()) * (1 - 1e-12)  # a tie counts, however its sum was rounded
    generator, num_extreme = np.random.default_rng(seed), 0
    rows = max(1, _CHUNK // len(sizes))
    for start in range(0, num_resamples, rows):
        kept = generator.binomial(counts, 0.5, size=(min(rows, num_resamples - start), len(sizes)))
        num_extreme += int((np.abs((2 * kept - counts) @ sizes) >= observed).sum())
    return (num_extreme + 1) / (num_resamples + 1)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """
    P-values corrected for being several (Holm 1979): each stays below a level only as often as one alone would.

    Args: one p-value per comparison.
    """
    array = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(array)
    factors = np.arange(len(array), 0, -1)
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(np.maximum.accumulate(array[order] * factors), 1.0)
    return adjusted.tolist()


def _mean(values: NDArray[np.float64]) -> float:
    if values.size == 0:
        raise ValueError("`ranks` must hold at least one user.")
    return float(values.mean())


def _differences(values: ArrayLike, reference: ArrayLike, *, least: int) -> NDArray[np.float64]:
    first, second = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < least:
        raise ValueError(
            f"`values` and `reference` must be two vectors of the same length, at least {least}; "
            f"got the shapes {first.shape} and {second.shape}."
        )
    differences = first - second
    if not np.isfinite(differences).all():
        raise ValueError("`values` and `reference` must be finite numbers; keep every user and count a miss as 0.")
    return differences
