"""The experiment on cold items: each way lists what it says, and settings are chosen by what warm targets lose."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import cold_start
from live_shops import shop_of


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
        setting: {"cold": {"recall@10": setting / 10}, "warm": {"ndcg@10": 1 - setting / 10}} for setting in range(5)
    }

    assert cold_start.best_of(found, 0.75) == 2
    assert cold_start.best_of(found, 2.0) == 0


@pytest.mark.filterwarnings("ignore")
def test_all_ways_are_measured_on_both_splits(tmp_path, monkeypatch):
    shop, cold = shop_of("two heads"), ["i3", "i7"]
    rows = {"history": [["i1", "i2"], ["i4"], ["i3", "i5"], ["i6"]], "target": ["i3", "i5", "i7", "i1"]}
    data = SimpleNamespace(cold_item_ids=cold, split=lambda name: rows)
    monkeypatch.setattr(cold_start.PreparedDataset, "load", lambda folder: data)
    monkeypatch.setattr(cold_start.Recommender, "from_pretrained", lambda folder, device: shop)

    cold_start.main(["run", "data", "--output", str(tmp_path / "record.json")])

    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    test = record["test"]
    assert test["num_users"] == {"cold": 2, "warm": 2}
    assert test["nothing"]["cold"]["recall@10"] == 0
    assert test["restricted"]["cold"]["recall@10"] == 1  # there are two of them
    assert set(test) == {"nothing", "id only", "restricted", "dense", "quota", "num_users"}
    assert not shop.model.item_table.rows.weight[[3, 7]].any()
