"""The benchmark of lists on one thread on a tiny run, and its section of the page."""

import json
import sys

import numpy as np
import torch

from hf_genrec import SemanticIds, save_recommender
from invariants.model import NUM_ITEMS, make_model, random_codes, tiny_config
from one_thread_results import one_thread_blocks


def test_lists_of_a_tiny_run_are_timed_and_stand_on_the_page(make_prepared, tmp_path, load_script, monkeypatch):
    item_ids = [f"item-{number:02}" for number in range(NUM_ITEMS)]
    random = np.random.default_rng(0)
    users = {f"user-{user}": [item_ids[item] for item in random.permutation(NUM_ITEMS)[:7]] for user in range(5)}
    prepared = make_prepared(users | {"user-of-all": item_ids})
    shape = {"history_attention": "causal", "history_unit": "item", "normalization": "catalog"}
    model = make_model(tiny_config(max_history_length=5, **shape))
    save_recommender(tmp_path / "run", model, SemanticIds(item_ids, random_codes().numpy(), 5, "keep"), prepared.items)
    words = [tmp_path / "run", prepared.folder, "--dataset", "Tiny", "--quick", "--output", tmp_path / "one.json"]
    monkeypatch.setattr(sys, "argv", ["benchmark_one_thread.py", *map(str, words)])
    threads = torch.get_num_threads()

    load_script("benchmark_one_thread").main()

    torch.set_num_threads(threads)
    record = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
    assert [(row["num_users"], row["num_beams"]) for row in record["stock"]] == [(1, 10), (3, 24)]
    assert [row["num_beams"] for row in record["wide"]] == [11, 24]
    assert all(0 < row["gflop_per_user"] < 1 for row in record["stock"])
    assert all(rate > 0 for rate in record["gflops"].values())
    assert record["bound"]["all"] == model.catalog.num_nodes[1:3]
    assert all(0 < mean <= most for mean, most in zip(record["bound"]["mean"], record["bound"]["all"], strict=True))
    record["gflops"] = {"float32": 50.0, "bfloat16": 200.0}
    record["stock"][1] |= {"gflop_per_user": 0.6, "milliseconds_per_user": {"stock": 60.0, "recommend": 24.0}}
    page = "\n".join(one_thread_blocks(record))
    assert "| 3 | 24 | as usual | 60.00 | 24.00 | – | – | 12.00 | 2.5 | – | – | 5.0 |" in page
    assert f"Tiny, {NUM_ITEMS} items" in page
    assert one_thread_blocks(None) == []
