"""Collision policies: unique afterwards, deterministic, and no item moved without need."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.tokenizers.collisions import (
    UsedTuples,
    _smallest,
    append_code,
    group_by_codes,
    reassign_by_candidates,
    rematch_last_level,
)


@st.composite
def crowded_catalogs(draw, *, max_share: float = 1.0):
    """Codes with many collisions, and embeddings and centroids to resolve them with."""
    num_levels = draw(st.integers(1, 3))
    codebook_size = draw(st.integers(2, 5))
    num_items = draw(st.integers(1, max(1, int(max_share * codebook_size**num_levels))))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codebooks = generator.normal(size=(num_levels, codebook_size, 3)).astype(np.float32)
    spread = draw(st.sampled_from([1, codebook_size]))  # 1: all items on one tuple
    codes = generator.integers(0, spread, size=(num_items, num_levels))
    noise = draw(st.sampled_from([0.0, 0.3]))  # 0: items of a group are identical
    embeddings = codebooks[np.arange(num_levels), codes].sum(axis=1) + noise * generator.normal(size=(num_items, 3))
    return codes, embeddings.astype(np.float32), codebooks


@settings(max_examples=30)
@given(st.integers(1, 9), st.sampled_from([2, 300, 2**15]), st.integers(0, 2**32 - 1))
def test_groups_stand_in_the_order_of_their_tuples(num_levels, codebook_size, seed):
    codes = np.random.default_rng(seed).integers(codebook_size, size=(17, num_levels))[np.arange(31) % 17]

    groups, sizes = group_by_codes(codes)

    distinct = sorted({tuple(row) for row in codes.tolist()})
    assert [distinct[group] for group in groups] == [tuple(row) for row in codes.tolist()]
    assert sizes.tolist() == [codes.tolist().count(list(row)) for row in distinct]


@settings(max_examples=30, deadline=None)
@given(crowded_catalogs())
def test_widening_always_ends_unique_and_moves_only_collided_items(catalog):
    codes, embeddings, codebooks = catalog

    result = reassign_by_candidates(codes, embeddings=embeddings, codebooks=codebooks, num_candidates=2, widen=True)

    groups, sizes = group_by_codes(codes)
    assert (group_by_codes(result)[1] == 1).all()
    assert result.min() >= 0
    assert result.max() < codebooks.shape[1]
    alone = sizes[groups] == 1
    np.testing.assert_array_equal(result[alone], codes[alone])
    # exactly one item of each group keeps its tuple
    np.testing.assert_array_equal(np.bincount(groups[(result == codes).all(axis=1)]), np.ones(len(sizes)))
    again = reassign_by_candidates(codes, embeddings=embeddings, codebooks=codebooks, num_candidates=2, widen=True)
    np.testing.assert_array_equal(again, result)


@settings(max_examples=30, deadline=None)
@given(crowded_catalogs())
def test_appended_codes_are_unique_and_count_within_each_group(catalog):
    codes = catalog[0]

    result = append_code(codes)

    np.testing.assert_array_equal(result[:, :-1], codes)
    assert (group_by_codes(result)[1] == 1).all()
    for group in np.unique(group_by_codes(codes)[0]):
        last = result[group_by_codes(codes)[0] == group, -1]
        np.testing.assert_array_equal(last, np.arange(len(last)))


@settings(max_examples=30, deadline=None)
@given(crowded_catalogs())
def test_rematching_is_unique_and_keeps_prefixes_or_says_why_not(catalog):
    codes, embeddings, codebooks = catalog
    largest_prefix = group_by_codes(codes[:, :-1])[1].max()

    if largest_prefix > codebooks.shape[1]:
        with pytest.raises(ValueError, match="cannot succeed"):
            rematch_last_level(codes, embeddings=embeddings, codebooks=codebooks)
        return
    result = rematch_last_level(codes, embeddings=embeddings, codebooks=codebooks)

    assert (group_by_codes(result)[1] == 1).all()
    np.testing.assert_array_equal(result[:, :-1], codes[:, :-1])
    assert result[:, -1].min() >= 0
    assert result[:, -1].max() < codebooks.shape[1]


def test_item_closest_to_the_reconstruction_keeps_the_tuple():
    codebooks = np.array([[[0.0], [8.0]], [[0.0], [1.0]]])
    embeddings = np.array([[0.4], [0.1], [8.0], [0.1]])
    codes = np.array([[0, 0], [0, 0], [1, 0], [0, 0]])

    result = reassign_by_candidates(codes, embeddings=embeddings, codebooks=codebooks)

    # rows 1 and 3 fit equally well, the first stays; row 0 moves first to 1.0, row 3 takes what is left
    assert result.tolist() == [[0, 1], [0, 0], [1, 0], [1, 1]]


def test_mover_takes_the_best_free_candidate_for_its_own_embedding():
    generator = np.random.default_rng(3)
    codebooks = generator.normal(size=(3, 4, 5))
    codes = np.array([[1, 2, 0], [1, 2, 0], [3, 3, 3]])
    keeper = codebooks[[0, 1, 2], [1, 2, 0]].sum(axis=0)
    mover = keeper + 0.4 * generator.normal(size=5)

    embeddings = np.stack([keeper, mover, keeper])
    result = reassign_by_candidates(codes, embeddings=embeddings, codebooks=codebooks, num_candidates=4)

    free = [digits for digits in itertools.product(range(4), repeat=3) if list(digits) not in codes.tolist()]
    errors = [((codebooks[[0, 1, 2], digits].sum(axis=0) - mover) ** 2).sum() for digits in free]
    assert result[1].tolist() == list(free[int(np.argmin(errors))])


def test_number_of_candidates_limits_the_choice_and_failure_is_reported():
    codebooks = np.zeros((2, 3, 1))
    codebooks[:, :, 0] = [[0, 10, 20], [0, 1, 2]]
    codes = np.zeros((3, 2), dtype=int)
    embeddings = np.zeros((3, 1))

    with pytest.raises(ValueError, match=r"1 \*\* 2 candidates for 2 items, first at rows \[1, 2\]"):
        reassign_by_candidates(codes, embeddings=embeddings, codebooks=codebooks, num_candidates=1)
    result = reassign_by_candidates(codes, embeddings=embeddings, codebooks=codebooks, num_candidates=1, widen=True)
    # the last item looks at two centroids per level, 0 and 10, 0 and 1, before it would look at all three
    assert result.tolist() == [[0, 0], [0, 1], [1, 0]]


def test_rematching_is_the_cheapest_assignment():
    generator = np.random.default_rng(5)
    codebooks = generator.normal(size=(2, 5, 3))
    codes = np.array([[0, 1], [0, 1], [0, 4], [2, 3]])
    embeddings = generator.normal(size=(4, 3))

    result = rematch_last_level(codes, embeddings=embeddings, codebooks=codebooks)

    cost = ((embeddings[:3, None] - codebooks[0, 0] - codebooks[1]) ** 2).sum(axis=2)
    best = min(
        itertools.permutations(range(5), 3), key=lambda last: sum(cost[row, code] for row, code in enumerate(last))
    )
    assert result[:3, 1].tolist() == list(best)
    assert result[3].tolist() == [2, 3]


def test_rematching_leaves_prefix_groups_without_collisions_alone():
    codebooks = np.array([[[0.0], [8.0]], [[0.0], [1.0]]])
    codes = np.array([[0, 1], [0, 0]])  # crossed on purpose: swapping would cost less

    result = rematch_last_level(codes, embeddings=np.array([[0.0], [1.0]]), codebooks=codebooks)

    assert result.tolist() == codes.tolist()


@pytest.mark.parametrize("policy", [reassign_by_candidates, rematch_last_level])
def test_more_items_than_tuples_is_an_error_that_says_so(policy):
    with pytest.raises(ValueError, match="5 items cannot have distinct tuples: 2 levels of 2 codes make 4"):
        policy(np.zeros((5, 2), dtype=int), embeddings=np.zeros((5, 3)), codebooks=np.zeros((2, 2, 3)))


def test_a_catalog_as_large_as_all_tuples_is_filled():
    codebooks = np.random.default_rng(1).normal(size=(2, 4, 3))

    result = reassign_by_candidates(
        np.zeros((16, 2), dtype=int), embeddings=np.zeros((16, 3)), codebooks=codebooks, num_candidates=1, widen=True
    )

    assert len(np.unique(result, axis=0)) == 16


def test_arrays_that_do_not_fit_are_errors():
    codes, embeddings, codebooks = np.zeros((3, 2), dtype=int), np.zeros((3, 5)), np.zeros((2, 4, 5))

    with pytest.raises(ValueError, match="`embeddings` must have the shape"):
        rematch_last_level(codes, embeddings=embeddings[:2], codebooks=codebooks)
    with pytest.raises(ValueError, match="`codebooks` must have the shape"):
        rematch_last_level(codes, embeddings=embeddings, codebooks=codebooks[:1])
    with pytest.raises(ValueError, match="between 0 and 3"):
        rematch_last_level(codes + 4, embeddings=embeddings, codebooks=codebooks)
    with pytest.raises(ValueError, match="finite"):
        reassign_by_candidates(codes, embeddings=embeddings * np.nan, codebooks=codebooks)
    with pytest.raises(ValueError, match="`num_candidates` must be at least 1"):
        reassign_by_candidates(codes, embeddings=embeddings, codebooks=codebooks, num_candidates=0)
    with pytest.raises(ValueError, match=r"4 \*\* 32 tuples are too many"):
        reassign_by_candidates(np.zeros((3, 32), dtype=int), embeddings=embeddings, codebooks=np.zeros((32, 4, 5)))


def test_tuples_of_many_levels_are_not_mistaken_for_one_another():
    codebooks = np.zeros((9, 256, 2))
    codebooks[:, :, 0] = 100.0 * np.arange(256)
    codebooks[8, :3, 0] = 0.0, 1.0, 5.0  # 256 ** 8 is 0 modulo 2 ** 64: the last level must count all the same
    codes = np.zeros((3, 9), dtype=np.int64)
    embeddings = np.array([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]])

    moved = reassign_by_candidates(codes, embeddings=embeddings, codebooks=codebooks, num_candidates=3)

    assert moved[:, 8].tolist() == [0, 1, 2]
    assert not moved[:, :8].any()


@pytest.mark.parametrize(("num_levels", "codebook_size"), [(3, 4), (4, 512), (9, 2**14)])
def test_used_tuples_are_known_however_many_there_may_be(num_levels, codebook_size):
    codes = np.random.default_rng(1).integers(codebook_size, size=(50, num_levels))
    codes[7] = codebook_size - 1
    other = np.zeros(num_levels, np.int64)
    codes = codes[(codes != other).any(axis=1)]

    used = UsedTuples(codes, codebook_size)

    assert all(key in used for key in used.keys(codes).tolist())
    assert used.first_free(used.keys(np.vstack([codes[:3], other])).tolist()) == 3
    used.add(used.keys(other[None]).tolist()[0])
    assert used.first_free(used.keys(other[None]).tolist()) is None


@pytest.mark.parametrize("number", [1, 4, 9])
def test_the_smallest_values_are_those_of_a_stable_sort_also_among_equal_ones(number):
    values = np.random.default_rng(0).integers(5, size=(50, 3, 7)).astype(float)

    assert (_smallest(values, number) == np.argsort(values, axis=2, kind="stable")[:, :, :number]).all()
