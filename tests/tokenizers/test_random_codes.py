"""Random codes, and opening the folder of any quantizer."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_genrec.tokenizers.base import Quantizer
from hf_genrec.tokenizers.product import ProductQuantizer
from hf_genrec.tokenizers.random_codes import RandomCodes
from tests.invariants.quantizer import QuantizerInvariants


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


class TestRandomCodes(QuantizerInvariants):
    QUANTIZER = RandomCodes
    FILES = ["config.json"]
    WRONG = {"seed": -1}
    LEAST_ROWS = 0


def test_types_that_exist_are_listed_and_no_folder_is_an_error(tmp_path):
    RandomCodes().fit(EMBEDDINGS).save(tmp_path)
    with pytest.raises(ValueError, match="'random'; ProductQuantizer.load opens product"):
        ProductQuantizer.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"quantizer_type": "vq"}), encoding="utf-8")

    with pytest.raises(ValueError, match="Quantizer.load opens residual_kmeans, rqvae, .*random"):
        Quantizer.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Quantizer.load(tmp_path / "nowhere")


def test_quantizer_of_another_package_is_named_saved_and_loaded_like_ours(tmp_path):
    class Halves(Quantizer):
        """Of each column whether it is above 0."""

        quantizer_type = "halves"
        names = {"halves": {}}
        has_codebooks = False

        def __init__(self, *, num_levels=5, codebook_size=2, seed=0):
            super().__init__(num_levels=num_levels, codebook_size=codebook_size, seed=seed)

        def _fit(self, rows, *, show_progress):
            pass

        def _encode(self, rows):
            return (rows > 0)[:, : self.num_levels]

    quantizer = Quantizer.named("halves", num_items=9, codebook_size=2).fit(EMBEDDINGS)
    quantizer.save(tmp_path)

    loaded = Quantizer.load(tmp_path)
    assert type(loaded) is Halves
    np.testing.assert_array_equal(loaded.encode(EMBEDDINGS), EMBEDDINGS > 0)
