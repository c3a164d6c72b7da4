"""What choosing the settings of a baseline needs: ndcg@10 on users of the validation split, never the test split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.metrics import ndcg_at_k, ranks_of_targets
from hf_genrec.serving.recommendations import Recommender


@dataclass(frozen=True)
class ValidationUsers:
    """
    Histories and targets of the validation split, or of a sample of its users.

    Args:
        histories (`list[list[str]]`): Item ids, oldest first.
        targets (`list[str]`): The item that came next.
        exclude_seen (`bool`): Whether lists are asked for without items of the history.
    """

    histories: list[list[str]]
    targets: list[str]
    exclude_seen: bool

    @classmethod
    def of(
        cls, prepared: PreparedDataset, *, exclude_seen: bool = False, max_users: int | None = 20_000, seed: int = 0
    ) -> ValidationUsers:
        """
        The users that settings are chosen on.

        Args:
            prepared ([`PreparedDataset`]): The data set.
            exclude_seen (`bool`, *optional*, defaults to `False`): See [`ValidationUsers`].
            max_users (`int`, *optional*, defaults to 20000): Size of the sample; `None` means all.
            seed (`int`, *optional*, defaults to 0): Seed of the sample.
        """
        rows = prepared.split("validation")
        if len(rows) == 0:
            raise ValueError("The validation split has no users: settings cannot be chosen on it.")
        if max_users is not None and max_users < len(rows):
            users = np.random.default_rng(seed).choice(len(rows), size=max_users, replace=False)
            rows = rows.select(np.sort(users))
        return cls(list(rows["history"]), list(rows["target"]), exclude_seen)

    def ndcg(self, recommender: Recommender) -> float:
        """Ndcg@10 of a recommender for these users."""
        found = recommender.recommend(self.histories, top_k=10, exclude_seen=self.exclude_seen)
        return ndcg_at_k(ranks_of_targets(found.item_ids, self.targets), k=10)
