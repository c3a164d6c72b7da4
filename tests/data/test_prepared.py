"""The prepared folder: atomic, loadable by others, named by its content."""

import json

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_genrec.cli.tables import preparation_notes
from hf_genrec.data.fingerprint import fingerprint_of, times_fingerprint_of
from hf_genrec.data.prepare import prepare
from hf_genrec.data.prepared import PreparedDataset, repeat_rate, replaced_folder
from hf_genrec.data.splits import split_files


LOG = pa.table(
    {
        "user_id": ["u", "u", "u", "u", "v", "v", "v", "w"],
        "item_id": ["a", "b", "a", "c", "c", "b", "a", "b"],
        "timestamp": [10, 20, 30, 40, 15, 25, 35, 5],
    }
)
ITEMS = [{"item_id": name, "title": f"Item {name}"} for name in "cab"]


@pytest.fixture
def prepared(tmp_path):
    return prepare(tmp_path / "data", interactions=LOG, items=ITEMS)


def test_a_loaded_folder_is_the_one_that_was_written(prepared):
    loaded = PreparedDataset.load(prepared.folder)

    assert loaded.metadata == prepared.metadata
    assert loaded.fingerprint == prepared.fingerprint == loaded.compute_fingerprint()
    assert loaded.item_ids == ["c", "a", "b"]
    assert loaded.items.column_names == ["item_id", "title", "text"]


def test_items_are_counted_over_the_training_part_only(prepared):
    assert prepared.train_item_counts().tolist() == [1, 1, 2]


def test_datasets_reads_the_splits_from_the_files(prepared, tmp_path):
    files = {split: str(prepared.folder / f"{split}.parquet") for split in ("train", "validation", "test")}

    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))

    assert loaded["test"].to_list() == prepared.split("test").to_list()
    assert loaded["train"].column_names == ["user_id", "history", "target", "timestamp", "timestamps"]


def test_an_unknown_split_is_refused(prepared):
    with pytest.raises(ValueError, match="train, validation, test"):
        prepared.split("dev")


def test_the_fingerprint_follows_the_content_and_nothing_else(prepared, tmp_path):
    again = prepare(tmp_path / "again", interactions=LOG, items=ITEMS, source="elsewhere")
    swapped = prepare(tmp_path / "swapped", interactions=LOG, items=ITEMS[::-1])
    shorter = prepare(tmp_path / "shorter", interactions=LOG.slice(0, 7), items=ITEMS)

    assert again.fingerprint == prepared.fingerprint
    assert len({prepared.fingerprint, swapped.fingerprint, shorter.fingerprint}) == 3


def test_a_split_is_named_by_the_fingerprint_of_the_folder_without_a_pass_over_its_rows(prepared, monkeypatch):
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", None)

    assert prepared.split("test")._fingerprint == f"{prepared.fingerprint}_test"


def test_changed_files_have_another_fingerprint(prepared):
    path = prepared.folder / "test.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)

    assert prepared.compute_fingerprint() != prepared.fingerprint


def test_every_item_of_a_history_has_its_time(prepared):
    rows = prepared.split("test").to_list()

    assert [row["timestamps"] for row in rows] == [[10_000, 20_000, 30_000], [15_000, 25_000]]
    assert [row["timestamp"] for row in rows] == [40_000, 35_000]


def test_a_log_without_times_has_null_in_place_of_a_row_of_times(tmp_path):
    prepared = prepare(tmp_path / "data", interactions=LOG.drop(["timestamp"]), items=ITEMS, timestamp=None)

    assert prepared.split("test")["timestamps"][:] == [None, None]


def test_a_folder_of_format_1_gives_the_same_rows_and_fingerprint_without_times(prepared):
    for split in ("train", "validation", "test"):
        path = prepared.folder / f"{split}.parquet"
        pq.write_table(pq.read_table(path).drop(["timestamps"]), path)
    path = prepared.folder / "dataset.json"
    first = json.loads(path.read_text()) | {"format_version": 1}
    path.write_text(json.dumps({name: value for name, value in first.items() if name != "times_fingerprint"}))

    older = PreparedDataset.load(prepared.folder)

    assert older.split("test").column_names == ["user_id", "history", "target", "timestamp"]
    assert older.fingerprint == prepared.fingerprint == older.compute_fingerprint()


def test_shards_of_a_split_are_one_split(prepared, monkeypatch):
    rows, fingerprints = prepared.split("train").to_list(), [prepared.metadata["times_fingerprint"]]
    path = prepared.folder / "train.parquet"
    table = pq.read_table(path)
    (prepared.folder / "train").mkdir()
    for number in range(len(table)):
        pq.write_table(table.slice(number, 1), prepared.folder / "train" / f"{number:05d}.parquet")
    path.unlink()

    sharded = PreparedDataset.load(prepared.folder)

    assert sharded.split("train").to_list() == rows
    assert sharded.repeat_rate == prepared.repeat_rate == repeat_rate(*split_files(prepared.folder, "train"))
    assert [times_fingerprint_of(prepared.folder)] == fingerprints
    monkeypatch.setattr("hf_genrec.data.fingerprint.ROWS_AT_ONCE", 2)  # borders of batches lie within shards
    whole = fingerprint_of(prepared.folder)
    pq.write_table(table, path)
    assert whole == fingerprint_of(prepared.folder) != prepared.fingerprint


def test_changed_times_have_another_fingerprint(prepared):
    path = prepared.folder / "test.parquet"
    table = pq.read_table(path)
    times = pa.array([[10_000, 20_000, 30_001], [15_000, 25_000]])
    pq.write_table(table.set_column(4, "timestamps", times), path)
    loaded = PreparedDataset.load(prepared.folder)

    assert loaded.compute_fingerprint() == loaded.fingerprint
    with pytest.raises(ValueError, match="their times_fingerprint is"):
        loaded.split("test")


def test_the_fingerprint_of_a_folder_is_what_it_always_was(tmp_path):
    log = pa.table({"user_id": ["ü", "ü", "v", "ü"], "item_id": ["ä", "b", "b", "茶"]})
    items = [{"item_id": name, "title": name} for name in ["茶", "b", "ä"]]

    assert prepare(tmp_path / "data", interactions=log, items=items, timestamp=None).fingerprint == "be814d34503fb38d"


def test_a_folder_without_its_files_is_no_prepared_folder(prepared):
    (prepared.folder / "validation.parquet").unlink()

    with pytest.raises(FileNotFoundError, match=r"no validation.parquet. Run `hf-genrec prepare`"):
        PreparedDataset.load(prepared.folder)


def test_another_format_version_is_refused(prepared):
    path = prepared.folder / "dataset.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 99'))

    with pytest.raises(ValueError, match="format version 99"):
        PreparedDataset.load(prepared.folder)


def test_a_prepared_folder_is_replaced_only_when_asked_for(prepared):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        prepare(prepared.folder, interactions=LOG.slice(0, 7), items=ITEMS)

    replaced = prepare(prepared.folder, interactions=LOG.slice(0, 7), items=ITEMS, overwrite=True)

    assert replaced.fingerprint != prepared.fingerprint
    assert [path.name for path in prepared.folder.parent.iterdir()] == ["data"]


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")

    with pytest.raises(FileExistsError, match="nothing is written"):
        prepare(tmp_path, interactions=LOG, items=ITEMS, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_failure_leaves_the_old_folder_and_no_temporary_one(tmp_path):
    target = tmp_path / "data"
    with replaced_folder(target, marker="mark") as fresh:
        (fresh / "mark").write_text("old")

    def fail():
        with replaced_folder(target, marker="mark", overwrite=True) as fresh:
            (fresh / "mark").write_text("new")
            raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        fail()

    assert (target / "mark").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_preparation_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="No interaction is left"):
        prepare(tmp_path / "data", interactions=LOG, items=ITEMS, k_core=9)

    assert list(tmp_path.iterdir()) == []


def test_repeat_rate_of_the_training_part_is_recorded_and_counted_for_older_folders(tmp_path):
    log = {"u": "abaacd", "v": "bcda"}  # trained on are a b a a, two of three targets a repeat, and b c
    rows = [(user, item, place) for user, items in log.items() for place, item in enumerate(items)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    prepared = prepare(
        tmp_path / "data", interactions=table, items=[{"item_id": item, "title": item} for item in "abcd"]
    )
    file = prepared.folder / "dataset.json"
    older = {name: value for name, value in json.loads(file.read_text()).items() if name != "repeat_rate"}

    file.write_text(json.dumps(older))

    assert (prepared.metadata["repeat_rate"], prepared.has_repeats) == (2 / 4, True)
    assert PreparedDataset.load(prepared.folder).repeat_rate == 2 / 4
    assert "repeats: 50.0 % of the training targets had been taken before by that user" in preparation_notes(
        prepared.metadata
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 1}', "\udcff", "[" * 5000])
def test_a_damaged_record_is_named(prepared, content):
    (prepared.folder / "dataset.json").write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(ValueError, match=r"dataset.json is no readable"):
        PreparedDataset.load(prepared.folder)


@pytest.mark.parametrize("name", ["items", "train", "validation", "test"])
def test_damaged_tables_are_named(prepared, name):
    path = prepared.folder / f"{name}.parquet"
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF  # in the first page, which has a checksum
    path.write_bytes(content)

    with pytest.raises(ValueError, match=rf"{name}.parquet is no readable Parquet file"):
        PreparedDataset.load(prepared.folder).split("test")
