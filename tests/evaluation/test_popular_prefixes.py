"""Popular prefixes and shared codes: exact values, and properties by hypothesis."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_genrec.evaluation.prefixes import popular_prefixes, shared_codes_of_pairs, shared_codes_per_user


CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [2, 0, 0]])
COUNTS = np.array([4, 1, 1, 5, 1])


def shared(a, b):
    return next((level for level in range(3) if CODES[a, level] != CODES[b, level]), 3)


def test_popular_are_the_fewest_prefixes_that_hold_half_of_the_training():
    rows = popular_prefixes([[0, 3], [1, 4]], [3, 2], codes=CODES, counts=COUNTS)

    assert [(row["num_prefixes"], row["num_popular"]) for row in rows] == [(3, 1), (4, 2), (5, 2)]
    assert [row["in_targets"] for row in rows] == [0.5, 0.5, 0.5]
    assert [row["in_lists"] for row in rows] == [0.5, 0.75, 0.5]
    assert [row["amplification"] for row in rows] == [1.0, 1.5, 1.0]


def test_lists_that_are_targets_amplify_nothing():
    for row in popular_prefixes([[0], [3], [4]], [0, 3, 4], codes=CODES, counts=COUNTS):
        assert row["amplification"] == 1


def test_short_lists_and_unknown_targets_are_left_out():
    row = popular_prefixes([[0, -1], [-1, -1]], [-1, 4], codes=CODES, counts=COUNTS)[0]

    assert (row["in_targets"], row["in_lists"], row["amplification"]) == (0, 1, None)


def test_without_training_nothing_is_popular():
    with pytest.raises(ValueError, match="at least one interaction"):
        popular_prefixes([[0]], [0], codes=CODES, counts=np.zeros(5))


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.integers(-1, 4)))
def test_shared_codes_are_the_mean_over_pairs(lists):
    found = shared_codes_per_user(lists, codes=CODES)

    for row, value in zip(lists, found, strict=True):
        pairs = [shared(a, b) for a, b in itertools.combinations(row[row >= 0], 2)]
        assert value == pytest.approx(np.mean(pairs)) if pairs else np.isnan(value)


@given(st.lists(st.integers(0, 4), max_size=9))
def test_pairs_of_items_are_counted_without_listing_them(items):
    pairs = [shared(a, b) for a, b in itertools.combinations(items, 2)]

    assert shared_codes_of_pairs(items, codes=CODES) == (pytest.approx(np.mean(pairs)) if pairs else None)
