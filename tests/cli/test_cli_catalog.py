"""`hf-genrec catalog`: items come and go on the command line."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_shop import COLUMNS, error_of, result_of


@pytest.fixture(scope="module")
def run(shop, tmp_path_factory):
    return shutil.copytree(shop / "run", tmp_path_factory.mktemp("catalog") / "run")


def test_items_are_added_removed_and_rolled_back_and_the_log_says_so(shop, run):
    items, vectors = run.parent / "new.jsonl", run.parent / "new.npy"
    items.write_text(
        '{"item_id": "n1", "title": "a new thing"}\n{"item_id": "n2", "title": "another"}\n', encoding="utf-8"
    )
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


def test_training_goes_on_with_the_items_that_came_and_keeps_all_ids(shop, run, tmp_path):
    from hf_genrec import Recommender

    changed = Recommender.from_pretrained(run, device="cpu")
    pq.write_table(changed.items, tmp_path / "items.parquet")
    log = (shop / "log.csv").read_text(encoding="utf-8").splitlines()
    fields = log[1].split(",")
    more = [log[1].replace(fields[1], "n1").replace(fields[0], f"later{user}") for user in range(3)]
    (tmp_path / "log.csv").write_text("\n".join([*log, *more]) + "\n", encoding="utf-8")
    result_of(
        "prepare", "--interactions", tmp_path / "log.csv", *COLUMNS, "--items", tmp_path / "items.parquet",
        "--keep-all-items", "--output", tmp_path / "data",
    )  # fmt: skip

    result_of("train", tmp_path / "data", "--from", run, "--epochs", "1", "--output", tmp_path / "again")

    again = Recommender.from_pretrained(tmp_path / "again", device="cpu")
    assert again.item_ids == changed.item_ids
    assert again.model.item_codes.tolist() == changed.model.item_codes.tolist()
    assert "n1" in again.recommend([[]], top_k=30).item_ids[0]


def test_a_sum_of_models_takes_new_items_by_the_ids_of_a_member_and_what_it_has_learned_from_texts(shop, tmp_path):
    result_of("fit", shop / "data", "--method", "text", "--embeddings", shop / "emb", "--output", tmp_path / "text")
    result_of("fit", shop / "data", "--output", tmp_path / "line")
    members = [tmp_path / "text", tmp_path / "line", shop / "run"]
    result_of("ensemble", shop / "data", *members, "--max-users", "20", "--output", tmp_path / "sum")
    items, vectors = tmp_path / "new.jsonl", tmp_path / "new.npy"
    items.write_text('{"item_id": "n1", "title": "a new thing"}\n', encoding="utf-8")
    np.save(vectors, np.load(shop / "matrix.npy")[[3]] + 0.01)
    add = ["catalog", "add", tmp_path / "sum", "--items", items, "--vectors", vectors]

    assert "catalog learn" in error_of(*add)
    result_of("catalog", "learn", tmp_path / "sum", "--embeddings", shop / "emb", "--prepared", shop / "data")

    assert result_of(*add)["num_items"] == 24
    listed = result_of("recommend", "--model", tmp_path / "sum", "--history", "i3", "--top-k", "24")
    assert "n1" in json.dumps(listed)
