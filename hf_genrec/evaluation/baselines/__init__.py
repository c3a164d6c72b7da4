"""
Baselines that every model is printed beside: popularity, item-kNN, the sequential ridge, and text similarity.

Each is learned with `fit(data)`, or with `tune(data)`, which chooses the settings on the validation split, and has the
`recommend` of a [`Recommender`].

```python
>>> import tempfile
>>> import numpy as np
>>> import pandas as pd
>>> from hf_genrec.data.prepare import prepare
>>> log = pd.DataFrame({"user_id": list("uuuuvvvv"), "item_id": ["tea", "cup", "pot", "jam"] * 2})
>>> items = [{"item_id": item, "title": item} for item in ["cup", "jam", "pot", "tea"]]
>>> folder = tempfile.TemporaryDirectory()
>>> data = prepare(folder.name, interactions=log, items=items, timestamp=None)  # trained on tea and cup
>>> ItemKNN.fit(data).recommend(["tea"], top_k=2).item_ids
['cup', 'tea']
>>> SequentialRidge.fit(data, regularization=2).recommend(["tea"], top_k=2).scores  # both took cup next: 2 / (2 + 2)
[0.5, 0.0]
>>> vectors = np.array([[1, 0], [0, 1], [0.9, 0.1], [0, 1]])  # of the texts: cup is like pot, jam like tea
>>> TextSimilarity.fit(data, vectors).recommend(["tea"], top_k=1, exclude_seen=True).item_ids
['jam']
>>> neighbor_table(data)["neighbors"].to_pylist()  # rows of the catalog
[[3], [], [], [0]]
>>> folder.cleanup()

```
"""

from hf_genrec.evaluation.baselines.base import CatalogRanker
from hf_genrec.evaluation.baselines.item_knn import NEIGHBORS_NAME, ItemKNN, neighbor_table, save_neighbors
from hf_genrec.evaluation.baselines.ridge import SequentialRidge
from hf_genrec.evaluation.baselines.sparse import Popularity
from hf_genrec.evaluation.baselines.text import TextSimilarity


# What every model is printed beside, by the name in records.
BASELINES: dict[str, type[CatalogRanker]] = {
    "popularity": Popularity,
    "item_knn": ItemKNN,
    "ridge": SequentialRidge,
}

__all__ = [
    "BASELINES", "NEIGHBORS_NAME", "CatalogRanker", "ItemKNN", "Popularity", "SequentialRidge", "TextSimilarity",
    "neighbor_table", "save_neighbors",
]  # fmt: skip
