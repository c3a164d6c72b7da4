"""Large tables of vectors: the same codes in blocks, from a file and from a sample as at once."""

import numpy as np
import pytest

from hf_genrec.tokenizers import row_tables
from hf_genrec.tokenizers.embeddings import Whitening, load_matrix
from hf_genrec.tokenizers.product import ProductQuantizer
from hf_genrec.tokenizers.residual_kmeans import ResidualKMeans
from hf_genrec.tokenizers.rqvae import RQVAE
from hf_genrec.tokenizers.semantic_ids import SemanticIds


VECTORS = np.random.default_rng(3).normal(size=(301, 6)).astype(np.float32)
NAMES = [f"item {number}" for number in range(len(VECTORS))]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(row_tables, "BLOCK_ROWS", 7)
    monkeypatch.setattr(row_tables.blocks, "__defaults__", (7,))


def test_lazy_rows_are_computed_when_they_are_taken():
    lazy = row_tables.LazyRows(VECTORS, lambda rows: rows[:, :2] * 3, dim=2, rows=np.array([5, 2, 9]))

    assert lazy.shape == (3, 2)
    np.testing.assert_array_equal(lazy[1:], VECTORS[[2, 9], :2] * 3)
    np.testing.assert_array_equal(lazy[np.array([2, 0])], VECTORS[[9, 5], :2] * 3)


@pytest.mark.parametrize("policy", ["widen", "append", "rematch"])
def test_ids_of_a_table_in_blocks_are_those_of_the_whole(tmp_path, small_blocks, policy):
    np.save(tmp_path / "vectors.npy", VECTORS)
    quantizer = ResidualKMeans(num_levels=3, codebook_size=16).fit(VECTORS)
    whole = SemanticIds.from_codes(
        NAMES,
        quantizer.encode(VECTORS),
        codebook_size=16,
        policy=policy,
        embeddings=VECTORS,
        codebooks=quantizer.codebooks,
    )

    table = row_tables.mapped(load_matrix(tmp_path / "vectors.npy", num_items=301), lambda rows: rows, dim=6)
    ids = SemanticIds.from_quantizer(quantizer, table, NAMES, policy=policy)

    assert isinstance(table, row_tables.LazyRows)
    assert len(np.unique(whole.codes_before, axis=0)) < 301
    np.testing.assert_array_equal(ids.codes, whole.codes)
    errors = [quantizer.relative_errors(rows, ids.codes_before) for rows in (VECTORS, table)]
    np.testing.assert_allclose(*errors, rtol=1e-6)


def test_whitening_in_blocks_is_that_of_the_whole(small_blocks, monkeypatch):
    fitted = Whitening.fit(VECTORS, num_components=4, fit_on=np.arange(2, 90))
    monkeypatch.setattr(row_tables.blocks, "__defaults__", (1000,))
    whole = Whitening.fit(VECTORS, num_components=4, fit_on=np.arange(2, 90))

    np.testing.assert_allclose(fitted.components, whole.components, atol=1e-6)
    np.testing.assert_allclose(fitted.transform(VECTORS), whole.transform(VECTORS), atol=1e-5)


def test_kmeans_learn_from_256_rows_for_each_code_and_an_rqvae_from_all():
    kmeans, product = ResidualKMeans(codebook_size=2), ProductQuantizer(num_levels=2, codebook_size=2)

    rows = kmeans.rows_to_learn(600)
    assert len(rows) == len(product.rows_to_learn(600)) == 512
    assert (np.diff(rows) > 0).all()
    assert rows[-1] < 600
    np.testing.assert_array_equal(kmeans.rows_to_learn(512), np.arange(512))
    assert len(kmeans.rows_to_learn(600, most=9)) == 9
    assert len(RQVAE(codebook_size=2).rows_to_learn(600)) == 600


def test_a_sample_is_what_fit_learns_from():
    rows = np.random.default_rng(0).normal(size=(700, 3)).astype(np.float32)
    quantizer = ResidualKMeans(num_levels=2, codebook_size=2)

    codebooks = quantizer.fit(rows).codebooks
    again = ResidualKMeans(num_levels=2, codebook_size=2).fit(rows[quantizer.rows_to_learn(700)]).codebooks

    np.testing.assert_array_equal(codebooks, again)
