"""The benchmark of drafted lists on a tiny run, and its section of the page."""

import json
import sys

import numpy as np

from hf_genrec import SemanticIds, save_recommender
from invariants.model import NUM_ITEMS, make_model, random_codes, tiny_config
from parallel_results import draft_blocks


def test_drafts_of_a_tiny_run_are_lists_of_beams_and_stand_on_the_page(
    make_prepared, tmp_path, load_script, monkeypatch
):
    item_ids = [f"item-{number:02}" for number in range(NUM_ITEMS)]
    random = np.random.default_rng(0)
    users = {f"user-{user}": [item_ids[item] for item in random.permutation(NUM_ITEMS)[:7]] for user in range(5)}
    prepared = make_prepared(users | {"user-of-all": item_ids})
    shape = {"history_attention": "causal", "history_unit": "item", "normalization": "catalog", "dense_head": True}
    model = make_model(tiny_config(max_history_length=5, **shape))
    save_recommender(tmp_path / "run", model, SemanticIds(item_ids, random_codes().numpy(), 5, "keep"), prepared.items)
    words = [tmp_path / "run", prepared.folder, "--dataset", "Tiny", "--weights", 3, "--turns", 1]
    words += ["--output", tmp_path / "drafts.json"]
    monkeypatch.setattr(sys, "argv", ["benchmark_drafts.py", *map(str, words)])

    load_script("benchmark_drafts").main()

    record = json.loads((tmp_path / "drafts.json").read_text(encoding="utf-8"))
    assert [row["users_at_a_time"] for row in record["rows"]] == [1, 6]
    assert all(row["same_lists"] == 1 and 10 <= row["num_verified"] <= NUM_ITEMS for row in record["rows"])
    page = "\n".join(draft_blocks(record))
    assert f"Tiny, {NUM_ITEMS} items" in page
    assert page.count("| 3 |") == 2
    assert draft_blocks(None) == []
