"""Baselines that every model is printed beside: popularity, item-kNN, the sequential ridge, and text similarity."""

from hf_genrec.evaluation.baselines.base import CatalogRanker
from hf_genrec.evaluation.baselines.item_knn import ItemKNN
from hf_genrec.evaluation.baselines.neighbors import NEIGHBORS_NAME, save_neighbors
from hf_genrec.evaluation.baselines.popularity import Popularity
from hf_genrec.evaluation.baselines.ridge import SequentialRidge
from hf_genrec.evaluation.baselines.text import TextSimilarity


# What every model is printed beside, by the name in records.
BASELINES: dict[str, type[CatalogRanker]] = {
    "popularity": Popularity,
    "item_knn": ItemKNN,
    "ridge": SequentialRidge,
}

__all__ = [
    "BASELINES", "NEIGHBORS_NAME", "CatalogRanker", "ItemKNN", "Popularity", "SequentialRidge", "TextSimilarity",
    "save_neighbors",
]  # fmt: skip
