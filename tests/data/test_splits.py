"""Rows of a split: what is written is read again, as files and as flat arrays."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec.data.splits import SPLIT_SCHEMA, flat_sequences, write_split
from hf_genrec.files import first_five


def test_rows_are_pieces_of_the_items_in_any_order(tmp_path):
    write_split(
        tmp_path / "test.parquet",
        user_ids=pa.array(["v", "u", "w"]),
        item_ids=pa.array([*"abcde"]).dictionary_encode(),
        timestamps=pa.array([1, 2, 3, 4, None]),
        starts=np.array([2, 0, 3]),
        ends=np.array([4, 1, 3]),
    )

    table = pq.read_table(tmp_path / "test.parquet")

    assert table.schema.equals(SPLIT_SCHEMA)
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("v", ["c", "d"], "e", None, [3, 4]),
        ("u", ["a"], "b", 2, [1]),
        ("w", [], "d", 4, []),
    ]


def test_items_outside_the_catalog_are_marked():
    split = pa.table({"history": [["b", "x"], []], "target": ["a", "y"]})

    indices, offsets = flat_sequences(split, ["a", "b"])

    assert (indices.tolist(), offsets.tolist()) == ([1, -1, 0, -1], [0, 3, 4])


def test_five_ids_are_named():
    assert first_five(pa.array(["a", "b"])) == "'a', 'b'"
    assert first_five(pa.array([*"abcdef"])) == "'a', 'b', 'c', 'd', 'e', ... (6 in all)"
