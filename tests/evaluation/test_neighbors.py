import pyarrow.parquet as pq
import pytest

from hf_genrec.evaluation.baselines import NEIGHBORS_NAME, save_neighbors


# the training part is everything but the last two items of each user: a with b twice, a with c once
SEQUENCES = {"u": ["a", "b", "y", "z"], "v": ["b", "a", "z", "y"], "w": ["c", "a", "y", "z"]}


def test_neighbors_stand_most_similar_first_in_the_order_of_the_catalog(make_prepared, tmp_path):
    prepared = make_prepared(SEQUENCES)

    save_neighbors(prepared, tmp_path)

    table = pq.read_table(tmp_path / NEIGHBORS_NAME)
    assert table["item_id"].to_pylist() == list(prepared.item_ids) == ["a", "b", "c", "y", "z"]
    assert table["neighbors"].to_pylist() == [[1, 2], [0], [0], [], []]
    assert table["similarity"].to_pylist()[0] == pytest.approx([2 / (3 * 2) ** 0.3, 1 / 3**0.3])
    assert table["num_interactions"].to_pylist() == [3, 2, 1, 0, 0]
