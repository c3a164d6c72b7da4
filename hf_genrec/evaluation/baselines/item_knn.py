"""
Item-kNN, the bar that a model has to clear: items taken by the same users as the user's latest items.

The most similar items of each item are published beside a model: a repository holds no interactions, so without that
file its reader cannot compare the model's list with the baseline's, which the Space shows. The file holds
similarities, from which counts of users who took two items together can be worked out, but no users.
"""

import copy
import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines.base import Tuning
from hf_genrec.evaluation.baselines.sparse import SparseRanker
from hf_genrec.files import replaced
from hf_genrec.modeling.genrec_folder import recorded


logger = logging.getLogger(__name__)

NEIGHBORS_NAME = "item_neighbors.parquet"
NUM_PUBLISHED = 50  # neighbours of each item in that file
MAX_PAIRS = 2**25  # pairs of items that are held in memory: 400 MB
NUM_NEIGHBORS = 200  # of each item, where there are more pairs than that
_BLOCK_PAIRS = 2**22  # counted at a time
_FEW_TRIED = 50_000  # items above which an evaluation tries 6 settings on 5,000 users, instead of 25 on 20,000


class ItemKNN(SparseRanker):
    """
    Recency-weighted item-to-item neighbours over the training part.

    Two items are as similar as `c / (d_i * d_j) ** alpha`, where `c` users took both and `d` users took each. An item
    scores the sum of its similarities to the history, each weighted by `decay ** age` (age 0 is the latest item).
    Items without any similarity follow in order of popularity, so lists are always full.

    Args:
        prepared ([`PreparedDataset`]): The data set; only its training part is read.
        alpha (`float`, *optional*, defaults to 0.3):
            How strongly popular items are discounted: 0 not at all, 0.5 is the cosine.
        decay (`float`, *optional*, defaults to 0.35): See [`CatalogRanker`].
        num_neighbors (`int`, *optional*):
            Keep only each item's most similar items. `None` keeps all, or 200 of each item where there may be more
            than 33 million pairs: memory does not grow with the square of one user's history.

    Raises:
        ValueError: If an argument is out of range.

    Source: ours; the defaults were chosen on the validation split of Amazon Beauty 2014.

    Example: see [`hf_genrec.evaluation.baselines`].
    """

    title = "item-kNN"
    setting_names = ("alpha", "decay", "num_neighbors")

    def __init__(
        self, prepared: PreparedDataset, *, alpha: float = 0.3, decay: float = 0.35, num_neighbors: int | None = None
    ) -> None:
        if alpha < 0:
            raise ValueError(f"`alpha` must be at least 0, got {alpha}.")
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
    def for_columns(cls, prepared: PreparedDataset, *, seed: int = 0) -> dict[bool, Self]:
        """See [`CatalogRanker.for_columns`]."""
        is_large = len(prepared.item_ids) > _FEW_TRIED
        max_users = 5_000 if is_large else 20_000
        tuning = Tuning(prepared, columns=(False, True), max_users=max_users, seed=seed)
        few = {"alphas": (0.1, 0.3, 0.5), "decays": (0.35, 0.7)}
        cls._try_settings(tuning, prepared, **(few if is_large else {}))
        return tuning.best

    @classmethod
    def _try_settings(
        cls,
        tuning: Tuning,
        prepared: PreparedDataset,
        *,
        alphas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
        decays: Sequence[float] = (0.2, 0.35, 0.5, 0.7, 0.9),
    ) -> None:
        if not alphas or not decays:
            raise ValueError("`tune` needs at least one alpha and one decay.")
        knn = cls(prepared)
        for alpha in alphas:
            knn.alpha, knn.similarity = alpha, knn._similarity_at(alpha)
            for knn.decay in decays:
                tuning.consider(copy.copy(knn))

    def sparse_scores(self, weights: sp.csr_array) -> sp.csr_array:
        """Sum of the weighted similarities to the history; 0 where an item is like nothing in it."""
        return (weights @ self.similarity).tocsr()

    def _similarity_at(self, alpha: float) -> sp.csr_array:
        """The items in blocks of rows: what is in memory at a time is one block of pairs, and what is kept."""
        num_users = np.diff(self._users_of.indptr).astype(np.float64)  # (num_items,)
        block_of = np.cumsum(self._num_pairs) // _BLOCK_PAIRS
        starts = [0, *(np.flatnonzero(np.diff(block_of)) + 1), len(block_of)]
        blocks = []
        for start, end in itertools.pairwise(starts):
            common = (self._users_of[start:end] @ self._taken).tocsr()
            most = self.num_neighbors or len(self.item_ids)
            longer = np.flatnonzero(np.diff(common.indptr) > most)
            if len(longer):
                common.sort_indices()  # of equally similar items the more popular ones are kept
            rows, columns = np.repeat(np.arange(start, end), np.diff(common.indptr)), common.indices
            common.data *= columns != rows
            common.data /= (num_users[rows] * num_users[columns]) ** alpha
            for row in longer:
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


def neighbor_table(prepared: PreparedDataset, *, num_neighbors: int = NUM_PUBLISHED) -> pa.Table:
    """
    The most similar items of each item, as [`ItemKNN`] with its default settings has them.

    Args: the data set, of which only the training part is read, and the number of items per item at most.
    """
    knn = ItemKNN.fit(prepared, num_neighbors=num_neighbors)
    rows = pd.Index(prepared.item_ids).get_indexer(knn.item_ids)  # row of the catalog at each place in popularity
    near = knn.similarity.tocoo()
    item, column = near.coords
    order = np.lexsort((column, -near.data, rows[item]))
    lengths = np.bincount(rows[item], minlength=len(rows))
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    table = pa.table(
        {
            "item_id": pa.array(prepared.item_ids, pa.string()),
            "num_interactions": prepared.train_item_counts(),
            "neighbors": pa.ListArray.from_arrays(offsets, pa.array(rows[column][order], pa.int32())),
            "similarity": pa.ListArray.from_arrays(offsets, pa.array(near.data[order])),
        }
    )
    return table.replace_schema_metadata({"decay": str(knn.decay)})


def save_neighbors(prepared: PreparedDataset, folder: str | os.PathLike[str]) -> None:
    """
    Put [`neighbor_table`] into a run folder, as `item_neighbors.parquet`; it is published with the model.

    Args: the data set that the run was trained on, and the run folder.
    """
    path = Path(folder) / NEIGHBORS_NAME
    with recorded(path.parent, NEIGHBORS_NAME), replaced(path) as partial:
        pq.write_table(neighbor_table(prepared), partial, compression="zstd", write_page_checksum=True)
