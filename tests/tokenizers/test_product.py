"""Product quantization: faiss' codes, the rotation, reconstruction, saving, checks."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.tokenizers import product
from hf_genrec.tokenizers.collisions import group_by_codes, reassign_by_candidates, rematch_last_level
from hf_genrec.tokenizers.product import ProductQuantizer
from tests.invariants.quantizer import QuantizerInvariants


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    mixing = np.random.default_rng(6).normal(size=(12, 12))
    return (np.random.default_rng(7).normal(size=(301, 12)) @ mixing + 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def quantizer(embeddings) -> ProductQuantizer:
    return ProductQuantizer(num_levels=3, codebook_size=16).fit(embeddings)


def faiss_codes(
    kind: str, rows: np.ndarray, *, num_levels: int, num_bits: int, num_swaps: int = 500_000
) -> np.ndarray:
    """What an index with one inverted list stores, unpacked; `num_swaps` shortens its polysemous training."""
    index = faiss.index_factory(rows.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.downcast_index(faiss.extract_index_ivf(index))
    training = faiss.PolysemousTraining()
    training.n_iter = num_swaps
    inverted.polysemous_training = training
    index.train(rows)
    index.add(rows)
    size = inverted.invlists.code_size
    packed = faiss.rev_swig_ptr(inverted.invlists.get_codes(0), len(rows) * size).reshape(-1, size)
    return faiss.unpack_bitstrings(packed.copy(), num_levels, num_bits).astype(np.int64)


@pytest.fixture
def one_thread():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.mark.parametrize(("num_levels", "num_bits"), [(4, 8), (2, 9)])
@pytest.mark.parametrize("rotate", [True, False])
def test_codes_are_the_ones_faiss_assigns(one_thread, num_levels, num_bits, rotate):
    rows = np.random.default_rng(3).normal(loc=0.3, size=(523, 8)).astype(np.float32)

    codes = ProductQuantizer(num_levels=num_levels, codebook_size=2**num_bits, rotate=rotate).fit(rows).encode(rows)

    kind = f"OPQ{num_levels}," * rotate + f"IVF1,PQ{num_levels}x{num_bits}np"
    expected = faiss_codes(kind, rows, num_levels=num_levels, num_bits=num_bits)
    np.testing.assert_array_equal(codes, expected)
    assert codes.max() == 2**num_bits - 1


@pytest.mark.parametrize("num_bits", [8, 9])
@pytest.mark.parametrize("num_swaps", [500, pytest.param(500_000, marks=pytest.mark.slow)])
def test_polysemous_training_only_renames_the_codes_of_a_level(one_thread, num_bits, num_swaps):
    rows = np.random.default_rng(3).normal(size=(523, 4)).astype(np.float32)

    codes = ProductQuantizer(num_levels=2, codebook_size=2**num_bits).fit(rows).encode(rows)

    renamed = faiss_codes(f"OPQ2,IVF1,PQ2x{num_bits}", rows, num_levels=2, num_bits=num_bits, num_swaps=num_swaps)
    for level in range(2):
        pairs = np.unique(np.column_stack([codes[:, level], renamed[:, level]]), axis=0)
        assert len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) == 2**num_bits
    assert not np.array_equal(codes, renamed)


def test_each_code_is_the_nearest_centroid_of_its_own_subspace(embeddings, quantizer):
    codes = quantizer.encode(embeddings)

    pieces = (embeddings @ quantizer._rotation.T - quantizer._center).reshape(301, 3, 1, 4)
    nearest = ((pieces - quantizer._centroids) ** 2).sum(axis=3).argmin(axis=2)
    assert (codes.shape, codes.dtype) == ((301, 3), np.int64)
    np.testing.assert_array_equal(codes, nearest)


def test_rotation_is_orthonormal_and_loses_less_than_none(embeddings, quantizer):
    plain = ProductQuantizer(num_levels=3, codebook_size=16, rotate=False).fit(embeddings)

    errors = [((each.decode(each.encode(embeddings)) - embeddings) ** 2).mean() for each in (quantizer, plain)]

    np.testing.assert_allclose(quantizer._rotation @ quantizer._rotation.T, np.eye(12), atol=1e-5)
    np.testing.assert_array_equal(plain._rotation, np.eye(12, dtype=np.float32))
    assert errors[0] < 0.9 * errors[1]


@given(codes=st.lists(st.tuples(*[st.integers(0, 15)] * 3), min_size=1, max_size=7))
def test_sum_of_centroids_is_the_approximate_embedding(quantizer, codes):
    codes = np.array(codes)

    pieces = quantizer._centroids[np.arange(3), codes].reshape(len(codes), 12)  # of the rotated embedding

    assert quantizer.codebooks.shape == (3, 16, 12)
    expected = (pieces + quantizer._center) @ quantizer._rotation
    np.testing.assert_allclose(quantizer.decode(codes), expected, atol=1e-4)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_decoded_codes_are_encoded_as_themselves(quantizer, seed):
    codes = np.random.default_rng(seed).integers(16, size=(5, 3))

    np.testing.assert_array_equal(quantizer.encode(quantizer.decode(codes)), codes)


@pytest.mark.parametrize("resolve", [reassign_by_candidates, rematch_last_level])
def test_short_ids_take_the_collision_policies(embeddings, resolve):
    quantizer = ProductQuantizer(num_levels=2, codebook_size=32).fit(embeddings)
    codes = quantizer.encode(embeddings)

    resolved = resolve(codes, embeddings=embeddings, codebooks=quantizer.codebooks)

    assert len(group_by_codes(codes)[1]) < 301
    assert len(group_by_codes(resolved)[1]) == 301


def test_item_that_must_move_goes_to_the_nearest_free_tuple():
    quantizer = ProductQuantizer(num_levels=2, codebook_size=4).fit(np.random.default_rng(5).normal(size=(97, 2)))
    taken = np.array([[1, 2]])
    item = quantizer.decode(taken) + np.array([[0.03, -0.02]])
    codes = np.repeat(taken, 2, axis=0)

    moved = reassign_by_candidates(
        codes,
        embeddings=np.concatenate([quantizer.decode(taken), item]),
        codebooks=quantizer.codebooks,
        num_candidates=4,
    )

    tuples = np.array([(first, second) for first in range(4) for second in range(4)])
    errors = ((quantizer.decode(tuples) - item) ** 2).sum(axis=1)
    np.testing.assert_array_equal(moved, [[1, 2], tuples[errors.argsort()[1]]])


@pytest.mark.parametrize("rotate", [True, False])
def test_seed_changes_the_codebooks(embeddings, rotate):
    first, second = (
        ProductQuantizer(num_levels=3, codebook_size=16, seed=seed, rotate=rotate).fit(embeddings) for seed in (1, 2)
    )

    assert not np.array_equal(first._centroids, second._centroids)
    assert np.array_equal(first._rotation, second._rotation) != rotate


@pytest.mark.parametrize(("num_columns", "sizes"), [(15, "14 or 21"), (20, "14 or 21"), (5, "7")])
def test_columns_that_cannot_be_cut_are_an_error_that_names_the_nearest_sizes(num_columns, sizes):
    with pytest.raises(ValueError, match=f"7 does not divide {num_columns}. Whiten to {sizes} components"):
        ProductQuantizer(num_levels=7, codebook_size=2).fit(np.zeros((3, num_columns)))


def test_long_training_shows_its_progress(embeddings, capfd, monkeypatch):
    monkeypatch.setattr(product, "PROGRESS_DELAY", 0)

    ProductQuantizer(num_levels=3, codebook_size=4).fit(embeddings)
    shown = capfd.readouterr().err
    ProductQuantizer(num_levels=3, codebook_size=4).fit(embeddings, show_progress=False)

    assert "51/51" in shown
    assert "WARNING" not in shown
    assert capfd.readouterr().err == ""


class TestProductQuantizer(QuantizerInvariants):
    QUANTIZER = ProductQuantizer
    OTHER_SIZE = "num_levels"


class TestProductQuantizerWithoutARotation(QuantizerInvariants):
    QUANTIZER = ProductQuantizer
    ARGUMENTS = {"rotate": False}
    OTHER_SIZE = "codebook_size"


def test_with_few_codes_the_rotation_suits_them_and_loses_no_more_than_that_of_faiss(one_thread):
    rows = np.random.default_rng(3).normal(size=(523, 8)) @ np.random.default_rng(4).normal(size=(8, 8))
    rows = rows.astype(np.float32)
    quantizer = ProductQuantizer(num_levels=2, codebook_size=16).fit(rows)

    faiss_rotation = faiss.OPQMatrix(8, 2, 8)
    faiss_rotation.train(rows)
    rotated = faiss_rotation.apply(rows)
    other = ProductQuantizer(num_levels=2, codebook_size=16, rotate=False).fit(rotated)

    own = quantizer.relative_errors(rows, quantizer.encode(rows))[-1]
    assert own <= other.relative_errors(rotated, other.encode(rotated))[-1]
