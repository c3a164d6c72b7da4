"""The steps between a log and its splits."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.data import steps
from hf_genrec.data.engines import DuckDB


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = DuckDB(tmp_path_factory.mktemp("engine"))
    yield engine
    engine.close()


def table_of(rows):
    users, items, times = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "user_id": pa.array(users, pa.string()),
            "item_id": pa.array(items, pa.string()),
            "timestamp": pa.array(times, pa.int64()),
            "position": pa.array(range(len(rows)), pa.int64()),
            "is_good": pa.array([True] * len(rows), pa.bool_()),
        }
    )


def after(engine, rows, step=None, *options):
    """Users, items and times of a log after a step, in order."""
    engine.load("source_rows", table_of(rows).to_reader())
    steps.number_ids(engine)
    if step is not None:
        step(engine, *options)
    ids = [
        table.column(0).to_pylist()
        for table in (
            engine.table("SELECT user_id FROM users ORDER BY user_number"),
            engine.table("SELECT item_id FROM items ORDER BY item_number"),
        )
    ]
    batches = [row for batch in steps.sorted_rows(engine) for row in batch.to_pylist()]
    return [(ids[0][row["user_number"]], ids[1][row["item_number"]], row["timestamp"]) for row in batches]


def test_equal_times_keep_the_order_of_the_file(engine):
    rows = [("v", "c", 5), ("u", "a", 9), ("v", "a", 5), ("u", "b", 2), ("v", "b", 5)]

    assert after(engine, rows) == [("v", "c", 5), ("v", "a", 5), ("v", "b", 5), ("u", "b", 2), ("u", "a", 9)]


def test_without_times_the_order_of_the_file_is_kept(engine):
    rows = [("v", "c", None), ("u", "a", None), ("v", "a", None)]

    assert after(engine, rows) == [rows[0], rows[2], rows[1]]


def test_the_earliest_of_repeated_pairs_stays(engine):
    rows = [("u", "a", 3), ("u", "b", 2), ("u", "a", 1), ("v", "a", 4), ("v", "a", 4)]

    assert [time for *_, time in after(engine, rows, steps.deduplicate)] == [1, 2, 4]


def test_the_core_shrinks_until_nothing_is_left_to_drop(engine):
    chain = [("u", "a", 1), ("u", "b", 2), ("v", "b", 3), ("v", "c", 4), ("w", "c", 5)]

    assert after(engine, chain, steps.k_core, 2) == []
    assert after(engine, chain, steps.k_core, 1) == chain


def test_users_below_the_minimum_history_leave(engine):
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("v", "a", 1), ("v", "b", 2)]

    assert after(engine, rows, steps.drop_short_histories, 2) == rows[:3]
    assert after(engine, rows, steps.drop_short_histories, 1) == rows


@pytest.mark.parametrize(("step", "name"), [(steps.k_core, "k"), (steps.drop_short_histories, "min_history")])
def test_negative_minima_are_refused(engine, step, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
        after(engine, [("u", "a", 1)], step, -1)


def test_an_empty_table_passes_through_every_step(engine):
    for step in (steps.deduplicate, lambda engine: steps.k_core(engine, 3), lambda _: None):
        assert after(engine, [], step) == []
    assert list(steps.statistics_of(engine).values()) == [0, 0, 0, 0.0, 0.0]


def test_a_row_that_does_not_count_still_says_when_its_user_came_first(engine):
    table = table_of([("u", "a", 1), ("v", "b", 2), ("u", "c", 3), (None, "c", 4)])
    engine.load("source_rows", table.set_column(4, "is_good", pa.array([False, True, True, False])).to_reader())

    steps.number_ids(engine)

    assert engine.table("SELECT user_id FROM users ORDER BY user_number")["user_id"].to_pylist() == ["u", "v"]
    assert [row["user_number"] for batch in steps.sorted_rows(engine) for row in batch.to_pylist()] == [0, 1]
    assert steps.used_items(engine).to_pylist() == ["b", "c"]


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=60), k=st.integers(0, 4))
def test_every_user_and_item_of_a_core_has_k_interactions_and_the_core_is_the_largest(engine, pairs, k):
    log = [(f"u{user}", f"i{item}", row) for row, (user, item) in enumerate(pairs)]

    core = after(engine, log, steps.k_core, k)

    for side in (0, 1):
        counts = np.unique([row[side] for row in core], return_counts=True)[1]
        assert (counts >= k).all()
    rows = set(range(len(pairs)))
    while True:  # the definition, one row at a time
        weak = {
            row for row in rows for side in (0, 1) if sum(pairs[other][side] == pairs[row][side] for other in rows) < k
        }
        if not weak:
            break
        rows -= weak
    assert sorted(row[2] for row in core) == sorted(rows)
