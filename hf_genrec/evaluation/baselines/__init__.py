"""Baselines that every model is printed beside: popularity and recency-weighted item-kNN."""

from hf_genrec.evaluation.baselines.item_knn import ItemKNN
from hf_genrec.evaluation.baselines.neighbors import NEIGHBORS_NAME, save_neighbors
from hf_genrec.evaluation.baselines.popularity import Popularity


__all__ = ["NEIGHBORS_NAME", "ItemKNN", "Popularity", "save_neighbors"]
