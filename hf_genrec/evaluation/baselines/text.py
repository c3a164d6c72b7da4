"""Text similarity as a recommender: items whose text is like the texts of the history."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines.base import CatalogRanker, validation_users
from hf_genrec.evaluation.metrics import ndcg_at_k
from hf_genrec.tokenizers.behavior import unit_rows
from hf_genrec.tokenizers.embeddings import Whitening


logger = logging.getLogger(__name__)

_MOST_DIRECTIONS = 256


class TextSimilarity(CatalogRanker):
    """
    Items with a text like the history's, whether anybody took them or not; no log is read but the histories.

    An item scores the sum of the cosines of its text vector and those of the history items, each times `decay ** age`
    (age 0 is the latest item). Vectors are whitened first, so that what many texts share counts no more than what few
    do. It knows what the log does not: items that occur rarely or never.

    Args:
        prepared ([`PreparedDataset`]): The data set.
        embeddings (`np.ndarray` of shape `(num_items, dimension)`):
            Text vectors in the order of the catalog, such as [`read_embeddings`] returns of what `hf-genrec embed`
            wrote.
        decay (`float`, *optional*, defaults to 0.5):
            Weight of a history item relative to the one after it, in (0, 1].

    Raises:
        ValueError: If `decay` is out of range, or `embeddings` has another number of rows than there are items.

    Example:

    ```python
    >>> import pandas as pd
    >>> import tempfile
    >>> from hf_genrec.data.prepare import prepare
    >>> log = pd.DataFrame({"user_id": list("uuuuvvvv"), "item_id": ["tea", "cup", "pot", "jam"] * 2})
    >>> items = [{"item_id": item, "title": item} for item in ["cup", "jam", "pot", "tea"]]
    >>> folder = tempfile.TemporaryDirectory()
    >>> prepared = prepare(folder.name, interactions=log, items=items, timestamp=None)
    >>> vectors = np.array([[1, 0], [0, 1], [0.9, 0.1], [0, 1]])  # cup is like pot, jam like tea
    >>> TextSimilarity.fit(prepared, vectors).recommend(["tea"], top_k=1, exclude_seen=True).item_ids
    ['jam']
    >>> folder.cleanup()

    ```
    """

    title = "text similarity"

    def __init__(self, prepared: PreparedDataset, embeddings: NDArray[np.floating], *, decay: float = 0.5) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"`decay` must be in (0, 1], got {decay}.")
        num_items = len(prepared.item_ids)
        if embeddings.ndim != 2 or len(embeddings) != num_items:
            raise ValueError(
                f"`embeddings` must hold a row for each of the catalog's {num_items} items, got shape "
                f"{embeddings.shape}: embed the items of this data set."
            )
        super().__init__(prepared, decay=decay)
        rows = pd.Index(prepared.item_ids).get_indexer(self.item_ids)  # in the catalog, by popularity
        whitening = Whitening.fit(embeddings, num_components=_MOST_DIRECTIONS, take_fewer=True)
        self.item_vectors = unit_rows(whitening.transform(embeddings))[rows]

    @classmethod
    def fit(cls, prepared: PreparedDataset, embeddings: NDArray[np.floating], *, decay: float = 0.5) -> TextSimilarity:
        """
        Take the vectors as they are.

        Args: see [`TextSimilarity`].
        """
        return cls(prepared, embeddings, decay=decay)

    @classmethod
    def tune(
        cls,
        prepared: PreparedDataset,
        embeddings: NDArray[np.floating],
        *,
        decays: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9),
        exclude_seen: bool = False,
        max_users: int | None = 20_000,
        seed: int = 0,
    ) -> TextSimilarity:
        """
        Choose `decay` by ndcg@10 on the validation split; the test split is never read.

        Args:
            prepared ([`PreparedDataset`]): The data set.
            embeddings (`np.ndarray` of shape `(num_items, dimension)`): See [`TextSimilarity`].
            decays (`tuple[float, ...]`, *optional*): Values of `decay` to try.
            exclude_seen (`bool`, *optional*, defaults to `False`):
                Choose for lists without items of the history.
            max_users (`int`, *optional*, defaults to 20000):
                Use a sample of this many validation users. `None` means all.
            seed (`int`, *optional*, defaults to 0): Seed of the sample.

        Returns:
            [`TextSimilarity`]: with the best decay; the first one on a tie.

        Raises:
            ValueError: If there is nothing to try, or the validation split is empty.
        """
        if not decays:
            raise ValueError("`tune` needs at least one decay.")
        validation = validation_users(prepared, max_users=max_users, seed=seed)
        similar = cls(prepared, embeddings)
        ndcg = {}
        for decay in decays:
            similar.decay = decay
            ndcg[decay] = ndcg_at_k(similar.target_ranks(*validation)[int(exclude_seen)], k=10)
            logger.info("text similarity, decay %s: ndcg@10 %.4f", decay, ndcg[decay])
        similar.decay = max(ndcg, key=ndcg.__getitem__)
        return similar

    @property
    def settings(self) -> dict[str, float | int]:
        """See [`CatalogRanker`]."""
        return {"decay": self.decay}

    def scores(self, weights: sp.csr_array) -> NDArray[np.float64]:
        """Sum of the weighted cosines to the history."""
        return ((weights @ self.item_vectors) @ self.item_vectors.T).astype(np.float64)
