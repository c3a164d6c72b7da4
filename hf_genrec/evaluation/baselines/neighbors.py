"""
What item-kNN knows, small enough to be published beside a model: each item's most similar items.

A repository holds no interactions, so without this file a reader of the repository alone cannot compare the model's
list with the baseline's; the Space shows both. The file holds similarities, from which counts of users who took two
items together can be worked out, but no users. It is made from the training part alone.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines.item_knn import ItemKNN
from hf_genrec.files import replaced


NEIGHBORS_NAME = "item_neighbors.parquet"
NUM_NEIGHBORS = 50


def neighbor_table(prepared: PreparedDataset, *, num_neighbors: int = NUM_NEIGHBORS) -> pa.Table:
    """
    The most similar items of each item, as [`ItemKNN`] with its default settings has them.

    Args: the data set, of which only the training part is read, and the number of items per item at most.

    >>> import pandas as pd
    >>> import tempfile
    >>> from hf_genrec.data.prepare import prepare
    >>> log = pd.DataFrame({"user_id": list("uuuuvvvv"), "item_id": ["tea", "cup", "pot", "jam"] * 2})
    >>> items = [{"item_id": item, "title": item} for item in ["cup", "jam", "pot", "tea"]]
    >>> folder = tempfile.TemporaryDirectory()
    >>> table = neighbor_table(prepare(folder.name, interactions=log, items=items, timestamp=None))
    >>> table["item_id"].to_pylist(), table["neighbors"].to_pylist()  # only tea and cup are in the training part
    (['cup', 'jam', 'pot', 'tea'], [[3], [], [], [0]])
    >>> folder.cleanup()
    """
    knn = ItemKNN.fit(prepared, num_neighbors=num_neighbors)
    rows = pd.Index(prepared.item_ids).get_indexer(knn.item_ids)  # row of the catalog at each place in popularity
    near = knn.similarity.tocoo()
    item, column = near.coords
    order = np.lexsort((column, -near.data, rows[item]))
    lengths = np.bincount(rows[item], minlength=len(rows))
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    table = pa.table(
        {
            "item_id": pa.array(prepared.item_ids, pa.string()),
            "num_interactions": prepared.train_item_counts(),
            "neighbors": pa.ListArray.from_arrays(offsets, pa.array(rows[column][order], pa.int32())),
            "similarity": pa.ListArray.from_arrays(offsets, pa.array(near.data[order])),
        }
    )
    return table.replace_schema_metadata({"decay": str(knn.decay)})


def save_neighbors(prepared: PreparedDataset, folder: str | os.PathLike[str]) -> None:
    """
    Put [`neighbor_table`] into a run folder, as `item_neighbors.parquet`; it is published with the model.

    Args: the data set that the run was trained on, and the run folder.
    """
    path = Path(folder) / NEIGHBORS_NAME
    with replaced(path) as partial:
        pq.write_table(neighbor_table(prepared), partial, compression="zstd")
