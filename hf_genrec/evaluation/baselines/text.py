"""Text similarity as a recommender: items whose text is like the texts of the history."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines.base import CatalogRanker, Tuning
from hf_genrec.tokenizers.embeddings import Whitening
from hf_genrec.tokenizers.fusion import unit_rows


_MOST_DIRECTIONS = 256


class TextSimilarity(CatalogRanker):
    """
    Items with a text like the history's, whether anybody took them or not; no log is read but the histories.

    An item scores the sum of the cosines of its text vector and those of the history items, each times `decay ** age`
    (age 0 is the latest item). Vectors are whitened first, so that what many texts share counts no more than what few
    do. It knows what the log does not: items that occur rarely or never.

    No text is more like that of an item than its own. Where items do not come twice, a list that may hold items of the
    history is full of them, unless their cosine with themselves is left out; `tune` tries both.

    Args:
        prepared ([`PreparedDataset`]): The data set.
        embeddings (`np.ndarray` of shape `(num_items, dimension)`): Text vectors in the order of the catalog, such as
            [`read_embeddings`] returns of what `hf-genrec embed` wrote.
        decay (`float`, *optional*, defaults to 0.5): See [`CatalogRanker`].
        self_similarity (`bool`, *optional*, defaults to `True`): Whether a history item speaks for itself.
    """

    title = "text similarity"
    setting_names = ("decay", "self_similarity")

    def __init__(
        self,
        prepared: PreparedDataset,
        embeddings: NDArray[np.floating],
        *,
        decay: float = 0.5,
        self_similarity: bool = True,
    ) -> None:
        num_items = len(prepared.item_ids)
        if embeddings.ndim != 2 or len(embeddings) != num_items:
            raise ValueError(
                f"`embeddings` must hold a row for each of the catalog's {num_items} items, got shape "
                f"{embeddings.shape}: embed the items of this data set."
            )
        super().__init__(prepared, decay=decay)
        self.self_similarity = self_similarity
        rows = pd.Index(prepared.item_ids).get_indexer(self.item_ids)  # in the catalog, by popularity
        whitening = Whitening.fit(embeddings, num_components=_MOST_DIRECTIONS, take_fewer=True)
        self.item_vectors = unit_rows(whitening.transform(embeddings))[rows]

    @classmethod
    def _try_settings(
        cls,
        tuning: Tuning,
        prepared: PreparedDataset,
        *vectors: NDArray[np.floating],
        decays: Sequence[float] = (0.3, 0.5, 0.7, 0.9),
    ) -> None:
        if not decays:
            raise ValueError("`tune` needs at least one decay.")
        similar = cls(prepared, *vectors)
        for similar.self_similarity in (False, True):  # equal without items of the history: the first is kept
            for similar.decay in decays:
                tuning.consider(copy.copy(similar))

    def scores(self, weights: sp.csr_array) -> NDArray[np.float64]:
        """Sum of the weighted cosines to the history."""
        scores = ((weights @ self.item_vectors) @ self.item_vectors.T).astype(np.float64)
        return scores if self.self_similarity else scores - weights.toarray()  # the vectors have unit length
