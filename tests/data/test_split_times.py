"""Splits in time: nothing that is trained on, and no history, comes after the moment at which lists are made."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.data.checks import check_split_times
from hf_genrec.data.fingerprint import fingerprint_of, times_fingerprint_of
from hf_genrec.data.prepare import prepare
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.split_times import SplitTimes
from hf_genrec.data.splits import SPLITS


DAY = 24 * 60 * 60 * 1000
# by user: items and the days of January 1990 on which they were taken
LOG = {"u": [("a", 1), ("b", 2), ("c", 5), ("d", 8), ("a", 9)], "v": [("b", 3), ("a", 4)], "w": [("c", 6), ("b", 7)]}
LOG |= {"x": [("a", 8), ("d", 9)], "y": [("d", 2), ("b", 8)]}


def prepared_from(folder, log=LOG, **options):
    rows = [
        {"user_id": user, "item_id": item, "timestamp": f"1990-01-{day:02d}"}
        for user, taken in log.items()
        for item, day in taken
    ]
    items = [{"item_id": item, "title": item} for item in sorted({row["item_id"] for row in rows})]
    return prepare(folder / "data", interactions=pa.Table.from_pylist(rows), items=items, **options)


def rows_of(prepared, split):
    return {row["user_id"]: ("".join(row["history"]), row["target"]) for row in prepared.split(split)}


def test_one_time_tests_the_first_item_after_it_and_validates_the_last_one_before_it(tmp_path):
    prepared = prepared_from(tmp_path, split_time="1990-01-08")

    assert rows_of(prepared, "train") == {"u": ("a", "b"), "v": ("", "b"), "w": ("", "c"), "y": ("", "d")}
    assert rows_of(prepared, "validation") == {"u": ("ab", "c"), "v": ("b", "a"), "w": ("c", "b")}
    assert rows_of(prepared, "test") == {"u": ("abc", "d"), "y": ("d", "b")}
    assert prepared.metadata["split_times"] == {
        "validation": None,
        "test": "1990-01-08T00:00:00+00:00",
        "num_unused_interactions": 3,
    }
    assert (prepared.metadata["protocol"], prepared.metadata["num_train_targets"]) == ("custom-temporal", 1)


def test_two_times_validate_the_first_item_between_them(tmp_path):
    prepared = prepared_from(tmp_path, split_time=["1990-01-04", "1990-01-08"])

    assert rows_of(prepared, "train") == {"u": ("a", "b"), "v": ("", "b"), "y": ("", "d")}
    assert rows_of(prepared, "validation") == {"u": ("ab", "c"), "v": ("b", "a")}
    assert rows_of(prepared, "test") == {"u": ("abc", "d"), "y": ("d", "b")}
    assert prepared.metadata["splits"] == {"train": 3, "validation": 2, "test": 2}


day_numbers = st.integers(1, 9)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abcd"), day_numbers), min_size=1, max_size=6), min_size=1, max_size=5
    ),
    st.lists(day_numbers, min_size=1, max_size=2, unique=True).map(sorted),
)
def test_no_split_knows_what_came_after_its_time(tmp_path_factory, taken, days):
    log = {f"u{number}": sorted(row, key=lambda pair: pair[1]) for number, row in enumerate(taken)}
    try:
        prepared = prepared_from(
            tmp_path_factory.mktemp("log"), log, split_time=[f"1990-01-{day:02d}" for day in days]
        )
    except ValueError as error:
        if "to train on" in str(error):  # nothing on one of the sides
            return
        raise
    moments = [(np.datetime64(f"1990-01-{day:02d}") - np.datetime64("1970-01-01")).astype(int) * DAY for day in days]
    tables = {name: prepared.split(name).to_list() for name in SPLITS}

    trained = [time for row in tables["train"] for time in [*row["timestamps"], row["timestamp"]]]
    assert max(trained) < moments[0]
    for row in tables["test"]:
        assert [*row["timestamps"], -1][0] < moments[-1] <= row["timestamp"]
        assert all(time < moments[-1] for time in row["timestamps"])
    for row in tables["validation"]:
        assert all(time < moments[0] for time in row["timestamps"])
        assert row["timestamp"] < moments[-1]
        assert len(days) == 1 or row["timestamp"] >= moments[0]


def test_a_folder_whose_training_part_reaches_over_the_time_gives_no_split(tmp_path):
    prepared = prepared_from(tmp_path, split_time="1990-01-08")
    for name in ("train", "validation", "test"):
        path = prepared.folder / f"{name}.parquet"
        table = pq.read_table(path)
        pq.write_table(table.filter(pa.compute.equal(table["user_id"], "u")) if name != "train" else table, path)
    table = pq.read_table(prepared.folder / "train.parquet")
    late = pa.Table.from_pylist(
        [{"user_id": "z", "history": ["a"], "target": "b", "timestamp": 8 * DAY * 1000, "timestamps": [0]}],
        table.schema,
    )
    pq.write_table(pa.concat_tables([table, late]), prepared.folder / "train.parquet")
    record = prepared.metadata | {"fingerprint": fingerprint_of(prepared.folder)}
    record |= {"times_fingerprint": times_fingerprint_of(prepared.folder)}
    (prepared.folder / "dataset.json").write_text(json.dumps(record), encoding="utf-8")

    with pytest.raises(ValueError, match="1 items of the train split lie on the wrong side of the times"):
        PreparedDataset.load(prepared.folder).split("test")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"split_time": "yesterday"}, "`split_time` must be in ISO 8601, such as 2011-10-01, got 'yesterday'"),
        ({"split_time": ["1990-01-08", "1990-01-04"]}, "the time of the validation, then a later one"),
        ({"split_time": ["1990-01-08"] * 3}, "one time or two, got 3"),
        ({"split_time": "1980-01-01"}, "leaves 0 users to train on"),
        ({"split_time": "2020-01-01"}, "and 0 to test"),
        ({"split_time": "1990-01-08", "cold_items": 0.1}, "do not go together"),
        ({"split_time": "1990-01-08", "timestamp": None}, "needs the times of the interactions"),
    ],
)
def test_times_that_split_nothing_are_refused(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        prepared_from(tmp_path, **options)


def test_times_come_back_from_the_record():
    for times in (SplitTimes(5), SplitTimes(86_400_000, 7)):
        assert SplitTimes.from_record(times.record()) == times


def test_the_test_history_ends_before_the_test(tmp_path):
    table = pa.table({"user_id": ["u"], "timestamps": [[1, 6]], "timestamp": [7]})
    empty = table.slice(1)

    with pytest.raises(ValueError, match="1 items of the test split"):
        check_split_times({"train": empty, "validation": empty, "test": table}, SplitTimes(5), owner="data")
