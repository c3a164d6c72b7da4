"""Baselines that every model is printed beside: popularity, item-kNN, the sequential ridge, and text similarity."""

from hf_genrec.evaluation.baselines.item_knn import ItemKNN
from hf_genrec.evaluation.baselines.neighbors import NEIGHBORS_NAME, save_neighbors
from hf_genrec.evaluation.baselines.popularity import Popularity
from hf_genrec.evaluation.baselines.ridge import SequentialRidge
from hf_genrec.evaluation.baselines.text import TextSimilarity


__all__ = ["NEIGHBORS_NAME", "ItemKNN", "Popularity", "SequentialRidge", "TextSimilarity", "save_neighbors"]
