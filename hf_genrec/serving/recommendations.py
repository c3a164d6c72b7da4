"""
What every recommender takes and returns: histories of item ids in, ranked item ids with scores out.

A history is a list of item ids (strings), oldest first; a score is comparable only within one recommender.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hf_genrec.modeling.genrec_folder import as_histories


__all__ = ["Recommendations", "Recommender", "as_histories"]


@dataclass(frozen=True)
class Recommendations:
    """
    Ranked items of one user or of a batch of users.

    Args:
        item_ids (`list[str]` or `list[list[str]]`):
            The best item first; for a batch one list per user. The flat list of one user still answers `[0]` with the
            whole list, as if it were a batch of one, and warns: in the next version that will be the best item.
        scores (`list[float]` or `list[list[float]]`):
            The items' scores in the same order, never increasing. Log-probabilities for the generative models.
        num_unknown (`int`, *optional*, defaults to 0): History entries that are no items of the catalog; ignored.
        num_visited (`list[int]`, *optional*): How many items were scored for each user, where the model says so.
        num_distinct (`list[int]`, *optional*):
            How many distinct items the beams of each user held: of each semantic ID all items that share it.
        catalog_version (`int`, *optional*): The version of the catalog that the lists come from, see [`LiveCatalog`].

    Example:

    ```python
    >>> recommendations = Recommendations(item_ids=[["soap", "brush"]], scores=[[-0.5, -1.25]])
    >>> recommendations.item_ids[0]
    ['soap', 'brush']
    >>> len(recommendations)
    1
    >>> recommendations.of_one_user().item_ids
    ['soap', 'brush']

    ```
    """

    item_ids: Any
    scores: Any
    num_unknown: int = 0
    num_visited: list[int] | None = None
    num_distinct: list[int] | None = None
    catalog_version: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.item_ids, _OneUser):
            return
        if len(self.item_ids) != len(self.scores):
            raise ValueError(
                f"`scores` must hold one list per user: `item_ids` has {len(self.item_ids)} lists, `scores` has "
                f"{len(self.scores)}."
            )
        for user_index, (items, scores) in enumerate(zip(self.item_ids, self.scores, strict=True)):
            if len(items) != len(scores):
                raise ValueError(
                    f"`scores` must hold one score per item: user {user_index} has {len(items)} items and "
                    f"{len(scores)} scores."
                )

    def __len__(self) -> int:
        """Number of users."""
        return 1 if isinstance(self.item_ids, _OneUser) else len(self.item_ids)

    def of_one_user(self) -> Recommendations:
        """A batch of one user as flat lists; a ValueError if there is not exactly one user."""
        if len(self.item_ids) != 1:
            raise ValueError(f"`of_one_user` is for a batch of one user, this one has {len(self.item_ids)}.")
        return replace(self, item_ids=_OneUser(self.item_ids[0]), scores=_OneUser(self.scores[0]))


class _OneUser(list):
    """The flat list of one user. `[0]` means what it meant while one history was answered by a batch of one."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and index in (0, -1):
            warnings.warn(
                "One history is answered by a flat list now: use the list itself instead of `[0]`, or give a batch, "
                "`recommend([history])`. In the next version `[0]` will be the best item.",
                FutureWarning,
                stacklevel=2,
            )
            return list(self)
        return super().__getitem__(index)


class Recommender(Protocol):
    """
    What the evaluation asks of a model or a baseline.

    Example:

    ```python
    >>> class Constant:
    ...     def recommend(self, histories, *, top_k=10, exclude_seen=False):
    ...         lists = [["soap"][:top_k] for _ in as_histories(histories)]
    ...         return Recommendations(item_ids=lists, scores=[[0.0] * len(items) for items in lists])
    >>> recommender: Recommender = Constant()
    >>> recommender.recommend([["brush", "comb"]]).item_ids
    [['soap']]

    ```
    """

    def recommend(
        self, histories: Sequence[Sequence[str]] | Sequence[str], *, top_k: int = 10, exclude_seen: bool = False
    ) -> Recommendations:
        """
        Rank items for each history, see [`~hf_genrec.serving.recommender.Recommender.recommend`].

        Args:
            histories (`list[list[str]]` or `list[str]`): Item ids per user, oldest first; unknown ones are ignored.
            top_k (`int`, *optional*, defaults to 10): Length of the lists, less where fewer items may be recommended.
            exclude_seen (`bool`, *optional*, defaults to `False`): Whether items of the history are left out.
        """
        ...
