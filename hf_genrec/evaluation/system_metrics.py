"""
One system's lists and the users' targets in, the values of its evaluation record out.

Between the metrics, which know arrays, and the evaluation, which knows protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_genrec.data.prepare import PreparedDataset
from hf_genrec.data.prepared import interaction_matrix
from hf_genrec.evaluation.lists import (
    coverage,
    diversity_per_user,
    gini,
    history_matrix,
    item_cosines,
    item_indices,
    novelty_per_user,
    popularity_lift_per_user,
)
from hf_genrec.evaluation.metrics import (
    bootstrap_interval,
    mrr_per_user,
    ndcg_at_k,
    ndcg_per_user,
    ranks_of_targets,
    recall_at_k,
    recall_per_user,
)
from hf_genrec.evaluation.shared_ids import IdRanks, corrected_ndcg_per_user, corrected_recall_per_user, rank_ids


_CHUNK_CELLS = 2**25  # exact scores at a time


@dataclass(frozen=True)
class Asked:
    """
    Whom an evaluation asks about.

    Args:
        user_ids (`list[str]`): The users.
        histories (`list[list[str]]`): What each took, oldest first.
        targets (`list[str]`): What each took next.
    """

    user_ids: list[str]
    histories: list[list[str]]
    targets: list[str]


@dataclass(frozen=True)
class TrainingPart:
    """
    What the metrics need to know of the training part, computed once for all systems.

    Args:
        item_ids (`list[str]`): The catalog.
        counts (`np.ndarray` of shape `(num_items,)`): Occurrences of each item.
        cosines (`scipy.sparse.csr_array` of shape `(num_items, num_items)`): See [`~list_metrics.item_cosines`].
    """

    item_ids: list[str]
    counts: NDArray[np.int64]
    cosines: sp.csr_array

    @classmethod
    def of(cls, prepared: PreparedDataset) -> TrainingPart:
        """
        Read it.

        Args:
            prepared ([`PreparedDataset`]): The data set.

        Returns:
            [`TrainingPart`]
        """
        item_ids = prepared.item_ids
        return cls(item_ids, prepared.train_item_counts(), item_cosines(interaction_matrix(prepared, item_ids)))

    def num_train(self, targets: Sequence[str]) -> NDArray[np.int64]:
        """
        How often items occur in the training part.

        Args:
            targets (`list[str]`): Item ids.

        Returns:
            `np.ndarray` of shape `(len(targets),)`, int64: 0 for an id that is no item.
        """
        items = item_indices([targets], item_ids=self.item_ids)[0]
        return np.where(items >= 0, self.counts[items], 0)


def rank_values(ranks: NDArray[np.int64], *, ks: Sequence[int], confidence: float, seed: int) -> dict[str, Any]:
    """
    Recall, ndcg and mrr at all cut-offs, with intervals.

    Args:
        ranks (`np.ndarray` of shape `(num_users,)`): 0-based rank of each target, -1 for none.
        ks (`tuple[int, ...]`): Cut-offs.
        confidence (`float`): Of the bootstrap intervals.
        seed (`int`): Of the bootstrap.

    Returns:
        `dict`: `recall@k`, `ndcg@k`, `mrr@k` and `intervals` by the same names.

    Example:

    ```python
    >>> rank_values(np.array([0, 0]), ks=(1,), confidence=0.95, seed=0)["intervals"]
    {'recall@1': [0.158..., 1.0], 'ndcg@1': [0.158..., 1.0], 'mrr@1': [0.158..., 1.0]}

    ```
    """
    metrics = {"recall": recall_per_user, "ndcg": ndcg_per_user, "mrr": mrr_per_user}
    values = {f"{name}@{k}": metric(ranks, k=k) for name, metric in metrics.items() for k in ks}
    return _means(values) | {"intervals": _intervals(values, confidence=confidence, seed=seed)}


def list_values(
    lists: Sequence[Sequence[str]], histories: Sequence[Sequence[str]], training: TrainingPart, *, k: int
) -> dict[str, float | None]:
    """
    What the first `k` items of all lists are like.

    Args:
        lists (`list[list[str]]`): Recommended ids, best first; those that are no items are left out.
        histories (`list[list[str]]`): What each user took.
        training ([`TrainingPart`]): Of the data set.
        k (`int`): How many items of each list count.

    Returns:
        `dict`: coverage, gini, novelty, diversity and popularity lift at `k`; means over the users that have a value,
        `None` where nobody has.
    """
    items = item_indices(lists, item_ids=training.item_ids, k=k)
    taken = history_matrix(histories, item_ids=training.item_ids)
    values: dict[str, NDArray[np.float64] | float] = {
        "coverage": coverage(items, num_items=len(training.item_ids)),
        "gini": gini(items, num_items=len(training.item_ids)),
        "novelty": novelty_per_user(items, counts=training.counts),
        "diversity": diversity_per_user(items, cosines=training.cosines),
        "popularity_lift": popularity_lift_per_user(items, taken, counts=training.counts),
    }
    return {f"{name}@{k}": _mean_of_known(np.atleast_1d(value)) for name, value in values.items()}


def rank_shared_ids(
    lists: Sequence[Sequence[str]], targets: Sequence[str], *, item_ids: Sequence[str], groups: NDArray[np.int64]
) -> IdRanks:
    """
    [`~id_metrics.rank_ids`] for lists of item ids.

    Args:
        lists (`list[list[str]]`): Recommended ids, best first.
        targets (`list[str]`): The item that each user took.
        item_ids (`list[str]`): The catalog in the order of `groups`.
        groups (`np.ndarray` of shape `(num_items,)`): Which items share a semantic ID.

    Returns:
        [`IdRanks`]
    """
    return rank_ids(
        item_indices(lists, item_ids=item_ids), item_indices([targets], item_ids=item_ids)[0], groups=groups
    )


def shared_id_values(
    ids: IdRanks, *, ks: Sequence[int], k: int, confidence: float, seed: int
) -> dict[str, dict[str, Any] | int]:
    """
    The collision-corrected and the id-level numbers.

    Args:
        ids ([`IdRanks`]): Where the targets' ids stand.
        ks (`tuple[int, ...]`): Cut-offs.
        k (`int`): How many distinct ids a list should hold.
        confidence (`float`): Of the bootstrap intervals.
        seed (`int`): Of the bootstrap.

    Returns:
        `dict`: `corrected` (with `intervals`), `id_level` and `num_id_truncated`.
    """
    spans = (ids.group_start, ids.group_size)
    corrected = {f"recall@{cut}": corrected_recall_per_user(*spans, k=cut) for cut in ks}
    corrected |= {f"ndcg@{cut}": corrected_ndcg_per_user(*spans, k=cut) for cut in ks}
    id_level = {f"recall@{cut}": recall_per_user(ids.id_rank, k=cut) for cut in ks}
    id_level |= {f"ndcg@{cut}": ndcg_per_user(ids.id_rank, k=cut) for cut in ks}
    return {
        "corrected": _means(corrected) | {"intervals": _intervals(corrected, confidence=confidence, seed=seed)},
        "id_level": _means(id_level),
        "num_id_truncated": int(((ids.id_rank < 0) & (ids.num_ids < k)).sum()),
    }


def exact_gap(
    recommender: Any,
    asked: Asked,
    lists: Sequence[Sequence[str]],
    *,
    num_users: int,
    k: int,
    exclude_seen: bool,
    seed: int,
) -> dict[str, float | int]:
    """
    How far a search is from scoring the whole catalog, on a sample of users.

    Args:
        recommender: A recommender with `item_ids` and `score_items(histories)`.
        asked ([`Asked`]): The users.
        lists (`list[list[str]]`): What the search found for them.
        num_users (`int`): Size of the sample.
        k (`int`): Cut-off.
        exclude_seen (`bool`): Whether the search left out items of the history.
        seed (`int`): Of the sample.

    Returns:
        `dict`: `num_users`, `ndcg@k` of the lists, `exact_ndcg@k` of the exact order (equal scores in the order of the
        catalog), and `overlap@k`, the share of the exact first `k` that are among the first `k` of the lists.

    Raises:
        ValueError: If the recommender cannot score all items.
    """
    if not hasattr(recommender, "score_items"):
        raise ValueError(
            f"`exact_sample` needs a recommender with `score_items`, a loaded model; {type(recommender).__name__} has "
            "none."
        )
    size = min(num_users, len(asked.targets))
    users = np.sort(np.random.default_rng(seed).choice(len(asked.targets), size=size, replace=False))
    item_ids = list(recommender.item_ids)
    found = item_indices([lists[user] for user in users], item_ids=item_ids, k=k)
    targets = item_indices([[asked.targets[user] for user in users]], item_ids=item_ids)[0]
    best = np.empty((size, min(k, len(item_ids))), dtype=np.int64)
    num_chunk_users = max(1, _CHUNK_CELLS // len(item_ids))
    for start in range(0, size, num_chunk_users):
        histories = [asked.histories[user] for user in users[start : start + num_chunk_users]]
        scores = np.array(recommender.score_items(histories))
        if exclude_seen:
            scores[history_matrix(histories, item_ids=item_ids).nonzero()] = -np.inf
        best[start : start + num_chunk_users] = np.argsort(-scores, axis=1, kind="stable")[:, : best.shape[1]]
    is_shared = (best[:, :, None] == found[:, None, :]).any(axis=2)
    return {
        "num_users": size,
        f"ndcg@{k}": ndcg_at_k(ranks_of_targets(found, targets), k=k),
        f"exact_ndcg@{k}": ndcg_at_k(ranks_of_targets(best, targets), k=k),
        f"overlap@{k}": float(is_shared.mean()),
    }


def by_popularity(ranks: NDArray[np.int64], num_train: NDArray[np.int64], *, k: int) -> list[dict[str, Any]]:
    """
    Recall and ndcg by how often the target occurs in the training part.

    Args:
        ranks (`np.ndarray` of shape `(num_users,)`): 0-based rank of each target, -1 for none.
        num_train (`np.ndarray` of shape `(num_users,)`): Occurrences of each target in the training part.
        k (`int`): Cut-off.

    Returns:
        `list[dict]`: `bucket` (`"0"`, `"1-5"`, `"6-10"`, `"11-15"`, `"16-20"` or `"21+"`), `num_users`, `recall@k` and
        `ndcg@k`; buckets without users are left out.

    Example:

    ```python
    >>> for row in by_popularity(np.array([0, -1, 1]), np.array([3, 0, 5]), k=1):
    ...     row
    {'bucket': '0', 'num_users': 1, 'recall@1': 0.0, 'ndcg@1': 0.0}
    {'bucket': '1-5', 'num_users': 2, 'recall@1': 0.5, 'ndcg@1': 0.5}

    ```
    """
    bucket_of = np.searchsorted(list(_BUCKETS.values()), num_train, side="right") - 1
    rows = []
    for number, bucket in enumerate(_BUCKETS):
        inside = ranks[bucket_of == number]
        if len(inside):
            values = {f"recall@{k}": recall_at_k(inside, k=k), f"ndcg@{k}": ndcg_at_k(inside, k=k)}
            rows.append({"bucket": bucket, "num_users": len(inside), **values})
    return rows


_BUCKETS = {"0": 0, "1-5": 1, "6-10": 6, "11-15": 11, "16-20": 16, "21+": 21}  # and the least count in each


def _means(values: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    return {name: float(value.mean()) for name, value in values.items()}


def _intervals(values: dict[str, NDArray[np.float64]], *, confidence: float, seed: int) -> dict[str, list[float]]:
    return {name: list(bootstrap_interval(v, confidence=confidence, seed=seed)) for name, v in values.items()}


def _mean_of_known(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
