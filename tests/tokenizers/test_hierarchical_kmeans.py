"""Hierarchical k-means: the tree, walking down, saving, checks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.tokenizers.collisions import group_by_codes
from hf_genrec.tokenizers.hierarchical_kmeans import HierarchicalKMeans
from tests.invariants.quantizer import QuantizerInvariants


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(301, 13)).astype(np.float32)


@pytest.fixture(scope="module")
def quantizer(embeddings) -> HierarchicalKMeans:
    return HierarchicalKMeans(num_levels=3, codebook_size=8).fit(embeddings)


def test_each_level_splits_the_members_of_a_cluster(embeddings, quantizer):
    codes = quantizer.encode(embeddings)

    assert codes.shape == (301, 3)
    assert codes.dtype == np.int64
    assert [codes.min(), codes.max()] == [0, 7]
    num_clusters = [len(group_by_codes(codes[:, : depth + 1])[1]) for depth in range(3)]
    assert num_clusters[0] == 8
    assert 8 < num_clusters[1] <= 64
    assert num_clusters[2] > 250  # most clusters of the second level have at most eight members


def test_first_level_is_plain_k_means(embeddings, quantizer):
    codes = quantizer.encode(embeddings)[:, :1]

    centroids = quantizer.decode(np.arange(8)[:, None])
    nearest = ((embeddings[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(codes[:, 0], nearest)
    for code in range(8):  # k-means has not converged after 25 iterations, but nearly
        np.testing.assert_allclose(centroids[code], embeddings[nearest == code].mean(axis=0), atol=0.15)


def test_members_of_small_clusters_get_codes_of_their_own_and_reconstruct_exactly(embeddings, quantizer):
    codes = quantizer.encode(embeddings)

    groups, sizes = group_by_codes(codes[:, :2])
    is_small = sizes[groups] <= 8
    assert (group_by_codes(codes[is_small])[1] == 1).all()
    np.testing.assert_array_equal(quantizer.decode(codes[is_small]), embeddings[is_small])


def test_cluster_that_is_split_further_keeps_a_single_member_at_code_zero():
    rows = np.array([[0.0, 0.0], [5.0, 0.0], [9.0, 9.0]])

    codes = HierarchicalKMeans(num_levels=3, codebook_size=4).fit(rows).encode(rows)

    assert sorted(codes[:, 0].tolist()) == [0, 1, 2]
    np.testing.assert_array_equal(codes[:, 1:], np.zeros((3, 2)))


def test_new_items_walk_to_the_nearest_child(embeddings, quantizer):
    new_items = np.random.default_rng(8).normal(size=(57, 13)).astype(np.float32)

    codes = quantizer.encode(new_items)

    for depth in range(3):
        nodes = np.unique(quantizer.encode(embeddings)[:, : depth + 1], axis=0)
        for item, row in zip(new_items, codes, strict=True):
            children = nodes[(nodes[:, :depth] == row[:depth]).all(axis=1)]
            distances = ((quantizer.decode(children) - item) ** 2).sum(axis=1)
            assert row[depth] == children[distances.argmin(), depth]


def test_deeper_levels_reconstruct_better(embeddings, quantizer):
    errors = quantizer.relative_errors(embeddings, quantizer.encode(embeddings))

    assert 1 > errors[0] > errors[1] > errors[2] >= 0
    np.testing.assert_allclose(
        errors[2],
        ((quantizer.decode(quantizer.encode(embeddings)) - embeddings) ** 2).sum()
        / ((embeddings - embeddings.mean(axis=0)) ** 2).sum(),
        rtol=1e-5,
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from([2, 4, 8]), st.integers(0, 99))
def test_equal_rows_share_codes_and_every_code_can_be_decoded(num_rows, num_levels, codebook_size, seed):
    rows = np.random.default_rng(seed).integers(0, 3, size=(num_rows, 2)).astype(np.float32)

    quantizer = HierarchicalKMeans(num_levels=num_levels, codebook_size=codebook_size).fit(rows)
    codes = quantizer.encode(rows)

    assert codes.max() < codebook_size
    assert quantizer.decode(codes).shape == rows.shape
    groups = np.unique(rows, axis=0, return_inverse=True)[1].ravel()
    assert len(np.unique(np.column_stack([groups, codes]), axis=0)) == len(np.unique(groups))


def test_tree_does_not_depend_on_the_order_of_the_rows(embeddings, quantizer):
    order = np.random.default_rng(9).permutation(301)

    again = HierarchicalKMeans(num_levels=3, codebook_size=8).fit(embeddings[order])

    np.testing.assert_array_equal(again.encode(embeddings), quantizer.encode(embeddings))


class TestHierarchicalKMeans(QuantizerInvariants):
    QUANTIZER = HierarchicalKMeans
    OTHER_SIZE = "num_levels"
    WRONG = {"num_iterations": 0}
    LEAST_ROWS = 1


def test_codes_that_the_tree_does_not_have_cannot_be_decoded(embeddings):
    with pytest.raises(ValueError, match="no cluster has 1 of them, first row 1"):
        HierarchicalKMeans(num_levels=2, codebook_size=4).fit(embeddings[:3]).decode(np.array([[0, 0], [3, 0]]))
