"""Random codes, and opening the folder of any quantizer."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_genrec.tokenizers.base import Quantizer
from hf_genrec.tokenizers.product import ProductQuantizer
from hf_genrec.tokenizers.random_codes import RandomCodes
from hf_genrec.tokenizers.residual_kmeans import ResidualKMeans


EMBEDDINGS = np.random.default_rng(7).normal(size=(1009, 5)).astype(np.float32)


def test_all_codes_of_all_levels_are_about_equally_frequent_and_independent():
    codes = RandomCodes(num_levels=3, codebook_size=4).fit(EMBEDDINGS).encode(EMBEDDINGS)

    counts = [np.bincount(level, minlength=4) for level in codes.T]
    pairs = np.bincount(4 * codes[:, 0] + codes[:, 1], minlength=16)
    assert (codes.shape, codes.dtype) == ((1009, 3), np.int64)
    assert np.abs(np.array(counts) - 1009 / 4).max() < 5 * np.sqrt(1009 * 3 / 16)
    assert np.abs(pairs - 1009 / 16).max() < 5 * np.sqrt(1009 * 15 / 256)


def test_codes_are_the_same_on_every_machine():
    rows = np.array([[0.5, -2.0], [0.5, 2.0], [-0.0, 3.0], [0.0, 3.0]])

    codes = RandomCodes(num_levels=3, codebook_size=512, seed=5).fit(rows).encode(rows)

    assert codes.tolist() == [[492, 404, 62], [306, 251, 121], [106, 420, 102], [106, 420, 102]]


@given(order=st.permutations(range(11)), cut=st.integers(0, 11))
def test_codes_belong_to_the_item_wherever_it_stands(order, cut):
    quantizer = RandomCodes(num_levels=4, codebook_size=64).fit(EMBEDDINGS)
    rows = EMBEDDINGS[order]

    codes = np.concatenate([quantizer.encode(rows[:cut]), quantizer.encode(rows[cut:])])

    np.testing.assert_array_equal(codes, quantizer.encode(EMBEDDINGS[:11])[order])


def test_seed_changes_all_levels():
    first, second = (RandomCodes(num_levels=3, seed=seed).fit(EMBEDDINGS).encode(EMBEDDINGS) for seed in (1, 2))

    assert ((first == second).mean(axis=0) < 0.02).all()


@pytest.mark.parametrize("codebook_size", [2, 2**15])
def test_smallest_and_largest_codebook(codebook_size):
    codes = RandomCodes(num_levels=2, codebook_size=codebook_size).fit(EMBEDDINGS).encode(EMBEDDINGS)

    assert codes.min() >= 0
    assert 0.99 * codebook_size <= codes.max() + 1 <= codebook_size


@pytest.mark.parametrize(
    "quantizer",
    [
        RandomCodes(num_levels=3, codebook_size=8, seed=5),
        ProductQuantizer(num_levels=5, codebook_size=8),
        ResidualKMeans(num_levels=2, codebook_size=8),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_folder_of_any_quantizer_loads_as_what_it_is(tmp_path, quantizer):
    quantizer.fit(EMBEDDINGS[:101]).save(tmp_path)

    loaded = Quantizer.load(tmp_path)

    assert type(loaded) is type(quantizer)
    np.testing.assert_array_equal(loaded.encode(EMBEDDINGS), quantizer.encode(EMBEDDINGS))


def test_unknown_type_other_type_and_no_folder_are_errors(tmp_path):
    RandomCodes().fit(EMBEDDINGS).save(tmp_path)
    with pytest.raises(ValueError, match="'random'; ProductQuantizer.load opens product"):
        ProductQuantizer.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"quantizer_type": "vq"}), encoding="utf-8")

    with pytest.raises(ValueError, match="'vq'; Quantizer.load opens residual_kmeans, rqvae, .*random"):
        Quantizer.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Quantizer.load(tmp_path / "nowhere")


def test_wrong_arguments_width_and_unfitted_use_are_errors():
    with pytest.raises(ValueError, match="num_levels"):
        RandomCodes(num_levels=0)
    with pytest.raises(ValueError, match="seed"):
        RandomCodes(seed=-1)
    with pytest.raises(ValueError, match="5 columns, got 4"):
        RandomCodes().fit(EMBEDDINGS).encode(EMBEDDINGS[:, :4])
    with pytest.raises(ValueError, match="not fitted"):
        RandomCodes().encode(EMBEDDINGS)
