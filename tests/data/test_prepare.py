"""From a log and an items table to splits: order, protocols, texts, counts."""

import json
import logging
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hf_genrec.data import split_writer
from hf_genrec.data.item_readers import read_items
from hf_genrec.data.prepare import prepare
from hf_genrec.data.protocols import PROTOCOLS
from hf_genrec.data.splits import SPLITS, split_files


LOG = pa.table(
    {
        "user_id": ["v", "u", "u", "u", "u", "v", "v", "w", "u"],
        "item_id": ["c", "c", "b", "a", "d", "b", "a", "b", "b"],
        "timestamp": [15, 40, 20, 10, 50, 25, 35, 5, 60],
        "rating": [5.0, 4.0, 3.0, 5.0, 2.0, 5.0, 5.0, 5.0, 4.0],
    }
)
ITEMS = [
    {"item_id": name, "title": f"Item {name}", "price": price} for name, price in zip("dcabz", range(5), strict=True)
]


def rows_of(prepared, split):
    return [(row["user_id"], row["history"], row["target"], row["timestamp"]) for row in prepared.split(split)]


def test_the_last_item_is_the_test_target_and_the_one_before_it_the_validation_target(tmp_path):
    prepared = prepare(tmp_path / "data", interactions=LOG, items=ITEMS)

    assert rows_of(prepared, "test") == [
        ("v", ["c", "b"], "a", 35_000),
        ("u", ["a", "b", "c", "d"], "b", 60_000),
    ]
    assert rows_of(prepared, "validation") == [("v", ["c"], "b", 25_000), ("u", ["a", "b", "c"], "d", 50_000)]
    assert rows_of(prepared, "train") == [
        ("v", [], "c", 15_000),
        ("u", ["a", "b"], "c", 40_000),
        ("w", [], "b", 5_000),
    ]
    assert prepared.metadata["splits"] == {"train": 3, "validation": 2, "test": 2}
    assert prepared.metadata["skipped"]["users_without_evaluation"] == 1
    assert prepared.metadata["num_train_targets"] == 2


def test_a_user_with_two_interactions_is_only_trained_on(tmp_path):
    prepared = prepare(tmp_path / "data", interactions=LOG.slice(0, 3), items=ITEMS, timestamp=None)

    assert rows_of(prepared, "train") == [("v", [], "c", None), ("u", ["c"], "b", None)]
    assert rows_of(prepared, "test") == []


def test_long_splits_are_shards_of_the_same_content(tmp_path, monkeypatch):
    whole = prepare(tmp_path / "whole", interactions=LOG, items=ITEMS)
    monkeypatch.setattr(split_writer, "_INTERACTIONS_AT_ONCE", 2)
    monkeypatch.setattr(split_writer, "INTERACTIONS_OF_A_SHARD", 2)

    shards = prepare(tmp_path / "shards", interactions=LOG, items=ITEMS)

    names = ["train/00000.parquet", "train/00001.parquet"]
    assert [str(path.relative_to(shards.folder)) for path in split_files(shards.folder, "train")] == names
    assert shards.metadata | {"source": ""} == whole.metadata | {"source": ""}
    assert shards.compute_fingerprint() == whole.fingerprint
    for name in SPLITS:
        assert rows_of(shards, name) == rows_of(whole, name)


def test_the_catalog_has_the_order_of_the_items_table(tmp_path):
    prepared = prepare(tmp_path / "data", interactions=LOG, items=ITEMS)
    everything = prepare(tmp_path / "all", interactions=LOG, items=ITEMS, keep_all_items=True)

    assert prepared.item_ids == ["d", "c", "a", "b"]
    assert prepared.items["price"].to_pylist() == [0, 1, 2, 3]
    assert everything.item_ids == ["d", "c", "a", "b", "z"]


def test_the_options_of_the_filters_change_what_is_left(tmp_path):
    def left(name, **options):
        prepared = prepare(tmp_path / name, interactions=LOG, items=ITEMS, rating="rating", **options)
        return [step["num_interactions"] for step in prepared.metadata["steps"]]

    assert left("plain") == [9]
    assert left("pairs", deduplicate=True) == [9, 8]
    assert left("core", k_core=2) == [9, 7]
    assert left("history", min_history=3) == [9, 5]
    assert left("rating", min_rating=4) == [9, 7]
    assert left("all", min_rating=3, deduplicate=True, k_core=2, min_history=1) == [9, 8, 7, 6, 6]


def test_every_step_is_recorded_and_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="hf_genrec.data.prepare"):
        prepared = prepare(tmp_path / "data", interactions=LOG, items=ITEMS, k_core=2, deduplicate=True)

    assert [step["step"] for step in prepared.metadata["steps"]] == ["read", "repeated pairs dropped", "2-core"]
    assert prepared.metadata["steps"][0]["num_users"] == 3
    statistics = {"num_users": 2, "num_items": 3, "num_interactions": 6, "mean_length": 3.0, "density": 1.0}
    assert prepared.metadata["statistics"] == statistics
    assert "2-core: 2 users, 3 items, 6 interactions, 3.00 per user, density 1.00000" in caplog.text


def test_ready_made_sequences_are_prepared_like_a_log(tmp_path):
    (tmp_path / "sequences.tsv").write_text("v\tc b a\nu\ta b c d b\nw\tb\n")
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))

    from_log = prepare(tmp_path / "log", interactions=LOG, items=ITEMS)
    prepared = prepare(tmp_path / "data", sequences=tmp_path / "sequences.tsv", items=tmp_path / "items.jsonl")

    assert [row[:3] for row in rows_of(prepared, "test")] == [row[:3] for row in rows_of(from_log, "test")]
    assert rows_of(prepared, "test")[0][3] is None
    assert prepared.metadata["source"] == "sequences.tsv"


def test_items_without_text_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"2 items have no metadata or an empty text: 'c', 'b'.*missing_text"):
        prepare(tmp_path / "data", interactions=LOG, items=[*ITEMS[::2], {"item_id": "b", "title": " "}])


def test_only_the_first_five_items_without_text_are_listed(tmp_path):
    log = pa.table({"user_id": ["u"] * 7, "item_id": list("abcdefg"), "timestamp": range(7)})

    with pytest.raises(ValueError, match=r"6 items .*: 'b', 'c', 'd', 'e', 'f', \.\.\."):
        prepare(tmp_path / "data", interactions=log, items=[{"item_id": "a", "title": "A"}])


def test_interactions_with_textless_items_can_be_dropped(tmp_path):
    prepared = prepare(tmp_path / "data", interactions=LOG, items=ITEMS[1:], missing_text="drop", k_core=2)

    assert prepared.item_ids == ["c", "a", "b"]
    assert [step["step"] for step in prepared.metadata["steps"]] == ["read", "text-less items dropped", "2-core"]
    assert prepared.metadata["skipped"]["textless_items"] == 1
    assert prepared.metadata["skipped"]["textless_interactions"] == 1


def test_textless_items_can_be_kept_under_their_ids(tmp_path):
    items = [{"item_id": "b", "title": ""}, *ITEMS[1:3]]

    prepared = prepare(tmp_path / "data", interactions=LOG, items=items, missing_text="keep")

    assert prepared.items.select(["item_id", "title", "text"]).to_pylist() == [
        {"item_id": "b", "title": "", "text": "b"},
        {"item_id": "c", "title": "Item c", "text": "Item c"},
        {"item_id": "a", "title": "Item a", "text": "Item a"},
        {"item_id": "d", "title": "", "text": "d"},
    ]
    assert prepared.metadata["skipped"]["textless_items"] == 2


def test_textless_items_without_interactions_count_only_when_all_items_are_kept(tmp_path):
    arguments = {"interactions": LOG, "items": [*ITEMS, {"item_id": "y"}]}

    assert prepare(tmp_path / "used", **arguments).metadata["skipped"]["textless_items"] == 0
    with pytest.raises(ValueError, match="1 items have no metadata or an empty text: 'y'"):
        prepare(tmp_path / "all", keep_all_items=True, **arguments)
    dropped = prepare(tmp_path / "dropped", keep_all_items=True, missing_text="drop", **arguments)
    assert (dropped.item_ids, dropped.metadata["skipped"]["textless_items"]) == (["d", "c", "a", "b", "z"], 1)


def test_texts_are_made_of_the_fields_asked_for(tmp_path):
    prepared = prepare(tmp_path / "data", interactions=LOG, items=ITEMS, text_fields=("price", "title"), title="price")

    assert prepared.items["text"].to_pylist()[1] == "1 Item c"
    assert prepared.metadata["options"]["text_fields"] == ["price", "title"]


def test_a_title_field_alone_gives_the_texts_too(tmp_path):
    items = [{"item_id": name, "name": f"Item {name}", "categories": ["Toys"]} for name in "abcd"]

    prepared = prepare(tmp_path / "data", interactions=LOG, items=items, title="name")

    assert prepared.items.slice(0, 1).select(["title", "text"]).to_pylist() == [
        {"title": "Item a", "text": "Item a Toys."}
    ]
    assert prepared.metadata["options"]["text_fields"] == ["name", "features", "categories", "description"]


def test_delimiter_of_the_log_leaves_an_ordinary_items_table_alone(tmp_path):
    (tmp_path / "log.csv").write_text("user_id;item_id;timestamp\nu;a;1\nu;b;2\nu;c;3\n", encoding="utf-8")
    (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,B\nc,C\n", encoding="utf-8")
    files = {"interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}

    prepared = prepare(tmp_path / "data", **files, delimiter=";")

    assert prepared.items["title"].to_pylist() == ["A", "B", "C"]


def test_delimiter_and_date_format_reach_both_tables(tmp_path):
    (tmp_path / "log.csv").write_text("user_id;item_id;timestamp\nu;a;24.12.2020\nu;b;23.12.2020\n")
    (tmp_path / "items.csv").write_text("item_id;title\na;Ball, red\nb;Cup\n")
    files = {"interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}

    prepared = prepare(tmp_path / "data", **files, delimiter=";", date_format="%d.%m.%Y")

    assert rows_of(prepared, "train") == [("u", ["b"], "a", 1_608_768_000_000)]
    assert prepared.items["title"].to_pylist() == ["Ball, red", "Cup"]
    inferred = prepare(tmp_path / "other", **files)
    assert (inferred.fingerprint, inferred.items) == (prepared.fingerprint, prepared.items)


def test_skipped_lines_of_both_files_are_reported(tmp_path, caplog):
    log = "user_id,item_id,timestamp\nu,a,1\nbroken\nu,b,2\nu,c,3\n"
    (tmp_path / "log.csv").write_text(log)
    items = [*ITEMS, ITEMS[1]]

    with pytest.raises(ValueError, match=r"line 3 \('broken'\)"):
        prepare(tmp_path / "data", interactions=tmp_path / "log.csv", items=ITEMS)
    prepared = prepare(tmp_path / "data", interactions=tmp_path / "log.csv", items=items, on_error="skip")

    assert prepared.metadata["skipped"]["log_lines"] == 1
    assert "line 3 ('broken')" in prepared.metadata["skipped"]["log_first_line"]
    assert prepared.metadata["skipped"]["items_lines"] == 1
    assert "1 lines of the log were skipped" in caplog.text


def test_rows_that_are_there_twice_are_counted_in_a_warning(tmp_path, caplog):
    twice = pa.concat_tables([LOG, LOG.slice(0, 2)])

    prepare(tmp_path / "kept", interactions=twice, items=ITEMS)
    prepare(tmp_path / "dropped", interactions=twice, items=ITEMS, deduplicate=True)
    prepare(tmp_path / "once", interactions=LOG, items=ITEMS)

    found = [message for message in caplog.messages if "same user, item and time" in message]
    assert [message.split(".")[0] for message in found] == [
        "2 interactions are there before, with the same user, item and time"
    ]


def test_texts_keep_every_script_unless_the_protocol_is_a_papers(tmp_path):
    items = [item | {"title": f"caf\u00e9 {item['item_id']}"} for item in ITEMS]

    ours = prepare(tmp_path / "ours", interactions=LOG, items=items)
    papers = prepare(tmp_path / "papers", interactions=LOG, items=items, protocol="amazon2014", k_core=0)
    wanted = prepare(tmp_path / "wanted", interactions=LOG, items=items, ascii_only=True)

    assert ours.items["text"][0].as_py() == "caf\u00e9 d"
    assert papers.items["text"][0].as_py() == wanted.items["text"][0].as_py() == "caf d"
    assert [data.metadata["options"]["ascii_only"] for data in (ours, papers, wanted)] == [False, True, True]


def test_a_protocol_decides_the_filters_and_can_be_overruled(tmp_path):
    assert PROTOCOLS["amazon2023"].deduplicate
    assert [PROTOCOLS[name].k_core for name in ("amazon2014", "amazon2018", "amazon2023", "movielens")] == [5] * 4

    prepared = prepare(tmp_path / "data", interactions=LOG, items=ITEMS, protocol="amazon2023", k_core=2)

    assert prepared.metadata["protocol"] == "amazon2023"
    assert prepared.metadata["options"]["deduplicate"]
    assert prepared.metadata["options"]["k_core"] == 2


def test_a_difference_from_published_statistics_is_an_error_that_tells_both_and_the_way_out(tmp_path):
    arguments = {"interactions": LOG, "items": ITEMS, "protocol": "amazon2014", "k_core": 2}
    match = (
        r"22,363 users, 12,101 items, 198,502 interactions as published; found 2 users, 3 items, 7 interactions\. "
        r".*pass `protocol=\"custom\"` or `category=None`\. To prepare them all the same, pass `strict=False`\."
    )

    with pytest.raises(ValueError, match=match):
        prepare(tmp_path / "data", category="Beauty", **arguments)

    assert list(tmp_path.iterdir()) == []
    assert prepare(tmp_path / "other", **arguments).metadata["known_statistics"] is None
    assert prepare(tmp_path / "new", category="Books", **arguments).metadata["known_statistics"] is None


@pytest.mark.parametrize(
    ("category", "protocol", "match"),
    [
        (
            "Beautty",
            "amazon2014",
            "published statistics of amazon2014: `category` is 'Beautty'; known: Beauty, Sports",
        ),
        (None, "amazon2014", "published statistics of amazon2014: `category` is None; known: Beauty, "),
        ("Beautty", "amazon2018", None),
        (None, "custom", None),
    ],
)
def test_data_that_no_published_statistics_are_about_are_warned_of(tmp_path, caplog, category, protocol, match):
    prepare(tmp_path / "data", interactions=LOG, items=ITEMS, protocol=protocol, category=category, k_core=2)

    if match is None:
        assert "published" not in caplog.text
    else:
        assert re.search(match, caplog.text)


def test_a_difference_from_published_statistics_is_recorded_where_it_is_wanted(tmp_path, caplog):
    arguments = {"interactions": LOG, "items": ITEMS, "protocol": "amazon2014", "k_core": 2}

    prepared = prepare(tmp_path / "data", category="Beauty", strict=False, **arguments)

    expected = {"num_users": 22_363, "num_items": 12_101, "num_interactions": 198_502}
    assert prepared.metadata["known_statistics"] == {"category": "Beauty", "expected": expected, "matches": False}
    assert "Beauty under the protocol amazon2014 has 22,363 users" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"interactions": None}, "either `interactions` or `sequences`"),
        ({"sequences": "x.tsv"}, "either `interactions` or `sequences`"),
        ({"protocol": "amazon1999"}, "custom, amazon2014, amazon2018, amazon2023, movielens"),
        ({"missing_text": "invent"}, "missing_text"),
        ({"min_rating": 3.0}, "`min_rating` needs `rating`"),
        ({"k_core": -1}, "k_core"),
        ({"delimiter": ";"}, "neither `interactions` nor `items` is such a file"),
        ({"date_format": "%Y", "timestamp": None}, "`date_format` is for the times of a log"),
        ({"cold_items": 1.5}, "`cold_items` is a share"),
        ({"min_history": -1}, "min_history"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_the_door(tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        prepare(tmp_path / "data", **{"interactions": LOG, "items": ITEMS, **arguments})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "protocol", "sizes"),
    [
        ("amazon2014_beauty", "amazon2014", (22_363, 12_101, 198_502)),
        ("amazon2018_scientific", "amazon2018", (8_317, 4_344, 58_492)),
        ("amazon2023_all_beauty", "amazon2023", (253, 356, 2_535)),
    ],
)
def test_published_benchmarks_are_already_what_their_protocol_makes(shared_data, tmp_path, folder, protocol, sizes):
    data = shared_data / folder

    prepared = prepare(
        tmp_path / "data", sequences=data / "sequences.tsv", items=data / "items.jsonl", protocol=protocol
    )

    names = ("num_users", "num_items", "num_interactions")
    assert tuple(prepared.metadata["statistics"][name] for name in names) == sizes
    assert prepared.metadata["num_train_targets"] == sizes[2] - 3 * sizes[0]
    assert len(prepared.item_ids) == sizes[1]


def test_iso_dates_of_a_real_log_give_its_published_sequences(shared_data, tmp_path):
    data = shared_data / "online_retail"

    prepared = prepare(tmp_path / "data", interactions=data / "interactions.csv", items=data / "items.jsonl")

    published = dict(line.split("\t") for line in (data / "sequences.tsv").read_text().splitlines())
    test = prepared.split("test").to_pandas()
    assert {
        user: " ".join([*history, target])
        for user, history, target in zip(test.user_id, test.history, test.target, strict=True)
    } == published
    assert test.timestamp.min() > 1_290_000_000_000


@pytest.mark.parametrize("options", [{"k_core": 2.5}, {"k_core": True}, {"min_history": "2"}, {"min_history": -1}])
def test_numbers_of_interactions_are_whole(tmp_path, options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be a whole number of at least 0, got"):
        prepare(tmp_path / "data", interactions=LOG, items=ITEMS, **options)


def test_one_column_is_not_user_and_item_at_once(tmp_path):
    with pytest.raises(ValueError, match="`user` and `item` are both 'item_id'"):
        prepare(tmp_path / "data", interactions=LOG, items=ITEMS, user="item_id")


def test_a_table_by_columns_in_json_is_no_table_of_two_items(tmp_path):
    path = tmp_path / "items.json"
    pd.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"]}).to_json(path)

    with pytest.raises(ValueError, match=r"keys 'item_id', 'title'; expected .*`to_json\(orient=\"records\"\)`"):
        read_items(path)


@pytest.mark.parametrize("kind", ["pandas", "polars", "datasets"])
def test_tables_in_memory_are_prepared_like_a_log_on_disk(tmp_path, kind):
    library = pytest.importorskip(kind)
    table = library.Dataset.from_list if kind == "datasets" else library.DataFrame
    wanted = prepare(tmp_path / "wanted", interactions=LOG, items=ITEMS)

    prepared = prepare(tmp_path / "data", interactions=table(LOG.to_pylist()), items=table(ITEMS))

    for split in ("train", "validation", "test"):
        assert rows_of(prepared, split) == rows_of(wanted, split)
    assert prepared.items["text"].to_pylist() == wanted.items["text"].to_pylist()


def test_little_memory_is_enough_for_a_log_and_too_little_is_named(tmp_path):
    rows = np.arange(400_000)
    log = pa.table({"user_id": rows % 40_000, "item_id": rows % 7, "timestamp": rows[::-1] * 10_000})
    items = [{"item_id": number, "title": f"Item {number}"} for number in range(7)]

    small = prepare(tmp_path / "small", interactions=log, items=items, memory_limit="60MB", k_core=2)
    large = prepare(tmp_path / "large", interactions=log, items=items, k_core=2)

    assert small.fingerprint == large.fingerprint
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "dataset.json", "items.parquet", "test.parquet", "train.parquet", "validation.parquet"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="`memory_limit` must be a size such as .*, got 'much'"):
        prepare(tmp_path / "none", interactions=log, items=items, memory_limit="much")
    with pytest.raises(MemoryError, match="`memory_limit` is too small for this log: pass more"):
        prepare(tmp_path / "none", interactions=log, items=items, memory_limit="2MB")
