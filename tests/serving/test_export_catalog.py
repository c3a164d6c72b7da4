"""The catalog in the formats of other engines, read back as these engines read it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_genrec import Recommender
from hf_genrec.serving.export.catalog import CATALOG_FORMATS, export_catalog, static_index
from invariants.model import CODEBOOK_SIZE
from saved_folders import ITEM_IDS, make_folder


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    return Recommender.from_pretrained(make_folder(tmp_path_factory.mktemp("export") / "run", "rpg"), device="cpu")


@pytest.fixture(scope="module")
def codes(recommender):
    return recommender.model.item_codes.tolist()


def walk(index, num_levels):
    """Every semantic ID that STATIC's matrix holds."""
    ends = []

    def follow(state, prefix):
        for code, child in index["packed_csr"][index["indptr"][state] : index["indptr"][state + 1]].tolist():
            if len(prefix) + 1 == num_levels:
                assert child == 0
                ends.append([*prefix, code])
            else:
                follow(child, [*prefix, code])

    for code in np.flatnonzero(index["start_mask"]).tolist():
        follow(code + 1, [code])
    return ends


def test_flashrec_reads_the_semantic_ids(recommender, codes, tmp_path):
    keys = json.loads(export_catalog(recommender, tmp_path / "ids.json", format="flashrec").read_text())

    assert sorted([int(code) for code in key.split(",")] for key in keys) == sorted(map(list, set(map(tuple, codes))))
    assert set(keys.values()) == {1}


def test_nvidia_reads_items_with_tokens_of_the_checkpoint(recommender, tmp_path):
    path = export_catalog(recommender, tmp_path / "items.jsonl", format="nvidia")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    assert [line["item_id"] for line in lines] == ITEM_IDS
    config = recommender.model.config
    rows = [config.first_item_token + row for row in range(len(ITEM_IDS))]
    wanted = recommender.model.semantic_id_tokens(recommender.model.item_codes.new_tensor(rows, dtype=int)).tolist()
    assert [line["token_ids"] for line in lines] == wanted
    assert lines[3]["metadata"] == {"title": "T3"}


def test_tzrec_reads_both_directions_and_the_manifest(recommender, codes, tmp_path):
    export_catalog(recommender, tmp_path / "bundle", format="tzrec")

    (generation,) = (tmp_path / "bundle").iterdir()
    manifest = json.loads((generation / "manifest.json").read_text())
    items = pq.read_table(generation / "item_to_sid" / "part-0.parquet").to_pydict()
    buckets = pq.read_table(generation / "sid_to_items" / "part-0.parquet").to_pydict()
    assert manifest["bundle_uuid"] == generation.name
    assert manifest["codebook"] == [CODEBOOK_SIZE] * 4
    assert manifest["artifacts"]["sid_to_items"]["rows"] == len(buckets["codebook"])
    assert manifest["max_observed_items_per_sid"] == max(map(len, buckets["itemids"]))
    assert (items["item_id"], items["codebook"]) == (ITEM_IDS, codes)
    shifts = [level * CODEBOOK_SIZE for level in range(4)]
    assert items["offset_codebook"][5] == [code + shift for code, shift in zip(codes[5], shifts, strict=True)]
    found = dict(zip(map(tuple, buckets["codebook"]), buckets["itemids"], strict=True))
    assert all(item_id in found[tuple(row)] for item_id, row in zip(ITEM_IDS, codes, strict=True))


def test_static_reads_exactly_the_semantic_ids(recommender, codes, tmp_path):
    with np.load(export_catalog(recommender, tmp_path / "trie.npz", format="static")) as file:
        index = dict(file)

    distinct = sorted(map(list, set(map(tuple, codes))))
    assert walk(index, 4) == distinct
    assert index["layer_max_branches"][0] == len({row[0] for row in codes})
    assert sorted(np.argwhere(index["dense_mask"]).tolist()) == sorted(map(list, {(row[0], row[1]) for row in codes}))


@pytest.mark.parametrize("num_levels", [2, 3, 5])
def test_static_index_of_random_codes_with_shared_ids(num_levels):
    codes = np.random.default_rng(num_levels).integers(0, 7, (113, num_levels))

    index = static_index(codes, codebook_size=7)

    assert walk(index, num_levels) == np.unique(codes, axis=0).tolist()
    assert index["packed_csr"][-7:].tolist() == [[7, 0]] * 7


def test_model_without_semantic_ids_and_unknown_formats_are_refused(recommender, tmp_path):
    sasrec = Recommender.from_pretrained(make_folder(tmp_path / "run", "sasrec"), device="cpu")

    with pytest.raises(ValueError, match="has no semantic IDs"):
        export_catalog(sasrec, tmp_path / "x", format=CATALOG_FORMATS[0])
    with pytest.raises(ValueError, match="one of flashrec, nvidia, tzrec, static, got 'csv'"):
        export_catalog(recommender, tmp_path / "x", format="csv")
