"""
Baselines in which most items score 0: what a list takes grows with what the history speaks of, not with the catalog.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines.base import CatalogRanker


_USERS_AT_ONCE = 1024
_LEAST_COLUMNS = 64  # in which items without a score are looked for first


class SparseRanker(CatalogRanker):
    """
    A recommender whose scores are a sparse matrix; its lists are those of [`CatalogRanker`] on the whole matrix.

    Args: see [`CatalogRanker`].
    """

    @abstractmethod
    def sparse_scores(self, weights: sp.csr_array) -> sp.csr_array:
        """
        The scores that may differ from 0, `(num_users, num_items)`.

        Args: see [`CatalogRanker.scores`].
        """

    def scores(self, weights: sp.csr_array) -> NDArray[np.float64]:
        """See [`CatalogRanker.scores`]; a whole matrix, which nothing here reads."""
        return self.sparse_scores(weights).toarray()

    @property
    def _users_at_once(self) -> int:
        return _USERS_AT_ONCE

    def _lists(
        self, weights: sp.csr_array, top_k: int, exclude_seen: bool
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        found = self.sparse_scores(weights)
        users = np.repeat(np.arange(len(weights.indptr) - 1), np.diff(found.indptr))
        is_open = np.ones(len(users), bool)
        if exclude_seen:
            takers, seen = weights.nonzero()
            keys = (
                own.astype(np.int64) * found.shape[1] + items
                for own, items in ((users, found.indices), (takers, seen))
            )
            is_open = ~np.isin(*keys)
        zeros = _first_without(found, weights if exclude_seen else None, top_k)
        for user, others in enumerate(zeros):
            span = slice(found.indptr[user], found.indptr[user + 1])
            items, values = found.indices[span][is_open[span]], found.data[span][is_open[span]]
            if len(values) > top_k:
                is_kept = values >= np.partition(values, -top_k)[-top_k]  # and all equal ones: the first of them win
                items, values = items[is_kept], values[is_kept]
            items, values = np.concatenate([items, others]), np.concatenate([values, np.zeros(len(others))])
            order = np.lexsort((items, -values))[:top_k]
            yield items[order], values[order]

    def _before(self, weights: sp.csr_array, own: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        found = self.sparse_scores(weights)
        users = np.repeat(np.arange(len(own)), np.diff(found.indptr))
        every, targets = np.arange(len(own)), np.maximum(own, 0)
        of_target = found[every, targets]
        is_first = found.indices < targets[users]
        is_before = (found.data > of_target[users]) | ((found.data == of_target[users]) & is_first)
        num_before = np.bincount(users, weights=is_before, minlength=len(own))
        # the items that are not in the matrix: all before a target below 0, of 0 those that are more popular
        num_first = np.bincount(users, weights=is_first, minlength=len(own))
        num_zeros = np.where(of_target == 0, targets - num_first, found.shape[1] - np.diff(found.indptr))
        num_before += np.where(of_target > 0, 0, num_zeros)
        takers, seen = weights.nonzero()
        of_seen = found[takers, seen]
        is_seen_before = (of_seen > of_target[takers]) | ((of_seen == of_target[takers]) & (seen < targets[takers]))
        return num_before.astype(np.int64), is_seen_before


class Popularity(SparseRanker):
    """
    The most frequent items of the training part, the same for every user: the floor. A score is the item's share of
    all training interactions; equal counts keep the order of the catalog.

    Args: see [`CatalogRanker`].
    """

    title = "Popularity"

    @classmethod
    def for_columns(cls, prepared: PreparedDataset, *, seed: int = 0) -> dict[bool, Self]:
        """See [`CatalogRanker.for_columns`]: there is nothing to tune."""
        return dict.fromkeys((False, True), cls(prepared))

    def sparse_scores(self, weights: sp.csr_array) -> sp.csr_array:
        """None: items without a score stand in order of popularity."""
        return sp.csr_array(weights.shape)

    def _lists(
        self, weights: sp.csr_array, top_k: int, exclude_seen: bool
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        total = max(1, self.item_counts.sum())
        for items, _ in super()._lists(weights, top_k, exclude_seen):
            yield items, self.item_counts[items] / total


def _first_without(scores: sp.csr_array, seen: sp.csr_array | None, number: int) -> list[NDArray[np.int64]]:
    """For each user the first items that have no score and were not seen, `number` of them or as many as there are."""
    num_users, num_items = scores.shape
    width = min(num_items, max(_LEAST_COLUMNS, 2 * number))
    while True:
        is_free = np.ones((num_users, width), bool)
        for users, items in (_stored(scores), *([] if seen is None else [seen.nonzero()])):
            is_near = items < width
            is_free[users[is_near], items[is_near]] = False
        if width == num_items or is_free.sum(axis=1).min() >= number:
            return [np.flatnonzero(row)[:number] for row in is_free]
        width = min(num_items, 4 * width)


def _stored(matrix: sp.csr_array) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """Users and items of all entries, zeros among them."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices
