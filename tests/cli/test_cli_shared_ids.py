"""Semantic IDs that several items share, from the command line."""

import json

from test_cli import result_of


# 12 items with 7 ids: groups of 1, 1, 1, 2, 2, 2 and 3
CODES = [[1, 0], [0, 2], [2, 2], [1, 0], [0, 1], [1, 0], [2, 2], [3, 3], [0, 2], [3, 1], [2, 0], [3, 1]]


def test_imported_table_with_shared_ids_is_trained_evaluated_and_served(make_prepared, tmp_path):
    names = [f"i{number:02}" for number in range(12)]
    log = {f"u{start:02}": [names[(start + step) % 12] for step in range(6)] for start in range(12)}
    ids = tmp_path / "table.json"
    ids.write_text(json.dumps(dict(zip(names, CODES, strict=True))), encoding="utf-8")
    data, run = make_prepared(log).folder, tmp_path / "run"
    tiny = ["--d-model", 16, "--d-ff", 24, "--heads", 2, "--layers", 1, "--epochs", 2, "--precision", "fp32"]

    result = result_of("tokenize", data, "--ids", ids, "--policy", "keep", "--output", tmp_path / "ids")
    result_of("train", data, "--ids", tmp_path / "ids", "--output", run, *tiny)
    record = result_of("evaluate", run, data)
    found = result_of(
        "recommend", "--model", run, "--history", "i02", "i03", "--top-k", 11, "--exclude", "i05", "--include-seen"
    )

    assert result["statistics"]["after"]["group_sizes"] == {"1": 3, "2": 3, "3": 1}
    assert record["model"]["invalid_rate"] == 0
    items = [names.index(item["item_id"]) for item in found["recommendations"]]
    assert sorted(items) == [item for item in range(12) if item != 5]
    assert items[items.index(0) + 1] == 3
    assert items[items.index(9) + 1] == 11
