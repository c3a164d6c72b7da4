"""Metrics where several items share a semantic ID: hand-worked cases, and the mean over all orders of each group."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_genrec.evaluation.metrics import (
    corrected_ndcg_per_user,
    corrected_recall_per_user,
    ndcg_per_user,
    rank_ids,
    ranks_of_targets,
    recall_per_user,
    shared_id_groups,
)


# Items 0 to 6; 1, 4 and 6 share an id, and so do 2 and 3.
GROUPS = np.array([0, 1, 2, 2, 1, 3, 1])


def test_tables_with_unique_ids_or_without_ids_have_no_groups():
    items = pa.table({"item_id": ["a", "b", "c"], "codes": pa.array([[1, 2], [1, 3], [2, 2]], pa.list_(pa.int16()))})

    assert shared_id_groups(items) is None
    assert shared_id_groups(items.drop_columns(["codes"])) is None
    np.testing.assert_array_equal(shared_id_groups(pa.concat_tables([items, items.slice(1, 1)])), [0, 1, 2, 1])


def test_ids_are_ranked_among_distinct_ids():
    lists = np.array([[2, 3, 0, 1, 4, 6], [6, 2, -1, -1, -1, -1], [5, 0, 2, 3, -1, -1]])

    found = rank_ids(lists, np.array([4, 3, 1]), groups=GROUPS)

    np.testing.assert_array_equal(found.group_start, [3, 1, -1])
    np.testing.assert_array_equal(found.id_rank, [2, 1, -1])
    np.testing.assert_array_equal(found.group_size, [3, 2, 3])
    np.testing.assert_array_equal(found.num_ids, [3, 2, 3])


def test_group_cut_by_the_list_counts_partly():
    starts, sizes = [0, 3, 4, 7, -1], [2, 3, 4, 1, 3]

    np.testing.assert_allclose(corrected_recall_per_user(starts, sizes, k=5), [1, 2 / 3, 1 / 4, 0, 0])
    expected = [(1 + 1 / math.log2(3)) / 2, (1 / math.log2(5) + 1 / math.log2(6)) / 3, 1 / math.log2(6) / 4, 0, 0]
    np.testing.assert_allclose(corrected_ndcg_per_user(starts, sizes, k=5), expected)


@st.composite
def ranked_users(draw, *, is_unique=False):
    """Full rankings of a catalog in which the items of an id stand together, and targets."""
    num_items = draw(st.integers(1, 6))
    numbers = (
        list(range(num_items))
        if is_unique
        else draw(st.lists(st.integers(0, 3), min_size=num_items, max_size=num_items))
    )
    groups = np.unique(numbers, return_inverse=True)[1]
    order = draw(st.permutations(range(groups.max() + 1)))
    items = [item for group in order for item in np.flatnonzero(groups == group).tolist()]
    return np.array(items), draw(st.integers(0, num_items - 1)), groups


@given(ranked_users(), st.integers(1, 7))
def test_corrected_numbers_are_the_mean_over_all_orders_within_the_ids(user, k):
    items, target, groups = user
    found = rank_ids(items[None], [target], groups=groups)
    blocks = [list(block) for _, block in itertools.groupby(items.tolist(), key=lambda item: groups[item])]
    orders = itertools.product(*(itertools.permutations(block) for block in blocks))
    ranks = np.array([list(itertools.chain.from_iterable(order)).index(target) for order in orders])

    spans = (found.group_start, found.group_size)

    assert corrected_recall_per_user(*spans, k=k)[0] == pytest.approx(recall_per_user(ranks, k=k).mean())
    assert corrected_ndcg_per_user(*spans, k=k)[0] == pytest.approx(ndcg_per_user(ranks, k=k).mean())


@given(ranked_users(is_unique=True), st.integers(1, 7), st.integers(1, 7))
def test_without_shared_ids_all_ways_to_count_agree(user, length, k):
    items, target, groups = user
    found = rank_ids(items[None, :length], [target], groups=groups)
    ranks = ranks_of_targets(items[None, :length], np.array([target]))

    spans = (found.group_start, found.group_size)

    np.testing.assert_array_equal(found.id_rank, ranks)
    np.testing.assert_array_equal(corrected_recall_per_user(*spans, k=k), recall_per_user(ranks, k=k))
    np.testing.assert_allclose(corrected_ndcg_per_user(*spans, k=k), ndcg_per_user(ranks, k=k), rtol=1e-12)


@given(ranked_users(), st.integers(1, 7))
def test_taking_ids_for_items_never_lowers_a_number(user, k):
    items, target, groups = user
    found = rank_ids(items[None], [target], groups=groups)

    assert recall_per_user(found.id_rank, k=k) >= corrected_recall_per_user(found.group_start, found.group_size, k=k)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="one row per target"):
        rank_ids([[0, 1]], [0, 1], groups=GROUPS)
    with pytest.raises(ValueError, match="below 7"):
        rank_ids([[0, 7]], [0], groups=GROUPS)
    with pytest.raises(ValueError, match="below 7"):
        rank_ids([[0, 1]], [-1], groups=GROUPS)
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        corrected_recall_per_user([0], [1], k=0)
    with pytest.raises(ValueError, match="sizes of at least 1"):
        corrected_ndcg_per_user([0], [0], k=1)
