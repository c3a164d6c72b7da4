"""
What the baselines share: item ids in popularity order, tuning on the validation split, top-k with deterministic ties.

Inside the baselines an item is its position in popularity order, so of two equal scores the lower position wins.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from datasets import Dataset
from numpy.typing import NDArray

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.lists import history_matrix
from hf_genrec.evaluation.metrics import ndcg_at_k
from hf_genrec.modeling.genrec_folder import batch_of
from hf_genrec.serving.recommendations import Recommendations


logger = logging.getLogger(__name__)

_CHUNK_CELLS = 2**24  # dense scores per chunk: 128 MiB in float64


class Tuning:
    """
    The best of several rankers by ndcg@10 on the validation split, for lists with (`False`) and without (`True`) items
    of the history; of equal ones the first.

    Args: see [`validation_users`]; `columns` are those of the two that are wanted.
    """

    def __init__(
        self, prepared: PreparedDataset, *, columns: tuple[bool, ...], max_users: int | None, seed: int
    ) -> None:
        self.columns = columns
        self.best: dict[bool, Any] = {}
        self._ndcg = dict.fromkeys(columns, -1.0)
        self._users = validation_users(prepared, max_users=max_users, seed=seed)

    def consider(self, ranker: "CatalogRanker", columns: tuple[bool, ...] | None = None) -> None:
        """Keeps a ranker in the columns, of all or of these, in which it is the best so far."""
        found = [ndcg_at_k(ranks, k=10) for ranks in ranker.target_ranks(*self._users)]
        logger.info("%s, %s: ndcg@10 %.4f, seen items excluded %.4f", ranker.title, ranker.settings, *found)
        for column in columns or self.columns:
            if found[column] > self._ndcg[column]:
                self._ndcg[column], self.best[column] = found[column], ranker


class CatalogRanker(ABC):
    """
    A recommender that scores every item of the catalog; subclasses say how, and how they are called in tables.

    Args:
        prepared ([`PreparedDataset`]): The data set; only its training part is read.
        decay (`float`, *optional*, defaults to 1.0): Weight of a history item relative to the one after it, in (0, 1].
    """

    title: ClassVar[str]
    setting_names: ClassVar[tuple[str, ...]] = ()  # attributes that tuning chooses
    decoding = "exact"  # the first items of a longer list are the shorter list

    def __init__(self, prepared: PreparedDataset, *, decay: float = 1.0) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"`decay` must be in (0, 1], got {decay}.")
        self.decay = decay
        counts = prepared.train_item_counts()
        order = np.argsort(-counts, kind="stable")
        self.item_ids: NDArray[np.object_] = np.array(prepared.item_ids, dtype=object)[order]
        self.item_counts: NDArray[np.int64] = counts[order]
        self._index = pd.Index(self.item_ids)

    @classmethod
    def fit(cls, prepared: PreparedDataset, *vectors: NDArray[np.floating], **settings: Any) -> Self:
        """Learn from the training part. Args: see the class."""
        return cls(prepared, *vectors, **settings)

    @classmethod
    def tune(
        cls,
        prepared: PreparedDataset,
        *vectors: NDArray[np.floating],
        exclude_seen: bool = False,
        max_users: int | None = 20_000,
        seed: int = 0,
        **tried: Sequence[float],
    ) -> Self:
        """
        Choose the settings by ndcg@10 on the validation split, the first of equal ones; the test split is never read.

        Args:
            prepared ([`PreparedDataset`]): The data set; what is learned comes from its training part.
            vectors (`np.ndarray`, *optional*): Of the texts, for [`TextSimilarity`].
            exclude_seen (`bool`, *optional*, defaults to `False`): Whether for lists without items of the history.
            max_users (`int`, *optional*, defaults to 20000): Size of a sample of validation users; `None` means all.
            seed (`int`, *optional*, defaults to 0): Seed of the sample.
            tried: Values to try, such as `decays=(0.5, 0.9)`; each class has defaults.
        """
        tuning = Tuning(prepared, columns=(exclude_seen,), max_users=max_users, seed=seed)
        cls._try_settings(tuning, prepared, *vectors, **tried)
        return tuning.best[exclude_seen]

    @classmethod
    def for_columns(cls, prepared: PreparedDataset, *, seed: int = 0) -> dict[bool, Self]:
        """What stands beside a model: tuned for lists with (`False`) and without (`True`) items of the history."""
        tuning = Tuning(prepared, columns=(False, True), max_users=20_000, seed=seed)
        cls._try_settings(tuning, prepared)
        return tuning.best

    @classmethod
    def _try_settings(cls, tuning: Tuning, prepared: PreparedDataset, *args: Any, **tried: Any) -> None:
        """Shows `tuning` what is to be compared."""
        tuning.consider(cls(prepared, *args, **tried))

    @property
    def settings(self) -> dict[str, float | int]:
        """What was chosen, for the record."""
        return {name: value for name in self.setting_names if (value := getattr(self, name)) is not None}

    @abstractmethod
    def scores(self, weights: sp.csr_array) -> NDArray[np.float64]:
        """
        Score every item for a chunk of users.

        Args:
            weights (`scipy.sparse.csr_array` of shape `(num_users, num_items)`): See [`history_matrix`].
        """

    def recommend(
        self, histories: Sequence[Sequence[str]] | Sequence[str], *, top_k: int = 10, exclude_seen: bool = False
    ) -> Recommendations:
        """
        Rank items for each history, equal scores in order of popularity. Unknown ids are counted and logged once.

        Args: see [`~recommendations.Recommender.recommend`].
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        history_lists, is_one = batch_of(histories)
        item_ids: list[list[str]] = []
        scores: list[list[float]] = []
        for start in range(0, len(history_lists), self._users_at_once):
            weights = self._weights(history_lists[start : start + self._users_at_once])
            for items, item_scores in self._lists(weights, min(top_k, len(self.item_ids)), exclude_seen):
                item_ids.append(self.item_ids[items].tolist())
                scores.append(item_scores.tolist())
        num_unknown = int((self._index.get_indexer([*chain.from_iterable(history_lists)]) < 0).sum())
        if num_unknown:
            logger.warning("%d history entries are no items of the catalog and were ignored.", num_unknown)
        found = Recommendations(item_ids=item_ids, scores=scores, num_unknown=num_unknown)
        return found.of_one_user() if is_one else found

    def target_ranks(self, histories: Sequence[Sequence[str]], targets: Sequence[str]) -> NDArray[np.int64]:
        """
        0-based rank of each target among all items, and among those that the history lacks, `-1` where it has it.

        The rows `(2, num_users)` equal the ranks in lists of the whole catalog, without sorting it.
        """
        items = self._index.get_indexer(np.array(targets, dtype=object))
        ranks = np.full((2, len(items)), -1, dtype=np.int64)
        for start in range(0, len(items), self._users_at_once):
            own = items[start : start + self._users_at_once]
            weights = self._weights(histories[start : start + self._users_at_once])
            users, seen = weights.nonzero()
            num_before, is_before = self._before(weights, own)
            num_seen = np.bincount(users, weights=is_before, minlength=len(own)).astype(np.int64)
            is_seen = np.bincount(users, weights=seen == own[users], minlength=len(own)) > 0
            ranks[0, start : start + len(own)] = np.where(own < 0, -1, num_before)
            ranks[1, start : start + len(own)] = np.where((own < 0) | is_seen, -1, num_before - num_seen)
        return ranks

    @property
    def _users_at_once(self) -> int:
        return max(1, _CHUNK_CELLS // len(self.item_ids))

    def _lists(
        self, weights: sp.csr_array, top_k: int, exclude_seen: bool
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """The best items of each user and their scores."""
        chunk_scores = self.scores(weights)
        if exclude_seen:
            chunk_scores[weights.nonzero()] = -np.inf
        for items, item_scores in zip(*_top_items(chunk_scores, top_k), strict=True):
            num_kept = np.isfinite(item_scores).sum()
            yield items[:num_kept], item_scores[:num_kept]

    def _before(self, weights: sp.csr_array, own: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """How many items stand before each user's target, and which entries of the histories do."""
        scores = self.scores(weights)
        of_target = np.take_along_axis(scores, own[:, None], axis=1)
        is_before = scores > of_target
        is_before |= (scores == of_target) & (np.arange(len(self.item_ids)) < own[:, None])
        return is_before.sum(axis=1), is_before[weights.nonzero()]

    def _weights(self, histories: Sequence[Sequence[str]]) -> sp.csr_array:
        return history_matrix(histories, item_ids=self._index, decay=self.decay)


def _top_items(scores: NDArray[np.float64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The `k` best columns of each row, best first; ties go to the lower column (`argpartition` leaves that open)."""
    threshold = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]  # (B, 1)
    is_above, is_equal = scores > threshold, scores == threshold
    num_missing = k - is_above.sum(axis=1, keepdims=True)
    is_top = is_above | (is_equal & (np.cumsum(is_equal, axis=1, dtype=np.int32) <= num_missing))
    items = np.nonzero(is_top)[1].reshape(len(scores), k)
    item_scores = np.take_along_axis(scores, items, axis=1)
    order = np.argsort(-item_scores, axis=1, kind="stable")
    return np.take_along_axis(items, order, axis=1), np.take_along_axis(item_scores, order, axis=1)


def validation_users(
    prepared: PreparedDataset, *, max_users: int | None, seed: int
) -> tuple[list[list[str]], list[str]]:
    """
    Histories and targets of the validation split, to choose settings by.

    Args: the data set, the size of a sample of its users (`None` for all), and the seed of the sample.
    """
    validation = prepared.split("validation")
    if len(validation) == 0:
        raise ValueError(f"{prepared.folder} has no validation users to tune a baseline with.")
    validation = sampled_users(validation, max_users=max_users, seed=seed)
    table = validation.with_format("arrow")[:]
    return table["history"].to_pylist(), table["target"].to_pylist()


def sampled_users(rows: Dataset, *, max_users: int | None, seed: int) -> Dataset:
    """A sample of the users of a split, in their order. Args: the split, the size, `None` for all, and the seed."""
    if max_users is None or max_users >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng(seed).choice(len(rows), size=max_users, replace=False)))
