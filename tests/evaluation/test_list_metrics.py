"""Coverage, Gini, novelty, diversity and popularity lift against hand-worked cases and plain loops."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_genrec.evaluation.lists import (
    coverage,
    diversity_per_user,
    gini,
    history_matrix,
    item_indices,
    novelty_per_user,
    popularity_lift_per_user,
    unit_columns,
)


CATALOG = ["soap", "comb", "brush", "towel", "rock"]
LISTS = np.array([[3, 0, 1], [0, 4, -1], [-1, -1, -1]])
COUNTS = np.array([8, 4, 2, 2, 0])

random_lists = hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.integers(-1, 11))


def test_indices_keep_the_places_of_foreign_ids_and_cut_long_lists():
    lists = [["rock", "paper", "soap", "comb"], [], ["comb"]]

    np.testing.assert_array_equal(item_indices(lists, item_ids=CATALOG, k=3), [[4, -1, 0], [-1] * 3, [1, -1, -1]])
    assert item_indices(lists, item_ids=CATALOG).shape == (3, 4)
    assert item_indices(lists, item_ids=CATALOG, k=7).shape == (3, 7)


def test_history_matrix_counts_repeated_items():
    matrix = history_matrix([["comb", "paper", "comb"], [], ["rock"]], item_ids=CATALOG)

    np.testing.assert_array_equal(matrix.toarray(), [[0, 2, 0, 0, 0], [0] * 5, [0, 0, 0, 0, 1]])


def test_coverage_is_the_share_of_items_that_anybody_gets():
    assert coverage(LISTS, num_items=5) == 4 / 5
    assert coverage(LISTS, num_items=8) == 4 / 8


def test_gini_grows_from_even_to_one_item_for_all():
    assert gini([[0, 1], [2, 3], [4, -1]], num_items=5) == 0
    assert gini([[1], [1], [1]], num_items=5) == pytest.approx(1 - 1 / 5)
    assert gini(LISTS, num_items=5) == pytest.approx((-2 + 2 + 4 * 2) / (5 * 5))  # 0, 1, 1, 1 and 2 times
    assert math.isnan(gini([[-1]], num_items=5))


@given(random_lists)
def test_gini_is_the_mean_difference_of_two_items(lists):
    times = np.bincount(lists[lists >= 0], minlength=12)
    differences = np.abs(times[:, None] - times[None, :]).sum()

    value = gini(lists, num_items=12)

    if times.sum():
        assert value == pytest.approx(differences / (2 * 12 * times.sum()))
        assert 0 <= value < 1


def test_novelty_is_the_mean_surprise_in_bits_and_finite_for_unseen_items():
    np.testing.assert_allclose(novelty_per_user(LISTS, counts=COUNTS), [(3 + 1 + 2) / 3, (1 + 4) / 2, np.nan])


def test_popularity_lift_compares_the_list_with_the_own_history():
    histories = history_matrix([["comb"], ["soap", "soap", "towel"], ["soap"]], item_ids=CATALOG)

    lift = popularity_lift_per_user(LISTS, histories, counts=COUNTS)

    np.testing.assert_allclose(lift, [(2 + 8 + 4) / 3 / 4 - 1, (8 + 0) / 2 / 6 - 1, np.nan])


def test_users_without_a_known_history_have_no_popularity_lift():
    histories = history_matrix([[], ["rock"], ["paper"]], item_ids=CATALOG)

    assert np.isnan(popularity_lift_per_user([[0], [0], [0]], histories, counts=COUNTS)).all()


def test_diversity_is_one_minus_the_mean_cosine_of_the_pairs():
    taken = sp.csr_array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 1, 1, 0]])

    diversity = diversity_per_user([[0, 1, 2], [0, 4, -1], [3, -1, -1]], items=unit_columns(taken))

    np.testing.assert_allclose(diversity, [1 - (1 + 1 / 2 + 1 / 2) / 3, 1, np.nan], rtol=1e-6)


@given(random_lists, hnp.arrays(np.int64, (7, 12), elements=st.integers(0, 1)))
def test_diversity_equals_a_loop_over_pairs(lists, taken):
    diversity = diversity_per_user(lists, items=unit_columns(sp.csr_array(taken)))

    lengths = np.sqrt(taken.sum(axis=0))
    for row, value in zip(lists, diversity, strict=True):
        items = [item for item in row if item >= 0]
        pairs = [(a, b) for place, a in enumerate(items) for b in items[place + 1 :]]
        alike = [taken[:, a] @ taken[:, b] / max(1, lengths[a] * lengths[b]) for a, b in pairs]
        assert math.isnan(value) if not pairs else value == pytest.approx(1 - np.mean(alike), abs=1e-6)


def test_diversity_does_not_depend_on_the_chunks(monkeypatch):
    lists = np.array([[0, 1, 2], [2, 3, 1], [4, 0, -1], [1, 2, 3]])
    items = unit_columns(sp.csr_array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]))
    whole = diversity_per_user(lists, items=items)

    monkeypatch.setattr("hf_genrec.evaluation.lists._CHUNK_ENTRIES", 5)

    np.testing.assert_array_equal(diversity_per_user(lists, items=items), whole)


def test_bad_lists_are_named():
    with pytest.raises(ValueError, match="at least one interaction"):
        novelty_per_user([[0]], counts=[0, 0])
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        item_indices([["soap"]], item_ids=CATALOG, k=0)
