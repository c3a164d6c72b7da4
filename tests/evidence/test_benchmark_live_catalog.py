"""The benchmark of changing catalogs runs, and finds what differs from a rebuild."""

import json

import pytest

import benchmark_live_catalog
from live_shops import rebuilt, shop_of


def test_a_quick_run_writes_its_record(tmp_path):
    benchmark_live_catalog.main(["--quick", "--output", str(tmp_path / "record.json")])

    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert [entry["model"] for entry in record["additions"]] == list(benchmark_live_catalog.MODELS)
    assert all(0 < entry["seconds_to_add"] < 5 for entry in record["additions"])
    assert [entry["model"] for entry in record["steps"]] == list(benchmark_live_catalog.WALKS)
    assert record["graph"]["seconds"] > 0


def test_another_catalog_is_no_rebuild():
    shop = shop_of("rpg")
    anew = rebuilt(shop)
    shop.catalog.remove(["i3"])

    with pytest.raises(RuntimeError, match="masks"):
        benchmark_live_catalog.check_tries(shop, anew)
    with pytest.raises(RuntimeError, match="lists"):
        benchmark_live_catalog.check_lists(shop, anew, set(shop.item_ids) - {"i3"})
