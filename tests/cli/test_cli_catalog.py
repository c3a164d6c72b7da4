"""`hf-genrec catalog`: items come and go on the command line."""

import json
import shutil

import numpy as np
import pytest
from cli_shop import error_of, result_of


@pytest.fixture(scope="module")
def run(shop, tmp_path_factory):
    return shutil.copytree(shop / "run", tmp_path_factory.mktemp("catalog") / "run")


def test_items_are_added_removed_and_rolled_back_and_the_log_says_so(shop, run):
    items, vectors = run.parent / "new.jsonl", run.parent / "new.npy"
    items.write_text('{"item_id": "n1", "title": "a new thing"}\n{"item_id": "n2"}\n', encoding="utf-8")
    np.save(vectors, np.load(shop / "matrix.npy")[[3, 4]] + 0.01)

    added = result_of("catalog", "add", run, "--items", items, "--vectors", vectors)
    removed = result_of("catalog", "remove", run, "i3", "n2")
    rolled_back = result_of("catalog", "rollback", run, "2")

    assert [added["num_items"], removed["num_items"], rolled_back["num_items"]] == [25, 23, 25]
    assert rolled_back["fingerprint"] == added["fingerprint"]
    log = result_of("catalog", "log", run)["versions"]
    assert [(each["number"], each["parent"], each["num_added"], each["num_removed"]) for each in log] == [
        (1, 0, 0, 0), (2, 1, 2, 0), (3, 2, 0, 2), (4, 3, 2, 0),
    ]  # fmt: skip
    delta = result_of("catalog", "delta", run, "3")
    assert [item["item_id"] for item in delta["added"]] == ["i3", "n2"]
    listed = result_of("recommend", "--model", run, "--history", "n1", "--top-k", "30")
    assert "n2" in json.dumps(listed)


def test_wrong_items_and_versions_are_one_line(run):
    assert "'gone'" in error_of("catalog", "remove", run, "gone")
    assert "no version 99" in error_of("catalog", "rollback", run, "99")
    assert "Name items" in error_of("catalog", "remove", run)
