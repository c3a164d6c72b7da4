"""Logs in many files, on the Hub and in other libraries are read batch by batch, as one table is."""

import datasets
import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_genrec.data import spools, tables
from hf_genrec.data.item_readers import read_items
from hf_genrec.data.readers import open_interactions


def read_interactions(source, **options):
    return open_interactions(source, **options).read()


def test_one_log_in_many_parquet_files_is_read_in_their_order_and_places_name_the_file(tmp_path):
    for number, users in enumerate((["u", "v"], ["w"], ["x", ""])):
        table = pa.table({"user_id": users, "item_id": ["a"] * len(users), "timestamp": [10**9 + number] * len(users)})
        pq.write_table(table, tmp_path / f"part-{number}.parquet")

    for source in (tmp_path / "*.parquet", sorted(tmp_path.glob("*.parquet")), str(tmp_path / "**" / "part*")):
        read = read_interactions(source, on_error="skip")
        assert read.table["user_id"].to_pylist() == [*"uvwx"]
        assert "part-2.parquet: row 2: user id '' is empty" in read.skips.first
    with pytest.raises(FileNotFoundError, match="names no file"):
        read_interactions(tmp_path / "other*.parquet")
    with pytest.raises(ValueError, match=r"b\.csv is no \.parquet file"):
        read_interactions([tmp_path / "part-0.parquet", tmp_path / "b.csv"])


def test_parquet_files_of_the_hub_are_read_by_their_address(tmp_path, monkeypatch):
    hub = fsspec.filesystem("memory")
    monkeypatch.setattr(tables, "_hub", lambda: hub)
    for number in range(2):
        with hub.open(f"hf://datasets/me/log/{number}.parquet", "wb") as file:
            pq.write_table(pa.table({"user_id": [f"u{number}"], "item_id": ["a"]}), file)

    monkeypatch.setattr(hub, "glob", lambda path: ["datasets/me/log/1.parquet", "datasets/me/log/0.parquet"])
    for source in (
        "hf://datasets/me/log/*.parquet",
        ["hf://datasets/me/log/0.parquet", "hf://datasets/me/log/1.parquet"],
    ):
        assert read_interactions(source, timestamp=None).table["user_id"].to_pylist() == ["u0", "u1"]


def test_a_relation_of_duckdb_and_a_selection_of_a_dataset_are_read_batch_by_batch(monkeypatch):
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 2)
    rows = [{"who": user, "what": "a", "at": 10**9 + at} for at, user in enumerate("uvwxy")]
    dataset = datasets.Dataset.from_list(rows).select([4, 0, 2])
    names = {"user": "who", "item": "what", "timestamp": "at"}
    with duckdb.connect() as connection:
        relation = connection.sql("SELECT 'u' || range AS who, 'a' AS what, 1e9 + range AS at FROM range(5)")

        assert read_interactions(relation, **names).table["user_id"].to_pylist() == [f"u{at}" for at in range(5)]
    assert read_interactions(dataset, **names).table["user_id"].to_pylist() == ["y", "u", "w"]


def test_items_come_from_what_logs_come_from(tmp_path):
    for name in "ab":
        pq.write_table(pa.table({"item_id": [name], "title": [name.upper()]}), tmp_path / f"{name}.parquet")
    with duckdb.connect() as connection:
        relation = connection.sql("SELECT chr(CAST(97 + range AS INTEGER)) AS item_id, 'T' AS title FROM range(3)")

        assert read_items(tmp_path / "*.parquet").table["title"].to_pylist() == ["A", "B"]
        assert read_items(relation).table["item_id"].to_pylist() == ["a", "b", "c"]
    assert read_items(datasets.Dataset.from_list([{"item_id": "c"}])).table["item_id"].to_pylist() == ["c"]


def test_the_unit_of_times_is_that_of_the_whole_column_however_it_comes(monkeypatch):
    times = [5, 6, *[1_300_000_000_000] * 4]
    table = pa.table({"user_id": [*"uvwxyz"], "item_id": [*"aaaaaa"], "timestamp": times})
    whole = read_interactions(table).table

    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 2)

    assert read_interactions(table).table.equals(whole)
    assert whole["timestamp"].to_pylist() == times


def test_rows_of_text_are_read_again_from_the_disk(monkeypatch):
    monkeypatch.setattr(spools, "_IN_MEMORY", 100)
    spool = spools.Spool()
    for start in range(0, 300, 100):
        numbers = pa.array(range(start, start + 100))
        spool.add(pa.table({"user_id": numbers.cast(pa.string()), "time": numbers}))

    for names in (["user_id"], ["time", "user_id"]):
        found = pa.Table.from_batches(spool.batches(names, 7))
        assert found.column_names == names
        assert found["user_id"].to_pylist() == [str(number) for number in range(300)]
    assert [*spools.Spool().batches(["user_id"], 7)] == []
