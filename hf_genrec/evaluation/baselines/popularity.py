"""The floor: everybody gets the items that were taken most often."""

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines.base import CatalogRanker


class Popularity(CatalogRanker):
    """
    The most frequent items of the training part, the same for every user.

    Unlike [`ItemKNN`] it ignores the history, except for leaving out seen items when asked to. A score is the item's
    share of all training interactions; equal counts keep the order of the catalog.

    Args:
        prepared ([`PreparedDataset`]): The data set; only its training part is read.
    """

    title = "Popularity"

    @classmethod
    def fit(cls, prepared: PreparedDataset) -> "Popularity":
        """Count the training part. Args: see [`Popularity`]."""
        return cls(prepared)

    def scores(self, weights: sp.csr_array) -> NDArray[np.float64]:
        """The same shares for every user, which sum to 1."""
        shares = self.item_counts / max(1, self.item_counts.sum())
        return np.tile(shares, (weights.shape[0], 1))
