"""Rows of a split: what is written is read again, as files and as flat arrays."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_genrec.data import split_writer
from hf_genrec.data.fingerprint import fingerprint_of, read_digests
from hf_genrec.data.split_writer import split_rows, write_splits
from hf_genrec.data.splits import SPLIT_SCHEMA, SPLITS, flat_sequences, read_split, split_files
from hf_genrec.files import first_five


def test_rows_are_pieces_of_the_items_in_any_order():
    table = split_rows(
        user_ids=pa.array(["v", "u", "w"]),
        item_ids=pa.array([*"abcde"]).dictionary_encode(),
        timestamps=pa.array([1, 2, 3, 4, None]),
        starts=np.array([2, 0, 3]),
        ends=np.array([4, 1, 3]),
    )

    assert table.column_names == SPLIT_SCHEMA.names
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


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
@pytest.mark.parametrize("of_a_shard", [1, 4, 100])
def test_splits_are_the_same_however_the_rows_are_cut(tmp_path, monkeypatch, at_once, of_a_shard):
    monkeypatch.setattr(split_writer, "_INTERACTIONS_AT_ONCE", at_once)
    monkeypatch.setattr(split_writer, "INTERACTIONS_OF_A_SHARD", of_a_shard)
    rows = pa.table({"user_number": [0, 0, 0, 0, 3, 4, 4, 4], "item_number": [0, 1, 0, 2, 1, 2, 2, 0]})
    rows = rows.append_column("timestamp", pa.array(range(8), pa.int64())).to_batches(max_chunksize=min(at_once, 3))
    users = pa.table({"user_id": ["u", "v", "w"]}).to_batches(max_chunksize=2)

    sizes = write_splits(
        tmp_path, rows, user_ids=users, item_ids=pa.array([*"abc"]), is_cold=np.array([False, True, False])
    )

    found = {name: [tuple(row.values()) for row in read_split(tmp_path, name).to_pylist()] for name in SPLITS}
    assert {str(field.type) for field in read_split(tmp_path, "test").schema} == {
        "string", "int64", "list<element: string>", "list<element: int64>",
    }  # fmt: skip
    num_shards = 1 if at_once == 100 or of_a_shard == 100 else 2
    assert len(split_files(tmp_path, "test")) == num_shards
    assert (tmp_path / "test.parquet").exists() == (num_shards == 1) != (tmp_path / "test").exists()
    assert [sizes.digests.of([name]) for name in SPLIT_SCHEMA.names] == [
        read_digests(tmp_path, [name]).of([name]) for name in SPLIT_SCHEMA.names
    ]
    assert found == {
        "train": [("u", [], "a", 0, []), ("w", [], "c", 5, [])],
        "validation": [("u", ["a", "b"], "a", 2, [0, 1]), ("w", ["c"], "c", 6, [5])],
        "test": [("u", ["a", "b", "a"], "c", 3, [0, 1, 2]), ("w", ["c", "c"], "a", 7, [5, 6])],
    }
    assert sizes.num_rows == {"train": 2, "validation": 2, "test": 2}
    assert (sizes.users_without_evaluation, sizes.users_without_training, sizes.num_cold_users) == (1, 1, 2)
    assert (sizes.num_train_targets, sizes.num_repeats, sizes.num_cold_interactions) == (0, 0, 2)


def test_repeats_are_counted_within_one_sequence():
    items, starts, ends = np.array([5, 5, 7, 5, 7, 5]), np.array([0, 3]), np.array([2, 5])

    assert split_writer._count_repeats(items, starts, ends) == 2


def test_a_null_id_is_named_with_its_file_and_column(make_prepared):
    folder = make_prepared({"user": ["a", "b", "c", "d"], "other": ["b", "c", "d"]}).folder
    rows = pq.read_table(folder / "train.parquet")
    pq.write_table(rows.set_column(2, "target", pa.array([None, "c"], pa.string())), folder / "train.parquet")

    with pytest.raises(ValueError, match=r"train\.parquet is no readable .*: 1 ids in the column target are null"):
        fingerprint_of(folder)
