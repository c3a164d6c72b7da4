"""The bar that a model has to clear: items taken by the same users as the user's latest items."""

import logging

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines.base import CatalogRanker
from hf_genrec.evaluation.metrics import ndcg_at_k, ranks_of_targets


logger = logging.getLogger(__name__)


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
        num_neighbors (`int`, *optional*): Keep only each item's most similar items. `None` keeps all.

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
        self.alpha = alpha
        self.num_neighbors = num_neighbors
        self._num_users = taken.sum(axis=0)  # (N,)
        self._num_common_users = _without_diagonal(taken.T @ taken)  # (N, N)
        self._similarity = self._similarity_at(alpha)

    @classmethod
    def fit(
        cls, prepared: PreparedDataset, *, alpha: float = 0.3, decay: float = 0.35, num_neighbors: int | None = None
    ) -> "ItemKNN":
        """
        Count which items were taken by the same users in the training part.

        Args: see [`ItemKNN`].
        """
        return cls(prepared, alpha=alpha, decay=decay, num_neighbors=num_neighbors)

    @classmethod
    def tune(
        cls,
        prepared: PreparedDataset,
        *,
        alphas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5),
        decays: tuple[float, ...] = (0.2, 0.35, 0.5, 0.7, 0.9),
        max_users: int | None = 20_000,
        seed: int = 0,
    ) -> "ItemKNN":
        """
        Choose `alpha` and `decay` by ndcg@10 on the validation split; the test split is never read.

        Args:
            prepared ([`PreparedDataset`]): The data set; the neighbours come from its training part.
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
        validation = prepared.split("validation")
        if not alphas or not decays or len(validation) == 0:
            raise ValueError("`tune` needs at least one alpha, one decay and one validation user.")
        if max_users is not None and max_users < len(validation):
            users = np.random.default_rng(seed).choice(len(validation), size=max_users, replace=False)
            validation = validation.select(np.sort(users))
        histories, targets = list(validation["history"]), list(validation["target"])
        knn = cls(prepared)
        ndcg = {}
        for alpha in alphas:
            knn.alpha, knn._similarity = alpha, knn._similarity_at(alpha)
            for decay in decays:
                knn.decay = decay
                ranks = ranks_of_targets(knn.recommend(histories, top_k=10).item_ids, targets)
                ndcg[alpha, decay] = ndcg_at_k(ranks, k=10)
                logger.info("item-kNN, alpha %s, decay %s: ndcg@10 %.4f", alpha, decay, ndcg[alpha, decay])
        knn.alpha, knn.decay = max(ndcg, key=ndcg.__getitem__)
        knn._similarity = knn._similarity_at(knn.alpha)
        return knn

    def scores(self, weights: sp.csr_array) -> NDArray[np.float64]:
        """Sum of the weighted similarities to the history; 0 where an item is like nothing in it."""
        return (weights @ self._similarity).toarray()

    def _similarity_at(self, alpha: float) -> sp.csr_array:
        common = self._num_common_users.tocoo()
        rows, columns = common.coords
        data = common.data / (self._num_users[rows] * self._num_users[columns]) ** alpha
        if self.num_neighbors is not None:
            order = np.lexsort((columns, -data, rows))
            rows, columns, data = rows[order], columns[order], data[order]
            first = np.searchsorted(rows, rows)  # where each row begins
            is_near = np.arange(len(rows)) - first < self.num_neighbors
            rows, columns, data = rows[is_near], columns[is_near], data[is_near]
        return sp.coo_array((data, (rows, columns)), shape=common.shape).tocsr()


def _without_diagonal(matrix: sp.csr_array) -> sp.csr_array:
    matrix = matrix.tocoo()
    rows, columns = matrix.coords
    is_off = rows != columns
    return sp.coo_array((matrix.data[is_off], (rows[is_off], columns[is_off])), shape=matrix.shape).tocsr()
