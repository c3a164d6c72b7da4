"""The experiment on cold items: each way lists what it says, and settings are chosen by what warm targets lose."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

import cold_start
from benchmark_live_catalog import saved_shop
from hf_genrec import Recommender
from invariants.model import make_sasrec


def test_a_quota_gives_the_last_places_of_a_list_to_new_items():
    asked = {"nothing": [list("abcdefghij")], "restricted": [list("xyz")]}

    assert cold_start.by_quota(asked, 2) == [[*"abcdefgh", "x", "y"]]


def test_the_dense_head_ranks_generated_and_cold_items_with_an_offset_for_the_cold_ones():
    asked = {"scores": np.array([[0.0, -1.0, -2.0, -9.0]]), "item_ids": list("abxy"), "cold": list("xy")}
    asked["generated"] = [["b", "a"]]

    assert cold_start.by_dense(asked, 0.0) == [list("abxy")]
    assert cold_start.by_dense(asked, 1.5) == [list("axby")]


def test_the_best_setting_keeps_enough_of_the_warm_figure():
    found = {
        setting: {"cold": {"recall@10": setting / 10, "ndcg@10": 0.0}, "warm": {"ndcg@10": 1 - setting / 10}}
        for setting in range(5)
    }

    assert cold_start.best_of(found, 0.75) == 2
    assert cold_start.best_of(found, 2.0) == 0


@pytest.mark.parametrize("name", ["PSID, two heads", "SASRec"])
def test_all_ways_are_measured_on_both_splits_with_items_that_were_added_again(tmp_path, monkeypatch, name):
    vectors = np.random.default_rng(2).normal(size=(23, 8)).astype(np.float32)
    if name == "SASRec":
        model = make_sasrec(num_items=23)
        items = pa.table({"item_id": [f"i{row}" for row in range(23)], "title": ["a thing"] * 23})
        Recommender(model, items).save_pretrained(tmp_path / "run")
    else:
        saved_shop(name, tmp_path / "run", vectors, codebook_size=8)
    rows = {"history": [["i1", "i2"], ["i4"], ["i3", "i5"], ["i6"]], "target": ["i3", "i5", "i7", "i1"]}
    metadata = {"cold_items": {"newest_by": "time"}}
    data = SimpleNamespace(cold_item_ids=["i3", "i7"], split=lambda name: rows, metadata=metadata)
    monkeypatch.setattr(cold_start.PreparedDataset, "load", lambda folder: data)
    monkeypatch.setattr(cold_start, "read_embeddings", lambda path, prepared: (vectors, {}))
    output = tmp_path / "record.json"
    output.write_text('{"other": 1}', encoding="utf-8")

    cold_start.main([str(tmp_path / "run"), "data", "embeddings", "--name", "Shop", "--output", str(output)])

    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["other"] == 1
    test = record["Shop"]["test"]
    assert test["num_users"] == {"cold": 2, "warm": 2}
    assert test["nothing"]["cold"]["recall@10"] == 0
    assert test["restricted"]["cold"]["recall@10"] == 1  # there are two of them
    assert test["restricted"]["cold"]["recall@10 less"] == -1
    dense = {"dense"} if name != "SASRec" else set()
    assert set(test) == {"nothing", "id only", "restricted", "quota", "margin", "num_users"} | dense
