"""The bar that a model has to clear: items taken by the same users as the user's latest items."""

import copy
import itertools
import logging
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines.base import CatalogRanker, validation_users
from hf_genrec.evaluation.metrics import ndcg_at_k


logger = logging.getLogger(__name__)

MAX_PAIRS = 2**25  # pairs of items that are held in memory: 400 MB
ALPHAS, DECAYS = (0.1, 0.2, 0.3, 0.4, 0.5), (0.2, 0.35, 0.5, 0.7, 0.9)  # that are tried
NUM_NEIGHBORS = 200  # of each item, where there are more pairs than that
_BLOCK_PAIRS = 2**22  # counted at a time


class ItemKNN(CatalogRanker):
    """
    Recency-weighted item-to-item neighbours over the training part.

    Two items are as similar as `c / (d_i * d_j) ** alpha`, where `c` users took both and `d` users took each. An item
    scores the sum of its similarities to the history, each weighted by `decay ** age` (age 0 is the latest item).
    Items without any similarity follow in order of popularity, so lists are always full.

    Args:
        prepared ([`PreparedDataset`]): The data set; only its training part is read.
        alpha (`float`, *optional*, defaults to 0.3):
            How strongly popular items are discounted: 0 not at all, 0.5 is the cosine.
        decay (`float`, *optional*, defaults to 0.35):
            Weight of a history item relative to the one after it, in (0, 1].
        num_neighbors (`int`, *optional*):
            Keep only each item's most similar items. `None` keeps all, or 200 of each item where there may be more
            than 33 million pairs: memory does not grow with the square of one user's history.

    Raises:
        ValueError: If an argument is out of range.

    Source: ours; the defaults were chosen on the validation split of Amazon Beauty 2014.

    Example:

    ```python
    >>> import pandas as pd
    >>> import tempfile
    >>> from hf_genrec.data.prepare import prepare
    >>> log = pd.DataFrame({"user_id": list("uuuuvvvv"), "item_id": ["tea", "cup", "pot", "jam"] * 2})
    >>> items = [{"item_id": item, "title": item} for item in ["cup", "jam", "pot", "tea"]]
    >>> folder = tempfile.TemporaryDirectory()
    >>> prepared = prepare(folder.name, interactions=log, items=items, timestamp=None)
    >>> knn = ItemKNN.fit(prepared)  # learns from tea and cup, the training part of both users
    >>> knn.recommend(["tea"], top_k=2).item_ids
    ['cup', 'tea']
    >>> folder.cleanup()

    ```
    """

    title = "item-kNN"

    def __init__(
        self, prepared: PreparedDataset, *, alpha: float = 0.3, decay: float = 0.35, num_neighbors: int | None = None
    ) -> None:
        if alpha < 0:
            raise ValueError(f"`alpha` must be at least 0, got {alpha}.")
        if not 0 < decay <= 1:
            raise ValueError(f"`decay` must be in (0, 1], got {decay}.")
        if num_neighbors is not None and num_neighbors < 1:
            raise ValueError(f"`num_neighbors` must be at least 1 or None, got {num_neighbors}.")
        super().__init__(prepared, decay=decay)
        taken = prepared.interaction_matrix(self.item_ids)
        self._taken, self._users_of = taken, taken.T.tocsr()  # (num_users, num_items) and its transpose
        # at most so many pairs that each item has with others: of each of its users all items, but not more than exist
        lengths = np.diff(taken.indptr)
        self._num_pairs = np.minimum(self._users_of.astype(bool) @ lengths, len(self.item_ids))  # (num_items,)
        if num_neighbors is None and self._num_pairs.sum() > MAX_PAIRS:
            num_neighbors = NUM_NEIGHBORS
            logger.info("item-kNN keeps the %d most similar items of each: there are too many pairs.", num_neighbors)
        self.num_neighbors = num_neighbors
        self.alpha, self.similarity = alpha, self._similarity_at(alpha)

    @classmethod
    def fit(
        cls, prepared: PreparedDataset, *, alpha: float = 0.3, decay: float = 0.35, num_neighbors: int | None = None
    ) -> "ItemKNN":
        """Count which items were taken by the same users in the training part. Args: see [`ItemKNN`]."""
        return cls(prepared, alpha=alpha, decay=decay, num_neighbors=num_neighbors)

    @classmethod
    def tune(
        cls,
        prepared: PreparedDataset,
        *,
        exclude_seen: bool = False,
        alphas: tuple[float, ...] = ALPHAS,
        decays: tuple[float, ...] = DECAYS,
        max_users: int | None = 20_000,
        seed: int = 0,
    ) -> "ItemKNN":
        """
        Choose `alpha` and `decay` by ndcg@10 on the validation split; the test split is never read.

        Args:
            prepared ([`PreparedDataset`]): The data set; the neighbours come from its training part.
            exclude_seen (`bool`, *optional*, defaults to `False`): Whether for lists without items of the history.
            alphas (`tuple[float, ...]`, *optional*): Values of `alpha` to try.
            decays (`tuple[float, ...]`, *optional*): Values of `decay` to try.
            max_users (`int`, *optional*, defaults to 20000):
                Use a sample of this many validation users. `None` means all.
            seed (`int`, *optional*, defaults to 0): Seed of the sample.

        Returns:
            [`ItemKNN`]: fitted with the best pair; the first one on a tie.

        Raises:
            ValueError: If there is nothing to try, or the validation split is empty.
        """
        validation = validation_users(prepared, max_users=max_users, seed=seed)
        if not alphas or not decays:
            raise ValueError("`tune` needs at least one alpha and one decay.")
        return _tuned(cls(prepared), alphas, decays, validation)[exclude_seen]

    @classmethod
    def for_columns(cls, prepared: PreparedDataset, *, seed: int = 0) -> dict[bool, CatalogRanker]:
        """Tuned on the validation split for each of the two. Args: see [`CatalogRanker.for_columns`]."""
        return dict(_tuned(cls(prepared), ALPHAS, DECAYS, validation_users(prepared, max_users=20_000, seed=seed)))

    @property
    def settings(self) -> dict[str, float | int]:
        """See [`CatalogRanker`]."""
        kept = {} if self.num_neighbors is None else {"num_neighbors": self.num_neighbors}
        return {"alpha": self.alpha, "decay": self.decay} | kept

    def scores(self, weights: sp.csr_array) -> NDArray[np.float64]:
        """Sum of the weighted similarities to the history; 0 where an item is like nothing in it."""
        return (weights @ self.similarity).toarray()

    def _similarity_at(self, alpha: float) -> sp.csr_array:
        """The items in blocks of rows: what is in memory at a time is one block of pairs, and what is kept."""
        num_users = np.diff(self._users_of.indptr).astype(np.float64)  # (num_items,)
        block_of = np.cumsum(self._num_pairs) // _BLOCK_PAIRS
        starts = [0, *(np.flatnonzero(np.diff(block_of)) + 1), len(block_of)]
        blocks = []
        for start, end in itertools.pairwise(starts):
            common = (self._users_of[start:end] @ self._taken).tocsr()
            common.sort_indices()  # of equally similar items the more popular ones are kept
            rows, columns = np.repeat(np.arange(start, end), np.diff(common.indptr)), common.indices
            common.data *= columns != rows
            common.data /= (num_users[rows] * num_users[columns]) ** alpha
            most = self.num_neighbors or len(self.item_ids)
            for row in np.flatnonzero(np.diff(common.indptr) > most):
                _keep_largest(common.data[common.indptr[row] : common.indptr[row + 1]], most)
            common.eliminate_zeros()
            blocks.append(common)
        return sp.vstack(blocks, format="csr")


def _keep_largest(values: NDArray[np.float64], number: int) -> None:
    """Sets all others to 0, of equal ones the last."""
    least = np.partition(values, -number)[-number]
    is_equal = values == least
    num_above = np.count_nonzero(values > least)
    values[(values < least) | (is_equal & (np.cumsum(is_equal) > number - num_above))] = 0


def _tuned(
    knn: ItemKNN, alphas: Sequence[float], decays: Sequence[float], validation: tuple[list[list[str]], list[str]]
) -> dict[bool, ItemKNN]:
    """The best by ndcg@10 with seen items allowed (`False`) and excluded (`True`); the first one on a tie."""
    best: dict[bool, tuple[float, ItemKNN]] = {}
    for alpha in alphas:
        knn.alpha, knn.similarity = alpha, knn._similarity_at(alpha)
        for decay in decays:
            knn.decay = decay
            found = [ndcg_at_k(ranks, k=10) for ranks in knn.target_ranks(*validation)]
            logger.info("item-kNN, alpha %s, decay %s: ndcg@10 %.4f, seen items excluded %.4f", alpha, decay, *found)
            for exclude_seen, ndcg in zip((False, True), found, strict=True):
                if exclude_seen not in best or ndcg > best[exclude_seen][0]:
                    best[exclude_seen] = ndcg, copy.copy(knn)
    return {exclude_seen: chosen for exclude_seen, (_, chosen) in best.items()}
