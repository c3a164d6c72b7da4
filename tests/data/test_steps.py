"""The steps between a log and its splits."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.data.steps import deduplicate, drop_short_histories, k_core, sort_by_time, statistics_of


def table_of(rows):
    users, items, times = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "user_id": pa.array(users, pa.string()),
            "item_id": pa.array(items, pa.string()),
            "timestamp": pa.array(times, pa.int64()),
        }
    )


def test_equal_times_keep_the_order_of_the_file():
    rows = [("v", "c", 5), ("u", "a", 9), ("v", "a", 5), ("u", "b", 2), ("v", "b", 5)]

    ordered = sort_by_time(table_of(rows))

    assert ordered["user_id"].to_pylist() == ["v", "v", "v", "u", "u"]
    assert ordered["item_id"].to_pylist() == ["c", "a", "b", "b", "a"]


def test_without_times_the_order_of_the_file_is_kept():
    ordered = sort_by_time(table_of([("v", "c", None), ("u", "a", None), ("v", "a", None)]))

    assert ordered["item_id"].to_pylist() == ["c", "a", "a"]
    assert ordered["user_id"].to_pylist() == ["v", "v", "u"]


def test_the_earliest_of_repeated_pairs_stays():
    kept = deduplicate(table_of([("u", "a", 1), ("u", "b", 2), ("u", "a", 3), ("v", "a", 4)]))

    assert kept["timestamp"].to_pylist() == [1, 2, 4]


def test_the_core_shrinks_until_nothing_is_left_to_drop():
    chain = [("u", "a", 1), ("u", "b", 2), ("v", "b", 3), ("v", "c", 4), ("w", "c", 5)]

    assert k_core(table_of(chain), 2).num_rows == 0
    assert k_core(table_of(chain), 1).num_rows == 5


def test_users_below_the_minimum_history_leave():
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("v", "a", 1), ("v", "b", 2)]

    assert drop_short_histories(table_of(rows), 2)["user_id"].to_pylist() == ["u", "u", "u"]
    assert drop_short_histories(table_of(rows), 1).num_rows == 5


@pytest.mark.parametrize(("step", "name"), [(k_core, "k"), (drop_short_histories, "min_history")])
def test_negative_minima_are_refused(step, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
        step(table_of([("u", "a", 1)]), -1)


def test_an_empty_table_passes_through_every_step():
    empty = table_of([])

    assert [deduplicate(empty).num_rows, k_core(empty, 3).num_rows, sort_by_time(empty).num_rows] == [0, 0, 0]
    assert list(statistics_of(empty).values()) == [0, 0, 0, 0.0, 0.0]


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=60), k=st.integers(0, 4))
def test_every_user_and_item_of_a_core_has_k_interactions_and_the_core_is_the_largest(pairs, k):
    table = table_of([(f"u{user}", f"i{item}", row) for row, (user, item) in enumerate(pairs)])

    core = k_core(table, k)

    for name in ("user_id", "item_id"):
        counts = np.unique(core[name].to_pylist(), return_counts=True)[1]
        assert (counts >= k).all()
    rows = set(range(len(pairs)))
    while True:  # the definition, one row at a time
        weak = {
            row for row in rows for side in (0, 1) if sum(pairs[other][side] == pairs[row][side] for other in rows) < k
        }
        if not weak:
            break
        rows -= weak
    assert core["timestamp"].to_pylist() == sorted(rows)
