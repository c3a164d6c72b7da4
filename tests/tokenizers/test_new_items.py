"""Items that come after tokenization: the frozen quantizer gives them ids that are free, and moves no other."""

import itertools

import numpy as np
import pytest

from hf_genrec.tokenizers.behavior import fuse_vectors
from hf_genrec.tokenizers.collisions import append_code, nearest_free
from hf_genrec.tokenizers.folder import QUANTIZER_NAME, embed_items, load_tokenized, tokenize_items
from hf_genrec.tokenizers.fusion import Fusion
from hf_genrec.tokenizers.new_items import ItemCoder


RNG = np.random.default_rng(5)


def test_numbers_of_a_group_go_on_behind_the_largest_also_of_removed_items():
    taken = np.array([[1, 1, 0], [1, 1, 2], [0, 3, 0]])

    assert append_code(np.array([[1, 1], [2, 2], [1, 1], [0, 3]]), taken=taken)[:, -1].tolist() == [3, 0, 4, 1]


def test_a_new_item_keeps_a_free_tuple_and_else_gets_the_nearest_free_one_of_all():
    codebooks = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    vectors = RNG.normal(size=(5, 3)).astype(np.float32)
    tuples = np.array(list(itertools.product(range(4), repeat=2)))
    sums = codebooks[0][tuples[:, 0]] + codebooks[1][tuples[:, 1]]
    taken, expected = tuples[[0, 5, 6, 9]], []
    free = set(map(tuple, tuples)) - set(map(tuple, taken))
    codes = np.array([[0, 0], [1, 1], [3, 3], [1, 2], [1, 2]])
    for vector, own in zip(vectors, map(tuple, codes), strict=True):
        order = ((sums - vector) ** 2).sum(axis=1).argsort()
        expected.append(own if own in free else next(each for each in map(tuple, tuples[order]) if each in free))
        free.remove(expected[-1])

    found = nearest_free(codes, taken=taken, embeddings=vectors, codebooks=codebooks, num_candidates=4)

    assert list(map(tuple, found.tolist())) == [tuple(map(int, each)) for each in expected]


def test_a_fusion_says_of_a_later_text_what_it_says_of_the_text_of_a_cold_item(tmp_path):
    text, behavior = RNG.normal(size=(31, 9)), RNG.normal(size=(31, 4))
    behavior[[3, 7]] = 0
    fused = fuse_vectors(text, behavior, weight=0.6, num_components=5)
    fusion = Fusion.fit(text, behavior, weight=0.6, num_components=5)
    fusion.save(tmp_path / "fusion.safetensors")

    found = Fusion.read(tmp_path / "fusion.safetensors").transform(text[[7, 3]])

    np.testing.assert_allclose(found, fused[[7, 3]], atol=1e-6)


@pytest.fixture
def tokenized(make_prepared, tmp_path):
    """A tokenized folder whose vectors hold texts and behaviour, and the vectors of the texts."""
    sequences = {f"u{user}": [f"i{(user * step) % 23:02d}" for step in range(1, 6)] for user in range(1, 23)}
    prepared = make_prepared(sequences)
    texts = np.random.default_rng(1).normal(size=(len(prepared.item_ids), 7)).astype(np.float32)
    np.save(tmp_path / "texts.npy", texts)
    embed_items(prepared, tmp_path / "both", matrix=tmp_path / "texts.npy", behavior="svd")
    tokenize_items(prepared, tmp_path / "both", tmp_path / "ids", codebook_size=4)
    return tmp_path / "ids", texts


def test_a_tokenized_folder_places_later_items_by_their_texts_alone(tokenized):
    folder, texts = tokenized
    ids, record = load_tokenized(folder)
    coder = ItemCoder.load(folder / QUANTIZER_NAME)

    fused = coder.fused(texts[:6])
    codes = coder.assign(fused, taken=ids.codes, codebook_size=4)

    assert (coder.policy(ids.codes), fused.shape[1]) == ("widen", coder.dim)
    assert len(set(map(tuple, np.vstack([ids.codes, codes]).tolist()))) == ids.num_items + 6
    assert np.linalg.norm(coder.projected(fused), axis=1) == pytest.approx(np.ones(6), abs=0.05)
    np.testing.assert_array_equal(coder.fused(fused), fused)  # whole vectors are taken as they are
    with pytest.raises(ValueError, match="columns, got 5"):
        coder.fused(texts[:, :5])
    with pytest.raises(ValueError, match="give `vectors`"):
        coder.embed(["a text"])


def test_an_older_folder_with_behaviour_in_its_vectors_says_what_is_missing(tokenized):
    folder, texts = tokenized
    (folder / QUANTIZER_NAME / "fusion.safetensors").unlink()
    (folder / QUANTIZER_NAME / "choice.json").unlink()
    coder = ItemCoder.load(folder / QUANTIZER_NAME)

    assert coder.policy(load_tokenized(folder)[0].codes) == "widen"
    with pytest.raises(ValueError, match="tokenize"):
        coder.fused(texts[:2])
    with pytest.raises(ValueError, match="tokenize"):
        coder.projected(texts[:2])
