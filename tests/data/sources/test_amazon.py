"""Amazon builders: invented records in the raw formats, and the real files where they are."""

import gzip
import shutil
import time

import pytest

from hf_genrec.data.prepare import prepare
from hf_genrec.data.sources import amazon
from hf_genrec.data.sources.amazon import AmazonReviews, prepare_amazon


@pytest.fixture
def fixtures(repository):
    return repository / "tests" / "fixtures" / "amazon"


def build(config_name, data_dir, tmp_path, **options):
    built = AmazonReviews(
        config_name=config_name, data_dir=str(data_dir), cache_dir=str(tmp_path / "cache"), **options
    )
    built.download_and_prepare()
    return built.as_dataset()


def rows_of(prepared, split):
    return {row["user_id"]: (row["history"], row["target"], row["timestamp"]) for row in prepared.split(split)}


def test_reviews_of_2014_come_out_in_milliseconds(fixtures, tmp_path):
    reviews = build("reviews_Digital_Music", fixtures, tmp_path)["train"]

    assert reviews.num_rows == 25
    assert reviews[6] == {
        "user_id": "REVIEWER1", "item_id": "ALBUM0001", "rating": 2.0, "timestamp": 1_300_147_200_000,
    }  # fmt: skip


def test_metadata_of_2014_are_python_literals(fixtures, tmp_path):
    items = build("meta_Digital_Music", fixtures, tmp_path)["train"]

    assert items[0]["title"] == 'Album 0 &amp; "More"'
    assert items[0]["categories"] == [["Digital Music", "Jazz"], ["Gifts"]]
    assert (items[1]["title"], items[1]["description"]) == (None, "It's a record without a title.")
    assert items[5] == {
        "item_id": "ALBUM9999", "title": "Never reviewed", "categories": None, "description": None, "brand": None,
        "price": None,
    }  # fmt: skip


def test_metadata_are_never_run_as_code(fixtures, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    good = (fixtures / "meta_Digital_Music.json").read_text()
    (folder / "meta_Digital_Music.json").write_text(good + f"open({str(tmp_path / 'made')!r}, 'w')\n")

    skipped = build("meta_Digital_Music", folder, tmp_path, on_error="skip")["train"]

    assert skipped.num_rows == 6
    assert not (tmp_path / "made").exists()


def test_a_malformed_line_is_shown_with_its_number(fixtures, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    lines = (fixtures / "reviews_Digital_Music_5.json").read_text().splitlines()
    (folder / "reviews_Digital_Music_5.json").write_text("\n".join([*lines[:2], '{"asin": "X"}', *lines[2:]]))

    with pytest.raises(ValueError, match=r"""line 3 \('\{"asin": "X"\}'\): there is no 'reviewerID'"""):
        build("reviews_Digital_Music", folder, tmp_path)


GOOD = "{'asin': 'A', 'title': 'Cup'}"


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("{'asin': 'B', 'title': None, 'price': 2}", {"price": 2.0}),
        ('{"asin": "B", "title": null}', {"title": None}),
        ("{'asin': 'B', 'categories': ['Toys', 'Cups']}", {"categories": [["Toys", "Cups"]]}),
        ("{'asin': 'B', 'description': ['one', ['two']]}", {"description": "one two"}),
        ("{'asin': 'B', 'title': 1984}", {"title": "1984"}),
        (
            r"""{'asin': 'B', 'title': "It's \x41\n\ud83d\ude00 \\ \/ 'True'"}""",
            {"title": "It's A\n\U0001f600 \\ \\/ 'True'"},
        ),
        ("{'asin': u'B', 'title': ''}", {"title": ""}),
    ],
)
def test_metadata_of_2014_are_read_as_literals_or_json(tmp_path, line, row):
    (tmp_path / "meta_Beauty.json").write_text(f"{GOOD}\n{line}\n", encoding="utf-8")

    items = build("meta_Beauty", tmp_path, tmp_path)["train"]

    empty = {"item_id": "B", "title": None, "categories": None, "description": None, "brand": None, "price": None}
    assert items[1] == empty | row


@pytest.mark.parametrize(
    "line",
    [
        "{'asin': " + "1+" * 100_000 + "1}",
        "{'asin': " + "-" * 100_000 + "1}",
        "{'asin': " + "[" * 100_000,
        "{'asin': 'B', 'price': '$2'}",
        "{'asin': 'B', 'price': Infinity, 'title': 'x' 'y'}",
        "{'asin': 'B', 'price': " + "9" * 5000 + "}",
        r"{'asin': 'B', 'title': '\x4'}",
        "{'asin': 'B', 'asin': 'C'}",
        "{'asin': ['B']}",
        "{'title': '" + "\\'" * 100_000,
        "null",
        "",
    ],
)
def test_a_line_of_metadata_that_cannot_be_read_is_skipped_at_once(tmp_path, line):
    (tmp_path / "meta_Beauty.json").write_text(f"{GOOD}\n{line}\n{GOOD}\n", encoding="utf-8")
    start = time.process_time()

    records = list(amazon._records(tmp_path / "meta_Beauty.json", "meta", "skip"))

    assert [record["item_id"] for record in records] == ["A", "A"]
    assert time.process_time() - start < 1


@pytest.mark.parametrize("time_of_review", ["Infinity", "1e400", "9" * 18, '"soon"', "null", "NaN", "[1]", "9" * 5000])
def test_a_review_whose_time_is_none_is_shown_or_skipped(tmp_path, time_of_review):
    good, bad = (
        f'{{"reviewerID": "{user}", "asin": "A", "overall": 5.0, "unixReviewTime": {value}}}\n'
        for user, value in (("u", "7"), ("v", time_of_review))
    )
    (tmp_path / "reviews_Beauty_5.json").write_text(good + bad)

    with pytest.raises(ValueError, match=r"reviews_Beauty_5.json: line 2"):
        build("reviews_Beauty", tmp_path, tmp_path)
    skipped = build("reviews_Beauty", tmp_path, tmp_path, on_error="skip")["train"]
    assert skipped["user_id"][:] == ["u"]


@pytest.mark.parametrize("packed", [False, True])
def test_2014_files_become_a_prepared_folder(fixtures, tmp_path, packed):
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("reviews_Digital_Music_5.json", "meta_Digital_Music.json"):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress((fixtures / name).read_bytes()))
        else:
            shutil.copy(fixtures / name, folder)

    prepared = prepare_amazon(
        tmp_path / "data", year=2014, category="Digital_Music", data_dir=folder, cache_dir=tmp_path / "cache"
    )

    assert prepared.item_ids == [f"ALBUM{number:04d}" for number in range(5)]
    assert rows_of(prepared, "test")["REVIEWER1"] == (
        ["ALBUM0004", "ALBUM0000", "ALBUM0001", "ALBUM0002"], "ALBUM0003", 1_300_320_000_000,
    )  # fmt: skip
    assert prepared.items["text"].to_pylist()[:2] == [
        'Album 0 & "More" Digital Music, Jazz, Gifts.',
        "Digital Music. It's a record without a title.",
    ]
    assert prepared.metadata["protocol"] == "amazon2014"


def test_raw_reviews_of_2023_join_on_the_parent(fixtures, tmp_path):
    reviews = build("raw_review_Gift_Cards", fixtures, tmp_path)["train"]
    items = build("raw_meta_Gift_Cards", fixtures, tmp_path)["train"]

    assert set(reviews["item_id"]) == set(items["item_id"])
    assert items[2]["price"] is None
    assert (items[1]["price"], items[1]["details"]) == ("25.0", '{"Size": "Small"}')


def test_benchmark_files_have_their_splits_and_histories(fixtures, tmp_path):
    built = build("5core_last_out_w_his_Gift_Cards", fixtures, tmp_path)

    assert {split: rows.num_rows for split, rows in built.items()} == {"train": 15, "validation": 5, "test": 5}
    assert built["train"][0]["history"] == []
    assert built["validation"][0] == {
        "user_id": "USER0", "item_id": "CARD3", "rating": 4.0, "timestamp": 1_600_259_200_369,
        "history": ["CARD0", "CARD1", "CARD2"],
    }  # fmt: skip


def test_raw_files_and_benchmark_files_give_the_same_splits(fixtures, tmp_path):
    arguments = {"year": 2023, "category": "Gift_Cards", "data_dir": fixtures, "cache_dir": tmp_path / "cache"}

    raw = prepare_amazon(tmp_path / "raw", benchmark=None, **arguments)
    benchmark = prepare_amazon(tmp_path / "benchmark", **arguments)

    for split in ("train", "validation", "test"):
        assert rows_of(raw, split) == rows_of(benchmark, split)
    assert raw.item_ids == benchmark.item_ids == [f"CARD{number}" for number in range(5)]
    assert [step["num_interactions"] for step in raw.metadata["steps"]] == [28, 27, 25]
    assert benchmark.items["text"].to_pylist()[0] == (
        "Gift card 0 For birthdays, Sent by mail. Gift Cards, Birthday. A card.."
    )


def test_changed_local_files_are_built_again(fixtures, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    lines = (fixtures / "reviews_Digital_Music_5.json").read_text().splitlines()
    path = folder / "reviews_Digital_Music_5.json"
    path.write_text("\n".join(lines))
    assert build("reviews_Digital_Music", folder, tmp_path)["train"].num_rows == 25

    path.write_text("\n".join(lines[:7]))

    assert build("reviews_Digital_Music", folder, tmp_path)["train"].num_rows == 7


def test_a_kind_of_file_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="raw_meta, 5core_rating_only, .*, got 'raw_metas_Gift_Cards'"):
        build("raw_metas_Gift_Cards", tmp_path, tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"meta_Gift_Cards.jsonl \(plain or .gz\)"):
        build("raw_meta_Gift_Cards", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"year": 1999}, "2014 or 2023"),
        ({"category": "Cards"}, "All_Beauty, Amazon_Fashion"),
        ({"benchmark": "timestamp"}, "last_out_w_his"),
    ],
)
def test_unknown_years_categories_and_benchmarks_are_refused(tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        prepare_amazon(tmp_path / "data", **{"year": 2023, "category": "Gift_Cards", **arguments})


def test_statistics_that_differ_are_fatal_unless_somebody_wants_them(fixtures, tmp_path, caplog):
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("reviews_Digital_Music_5.json", "meta_Digital_Music.json"):
        shutil.copy(fixtures / name, folder / name.replace("Digital_Music", "Beauty"))
    arguments = {"year": 2014, "category": "Beauty", "data_dir": folder, "cache_dir": tmp_path / "cache"}

    prepared = prepare_amazon(tmp_path / "data", strict=False, **arguments)

    assert not prepared.metadata["known_statistics"]["matches"]
    assert "has 22,363 users, 12,101 items, 198,502 interactions as published; found 5 users" in caplog.text
    with pytest.raises(ValueError, match="Beauty under the protocol amazon2014 has 22,363 users"):
        prepare_amazon(tmp_path / "other", **arguments)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("config_name", "column", "value"),
    [
        ("reviews_Beauty", "item_id", "7806397051"),
        ("meta_Beauty", "item_id", "0558925278"),
        ("raw_review_All_Beauty", "timestamp", 1_588_687_728_923),
        ("raw_meta_All_Beauty", "store", "Howard Products"),
    ],
)
def test_real_samples_of_every_raw_format_are_read(shared_data, tmp_path, config_name, column, value):
    built = build(config_name, shared_data / "raw_format_samples", tmp_path)

    assert built["train"][0][column] == value


def test_our_own_splits_of_real_reviews_equal_the_published_ones(shared_data, tmp_path):
    folder = shared_data / "amazon2023_all_beauty"
    published = build("5core_last_out_w_his_All_Beauty", folder, tmp_path)
    from_ratings = build("5core_rating_only_All_Beauty", folder, tmp_path)

    prepared = prepare(
        tmp_path / "data",
        interactions=from_ratings["train"].data.table,
        items=folder / "items.jsonl",
        protocol="amazon2023",
        category="All_Beauty",
    )

    assert prepared.metadata["known_statistics"]["matches"]
    for split in ("validation", "test"):
        rows = {row["user_id"]: (row["history"], row["item_id"], row["timestamp"]) for row in published[split]}
        assert len(rows) == 253
        assert rows_of(prepared, split) == rows
    prefixes = {
        (user, tuple(sequence[:end]), sequence[end])
        for user, (history, target, _) in rows_of(prepared, "train").items()
        for sequence in ([*history, target],)
        for end in range(len(sequence))
    }
    assert {(row["user_id"], tuple(row["history"]), row["item_id"]) for row in published["train"]} == prefixes
    longest = {row["user_id"]: (row["history"], row["item_id"], row["timestamp"]) for row in published["train"]}
    assert rows_of(prepared, "train") == longest
