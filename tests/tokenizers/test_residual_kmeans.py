"""Residual k-means: what all quantizers do, and faiss' codes by hand."""

import numpy as np
import pytest

from hf_genrec.tokenizers.residual_kmeans import ResidualKMeans
from tests.invariants.quantizer import QuantizerInvariants


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(301, 13)).astype(np.float32)


class TestResidualKMeans(QuantizerInvariants):
    QUANTIZER = ResidualKMeans
    OTHER_SIZE = "num_levels"
    WRONG = {"beam_size": 0}


@pytest.mark.parametrize(("codebook_size", "num_levels"), [(2, 5), (4, 3), (32, 2), (128, 3)])
def test_unpacked_codes_are_the_ones_faiss_decodes(embeddings, codebook_size, num_levels):
    quantizer = ResidualKMeans(num_levels=num_levels, codebook_size=codebook_size).fit(embeddings)

    codes = quantizer.encode(embeddings)

    expected = quantizer._quantizer.decode(quantizer._quantizer.compute_codes(embeddings))
    assert codes.max() == codebook_size - 1
    np.testing.assert_allclose(quantizer.decode(codes), expected, atol=1e-5)


def test_more_levels_reconstruct_better(embeddings):
    errors = []
    for num_levels in (1, 2, 4):
        quantizer = ResidualKMeans(num_levels=num_levels, codebook_size=16).fit(embeddings)
        errors.append(((quantizer.decode(quantizer.encode(embeddings)) - embeddings) ** 2).mean())

    assert errors[0] > errors[1] > errors[2]


def test_greedy_assignment_is_the_nearest_centroid_of_each_residual(embeddings):
    quantizer = ResidualKMeans(num_levels=2, codebook_size=8, beam_size=1).fit(embeddings)

    codes = quantizer.encode(embeddings)

    residuals = embeddings.copy()
    for level, centroids in enumerate(quantizer.codebooks):
        nearest = ((residuals[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
        np.testing.assert_array_equal(codes[:, level], nearest)
        residuals -= centroids[nearest]


def test_as_many_beams_as_centroids_find_the_best_of_all_tuples(embeddings):
    quantizer = ResidualKMeans(num_levels=2, codebook_size=8, beam_size=8).fit(embeddings)

    codes = quantizer.encode(embeddings)

    first, second = quantizer.codebooks
    tuples = (first[:, None] + second).reshape(64, 13)
    best = ((embeddings[:, None] - tuples) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(codes, np.column_stack(np.unravel_index(best, (8, 8))))


@pytest.mark.parametrize(("codebook_size", "num_levels"), [(2, 1), (2, 2), (4, 1)])
def test_more_beams_than_tuples_find_the_best_of_all_tuples(embeddings, codebook_size, num_levels):
    quantizer = ResidualKMeans(num_levels=num_levels, codebook_size=codebook_size, beam_size=5).fit(embeddings)

    codes = quantizer.encode(embeddings)

    tuples = np.indices((codebook_size,) * num_levels).reshape(num_levels, -1).T
    distances = ((embeddings[:, None] - quantizer.decode(tuples)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(codes, tuples[distances.argmin(axis=1)])


def test_fewer_rows_than_dimensions_are_enough(embeddings):
    wide = embeddings[:26].reshape(13, 26)

    quantizer = ResidualKMeans(num_levels=2, codebook_size=8).fit(wide)

    assert len(np.unique(quantizer.encode(wide), axis=0)) > 8
