"""Folders that version 0.1.0 wrote, before the package had rooms, still load and give the same items and codes."""

import json
import zipfile

import numpy as np
import pytest
from transformers import AutoModel

from hf_genrec import PreparedDataset, Recommender
from hf_genrec.tokenizers.base import Quantizer
from hf_genrec.tokenizers.folder import load_tokenized, read_embeddings


HISTORIES = [["item-03", "item-04"], [], ["item-30", "item-00", "item-01"]]


@pytest.fixture(scope="module")
def older(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp("older")
    zipfile.ZipFile(repository / "tests" / "fixtures" / "version_0_1_0.zip").extractall(folder)
    return folder / "version_0_1_0"


@pytest.fixture(scope="module")
def expected(older):
    return json.loads((older / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["latte", "rpg", "acerec", "sasrec"])
def test_run_recommends_the_same_items(older, expected, name):
    recommendations = Recommender.from_pretrained(older / name, device="cpu").recommend(
        HISTORIES, top_k=5, exclude_seen=False
    )

    assert recommendations.item_ids == expected[name]["item_ids"]
    np.testing.assert_allclose(recommendations.scores, expected[name]["scores"], rtol=1e-4)


@pytest.mark.parametrize("name", ["latte", "rpg", "acerec", "sasrec"])
def test_published_code_beside_the_weights_still_runs(older, expected, name):
    model = AutoModel.from_pretrained(older / name, trust_remote_code=True).eval()
    first = model.config.first_item_token

    tokens = model.recommend(np_tokens(HISTORIES[2], first), top_k=5).item_tokens[0]

    assert [f"item-{token - first:02d}" for token in tokens.tolist()] == expected[name]["item_ids"][2]


@pytest.mark.parametrize("name", ["ids", "long_ids", "rqvae_ids", "tree_ids", "random_ids"])
def test_quantizer_gives_the_same_codes(older, expected, name):
    quantizer = Quantizer.load(older / name / "quantizer")

    assert quantizer.encode(np.load(older / "raw_vectors.npy")).tolist() == expected[name]


def test_prepared_data_vectors_and_ids_load(older):
    data = PreparedDataset.load(older / "data")
    ids, _ = load_tokenized(older / "ids")

    assert list(ids.item_ids) == list(data.item_ids)
    assert read_embeddings(older / "vectors", data)[0].shape == (31, 8)


def np_tokens(items, first):
    import torch

    return torch.tensor([[int(item.removeprefix("item-")) + first for item in items]])
