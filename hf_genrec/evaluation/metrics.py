"""
Ranked lists and targets in, numbers out: pure functions on arrays, one value per user or one for all users.

Every user has one target and counts in every denominator, with or without a hit. A rank is the 0-based position of the
target, `-1` where it was not recommended; all metrics are shares in [0, 1], not percentages.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray


_CHUNK = 1 << 21  # numbers drawn at a time: 16 MB


def ranks_of_targets(
    recommended: Sequence[Sequence[str]] | NDArray[np.integer], targets: Sequence[str] | NDArray[np.integer]
) -> NDArray[np.int64]:
    """
    Position of each user's target in the user's list.

    Args:
        recommended (`list[list[str]]` or `np.ndarray` of shape `(num_users, top_k)`):
            Ranked items per user, the best first: item ids in lists of any length, or item indices in a matrix.
        targets (`list[str]` or `np.ndarray` of shape `(num_users,)`):
            The item that each user took.

    Returns:
        `np.ndarray` of shape `(num_users,)`, int64: 0-based rank of the first occurrence, `-1` if there is none.

    Raises:
        ValueError: If there is not one list per target.

    Example:

    ```python
    >>> ranks_of_targets([["soap", "comb"], ["comb"], []], ["comb", "soap", "comb"])
    array([ 1, -1, -1])

    ```
    """
    if len(recommended) != len(targets):
        raise ValueError(
            f"`recommended` must hold one list per target, got {len(recommended)} lists and {len(targets)} targets."
        )
    if isinstance(recommended, np.ndarray):
        is_hit = recommended == np.asarray(targets)[:, None]  # (B, top_k)
        return np.where(is_hit.any(axis=1), is_hit.argmax(axis=1), -1).astype(np.int64)
    lengths = np.fromiter(map(len, recommended), dtype=np.int64, count=len(recommended))
    items = _strings(list(chain.from_iterable(recommended)))
    hits = np.flatnonzero(items == np.repeat(_strings(list(targets)), lengths))
    users = np.repeat(np.arange(len(lengths)), lengths)[hits]
    first_users, first_hits = np.unique(users, return_index=True)  # a repeated item counts at its first place
    ranks = np.full(len(lengths), -1, dtype=np.int64)
    ranks[first_users] = hits[first_hits] - (np.cumsum(lengths) - lengths)[first_users]
    return ranks


def recall_per_user(ranks: ArrayLike, *, k: int) -> NDArray[np.float64]:
    """
    Whether each user's target is among the first `k` recommendations.

    Args:
        ranks (`np.ndarray` of shape `(num_users,)`):
            0-based rank of each target; `-1` if it was not recommended.
        k (`int`):
            Cut-off, at least 1.

    Returns:
        `np.ndarray` of shape `(num_users,)`, float64: 1.0 or 0.0.

    Raises:
        ValueError: If `k` is below 1, or `ranks` is no vector of ranks.

    Example:

    ```python
    >>> recall_per_user([0, 4, -1, 1], k=3)
    array([1., 0., 0., 1.])

    ```
    """
    rank_array = _check_ranks(ranks, k)
    return ((rank_array >= 0) & (rank_array < k)).astype(np.float64)


def ndcg_per_user(ranks: ArrayLike, *, k: int) -> NDArray[np.float64]:
    """
    Discounted gain of each user's target: `1 / log2(rank + 2)` if `rank < k`, else 0.

    With one target per user the ideal gain is 1, so nothing is left to normalise.

    Args:
        ranks (`np.ndarray` of shape `(num_users,)`):
            0-based rank of each target; `-1` if it was not recommended.
        k (`int`):
            Cut-off, at least 1.

    Returns:
        `np.ndarray` of shape `(num_users,)`, float64: a share in [0, 1].

    Raises:
        ValueError: If `k` is below 1, or `ranks` is no vector of ranks.

    Example:

    ```python
    >>> ndcg_per_user([0, 4, -1, 2], k=3)
    array([1. , 0. , 0. , 0.5])

    ```
    """
    rank_array = _check_ranks(ranks, k)
    return np.where((rank_array >= 0) & (rank_array < k), 1 / np.log2(np.maximum(rank_array, 0) + 2), 0.0)


def mrr_per_user(ranks: ArrayLike, *, k: int) -> NDArray[np.float64]:
    """
    Reciprocal rank of each user's target: `1 / (rank + 1)` if `rank < k`, else 0.

    Falls faster than [`ndcg_per_user`]: the second place is worth 0.5 here and 0.63 there.

    Args:
        ranks (`np.ndarray` of shape `(num_users,)`):
            0-based rank of each target; `-1` if it was not recommended.
        k (`int`):
            Cut-off, at least 1.

    Returns:
        `np.ndarray` of shape `(num_users,)`, float64: a share in [0, 1].

    Raises:
        ValueError: If `k` is below 1, or `ranks` is no vector of ranks.

    Example:

    ```python
    >>> mrr_per_user([0, 4, -1, 1], k=3)
    array([1. , 0. , 0. , 0.5])

    ```
    """
    rank_array = _check_ranks(ranks, k)
    return np.where((rank_array >= 0) & (rank_array < k), 1 / (np.maximum(rank_array, 0) + 1), 0.0)


def recall_at_k(ranks: ArrayLike, *, k: int) -> float:
    """
    Share of users whose target is among the first `k` recommendations; with one target this is the hit rate.

    Args:
        ranks (`np.ndarray` of shape `(num_users,)`):
            0-based rank of each target; `-1` if it was not recommended.
        k (`int`):
            Cut-off, at least 1.

    Returns:
        `float`: a share in [0, 1], not a percentage.

    Raises:
        ValueError: If `k` is below 1, or there is no user.

    Source: Rajput et al. 2023, section 4 (https://huggingface.co/papers/2305.05065).

    Example:

    ```python
    >>> recall_at_k([0, 4, -1, 1], k=3)
    0.5

    ```
    """
    return _mean(recall_per_user(ranks, k=k))


def ndcg_at_k(ranks: ArrayLike, *, k: int) -> float:
    """
    Mean over all users of the discounted gain; unlike recall it rewards a target near the top.

    Args:
        ranks (`np.ndarray` of shape `(num_users,)`):
            0-based rank of each target; `-1` if it was not recommended.
        k (`int`):
            Cut-off, at least 1.

    Returns:
        `float`: a share in [0, 1], not a percentage.

    Raises:
        ValueError: If `k` is below 1, or there is no user.

    Source: Rajput et al. 2023, section 4 (https://huggingface.co/papers/2305.05065).

    Example:

    ```python
    >>> ndcg_at_k([0, 4, -1, 2], k=3)
    0.375

    ```
    """
    return _mean(ndcg_per_user(ranks, k=k))


def mrr_at_k(ranks: ArrayLike, *, k: int) -> float:
    """
    Mean over all users of the reciprocal rank, 0 from rank `k` on.

    Args:
        ranks (`np.ndarray` of shape `(num_users,)`):
            0-based rank of each target; `-1` if it was not recommended.
        k (`int`):
            Cut-off, at least 1.

    Returns:
        `float`: a share in [0, 1], not a percentage.

    Raises:
        ValueError: If `k` is below 1, or there is no user.

    Example:

    ```python
    >>> mrr_at_k([0, 4, -1, 1], k=3)
    0.375

    ```
    """
    return _mean(mrr_per_user(ranks, k=k))


def is_invalid_list(
    recommended: Sequence[Sequence[str]],
    *,
    catalog: Sequence[str],
    top_k: int,
    num_excluded: Sequence[int] | NDArray[np.integer] | None = None,
) -> NDArray[np.bool_]:
    """
    Which users got something else than `top_k` distinct items of the catalog.

    A list is invalid if it holds an id that is no item, repeats an item, or has another length than `top_k` (or, where
    that is smaller, than the number of items that may be recommended).

    Args:
        recommended (`list[list[str]]`):
            Ranked item ids per user.
        catalog (`list[str]`):
            All item ids.
        top_k (`int`):
            How many items each user was to get, at least 1.
        num_excluded (`np.ndarray` of shape `(num_users,)`, *optional*):
            How many items of the catalog each user was not to get, for example those already seen. `None` means none.

    Returns:
        `np.ndarray` of shape `(num_users,)`, bool.

    Raises:
        ValueError: If `top_k` is below 1.

    Example:

    ```python
    >>> lists = [["soap", "comb"], ["soap"], ["comb", "comb"], ["soap", "rock"]]
    >>> is_invalid_list(lists, catalog=["soap", "brush", "comb"], top_k=2)
    array([False,  True,  True,  True])

    ```
    """
    if top_k < 1:
        raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
    num_available = len(catalog) - (0 if num_excluded is None else np.asarray(num_excluded))
    lengths = np.fromiter(map(len, recommended), dtype=np.int64, count=len(recommended))
    is_invalid = lengths != np.minimum(top_k, num_available)
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = pd.Index(_strings(list(catalog))).get_indexer(_strings(list(chain.from_iterable(recommended))))
    is_invalid[users[items < 0]] = True
    is_repeated = pd.DataFrame({"user": users, "item": items}).duplicated().to_numpy()
    is_invalid[users[is_repeated]] = True
    return is_invalid


def bootstrap_interval(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    is_share: bool = True,
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of the mean of per-user values.

    Users are drawn with replacement. How often each distinct value is drawn is multinomial, so a resample costs one
    draw per distinct value (21 for ndcg@20) instead of one per user; the distribution is the same. The difference of
    two systems' values on the same users gives a paired interval (with `is_share=False`).

    Resamples of users who all have 0 are all 0, which would claim certainty. The mean of values in [0, 1] is at most
    the share of users above 0, so there the upper end is that of the exact binomial interval (Clopper and Pearson) of
    that share; where all users have 1, the lower end is that of the share of users with 1.

    Args:
        values (`np.ndarray` of shape `(num_users,)`):
            One value per user.
        confidence (`float`, *optional*, defaults to 0.95):
            Share of the resampled means inside the interval, between 0 and 1.
        num_resamples (`int`, *optional*, defaults to 1000):
            How many resamples are drawn, at least 1.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.
        is_share (`bool`, *optional*, defaults to `True`):
            Whether values lie in [0, 1], as those of recall, ndcg and mrr do; `False` for differences.

    Returns:
        `tuple[float, float]`: lower and upper end.

    Raises:
        ValueError: If `confidence` or `num_resamples` is out of range, or there is no user.

    Example:

    ```python
    >>> bootstrap_interval([0.25, 0.25, 0.25])
    (0.25, 0.25)
    >>> low, high = bootstrap_interval([0.0, 1.0] * 50)
    >>> low < 0.5 < high
    True
    >>> low, high = bootstrap_interval([0.0] * 100)
    >>> low, round(high, 4)
    (0.0, 0.0362)

    ```
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
    generator, rows = np.random.default_rng(seed), max(1, _CHUNK // len(distinct))
    sizes = [min(rows, num_resamples - start) for start in range(0, num_resamples, rows)]
    sums = [generator.multinomial(num_users, counts / num_users, size=size) @ distinct for size in sizes]
    means = np.concatenate(sums) / num_users
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _strings(values: Sequence[str]) -> NDArray[np.object_]:
    """Object arrays compare by Python equality and keep ids of any length without padding."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _check_ranks(ranks: ArrayLike, k: int) -> NDArray[np.int64]:
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    rank_array = np.asarray(ranks, dtype=np.int64)
    if rank_array.ndim != 1 or (rank_array < -1).any():
        raise ValueError(f"`ranks` must be a vector of 0-based ranks or -1, got {rank_array!r}.")
    return rank_array


def _mean(values: NDArray[np.float64]) -> float:
    if values.size == 0:
        raise ValueError("`ranks` must hold at least one user.")
    return float(values.mean())
