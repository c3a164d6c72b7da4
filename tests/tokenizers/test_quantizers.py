"""Residual k-means: codes, reconstruction, saving, checks."""

import json

import faiss
import numpy as np
import pytest

from hf_genrec.tokenizers.residual_kmeans import ResidualKMeans


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(301, 13)).astype(np.float32)


@pytest.fixture(scope="module")
def quantizer(embeddings) -> ResidualKMeans:
    return ResidualKMeans(num_levels=3, codebook_size=16).fit(embeddings)


def test_shapes_and_ranges(embeddings, quantizer):
    codes = quantizer.encode(embeddings)

    assert codes.shape == (301, 3)
    assert codes.dtype == np.int64
    assert codes.min() >= 0
    assert codes.max() <= 15
    assert quantizer.codebooks.shape == (3, 16, 13)
    assert quantizer.codebooks.dtype == np.float32


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


@pytest.mark.parametrize("batch_size", [1, 7, 29])
def test_codes_do_not_depend_on_the_batch(embeddings, quantizer, batch_size):
    batches = [quantizer.encode(embeddings[i : i + batch_size]) for i in range(0, 31, batch_size)]

    np.testing.assert_array_equal(np.concatenate(batches)[:31], quantizer.encode(embeddings)[:31])


def test_codebooks_do_not_depend_on_the_number_of_threads_and_it_is_restored(embeddings, quantizer):
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        again = ResidualKMeans(num_levels=3, codebook_size=16).fit(embeddings)
        num_threads = faiss.omp_get_max_threads()
    finally:
        faiss.omp_set_num_threads(before)

    np.testing.assert_array_equal(again.codebooks, quantizer.codebooks)
    assert num_threads == 3


def test_seed_changes_the_codebooks(embeddings, quantizer):
    other = ResidualKMeans(num_levels=3, codebook_size=16, seed=5).fit(embeddings)

    assert not np.array_equal(other.codebooks, quantizer.codebooks)


def test_saved_quantizer_assigns_the_same_codes_to_new_items(tmp_path, quantizer):
    new_items = np.random.default_rng(8).normal(size=(57, 13)).astype(np.float32)

    quantizer.save(tmp_path / "quantizer")
    loaded = ResidualKMeans.load(tmp_path / "quantizer")

    assert sorted(path.name for path in (tmp_path / "quantizer").iterdir()) == ["config.json", "quantizer.safetensors"]
    np.testing.assert_array_equal(loaded.codebooks, quantizer.codebooks)
    np.testing.assert_array_equal(loaded.encode(new_items), quantizer.encode(new_items))
    assert (loaded.num_levels, loaded.codebook_size, loaded.seed, loaded.beam_size) == (3, 16, 1234, 5)


@pytest.mark.parametrize(("key", "value", "message"), [("num_levels", 2, "shape"), ("quantizer_type", "opq", "'opq'")])
def test_folder_that_does_not_fit_its_config_is_refused(tmp_path, quantizer, key, value, message):
    quantizer.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}), encoding="utf-8")

    with pytest.raises(ValueError, match=message):
        ResidualKMeans.load(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [{"num_levels": 0}, {"codebook_size": 1}, {"codebook_size": 100}, {"codebook_size": 65536}, {"beam_size": 0}],
)
def test_arguments_out_of_range_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ResidualKMeans(**arguments)


def test_fewer_rows_than_centroids_is_an_error():
    with pytest.raises(ValueError, match="15 rows, fewer than the 16 centroids"):
        ResidualKMeans(codebook_size=16).fit(np.ones((15, 3)))


def test_nan_wrong_width_and_unfitted_use_are_errors(embeddings, quantizer):
    broken = embeddings.copy()
    broken[[4, 9], 2] = np.nan

    with pytest.raises(ValueError, match=r"2 rows, first at rows \[4, 9\]"):
        ResidualKMeans(codebook_size=16).fit(broken)
    with pytest.raises(ValueError, match="13 columns, got 12"):
        quantizer.encode(embeddings[:, :12])
    with pytest.raises(ValueError, match="not fitted"):
        ResidualKMeans().encode(embeddings)
    with pytest.raises(ValueError, match="between 0 and 15"):
        quantizer.decode(np.array([[0, 16, 0]]))
    with pytest.raises(ValueError, match="shape"):
        quantizer.decode(np.array([[0, 1, 2, 3]]))
