"""What item-kNN would recommend, from the similarities that are published beside a model: rows of items in and out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


NEIGHBORS_NAME = "item_neighbors.parquet"


@dataclass(frozen=True)
class Neighbors:
    """
    The most similar items of each item.

    Args:
        starts (`np.ndarray` of shape `(num_items + 1,)`): Where the neighbours of each item begin and end.
        neighbors (`np.ndarray`): Rows of all neighbours.
        similarity (`np.ndarray`): How similar they are, float64.
        popularity (`np.ndarray` of shape `(num_items,)`): Place of each item by its interactions, 0 for the most.
        decay (`float`): Weight of an item of a history relative to the one after it.
    """

    starts: np.ndarray
    neighbors: np.ndarray
    similarity: np.ndarray
    popularity: np.ndarray
    decay: float

    def recommend(self, history: Sequence[int], *, top_k: int, exclude_seen: bool = False) -> list[int]:
        """
        The rows that are most similar to a history, distinct rows of which the latest counts most; popular ones where
        none is. Equal scores stand in order of popularity.
        """
        scores = np.zeros(len(self.popularity))
        weights = {item: self.decay**age for age, item in enumerate(reversed(history))}
        for item in sorted(weights, key=self.popularity.__getitem__):  # the order in which the baseline adds them up
            near = slice(self.starts[item], self.starts[item + 1])
            scores[self.neighbors[near]] += weights[item] * self.similarity[near]
        ranked = np.lexsort((self.popularity, -scores)).tolist()
        left_out = set(history) if exclude_seen else set()
        return [item for item in ranked if item not in left_out][:top_k]


def read_neighbors(path: Path, item_ids: Sequence[str]) -> Neighbors:
    """Read `item_neighbors.parquet`, which must list the items of the model in their order."""
    table = pq.read_table(path)
    if table["item_id"].to_pylist() != list(item_ids):
        raise ValueError(
            f"{NEIGHBORS_NAME} ({table.num_rows} items) does not list the {len(item_ids)} items of the model in their "
            "order. Use the files of one run."
        )
    lists = table["neighbors"].combine_chunks()
    most_first = np.argsort(-table["num_interactions"].to_numpy(), kind="stable")
    return Neighbors(
        starts=lists.offsets.to_numpy(),
        neighbors=lists.flatten().to_numpy(),
        similarity=table["similarity"].combine_chunks().flatten().to_numpy(),
        popularity=np.argsort(most_first),
        decay=float(table.schema.metadata[b"decay"]),
    )
