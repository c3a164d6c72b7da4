"""Items tables: one record per item, its text, and everything else as given."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_genrec.data.item_readers import read_items


RECORDS = [
    {"id": 3, "title": "Ball &amp; bat", "categories": [["Toys", "Sport"]], "price": 2.5, "stock": 7},
    {"id": "x9", "title": None, "description": "Caf\u00e9 cup", "price": 3},
]
EXPECTED = {
    "item_id": ["3", "x9"],
    "title": ["Ball & bat", ""],
    "text": ["Ball & bat Toys, Sport.", "Caf\u00e9 cup"],
    "categories": ['[["Toys", "Sport"]]', None],
    "price": [2.5, 3.0],
    "stock": [7, None],
    "description": [None, "Caf\u00e9 cup"],
}


def test_records_give_texts_and_keep_their_other_fields(tmp_path):
    assert read_items(RECORDS, item="id").table.to_pydict() == EXPECTED


def test_json_lines_are_read_like_records_in_memory(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": 3, "title": "Ball", "a": [1]}\n\n{"id": "x9", "title": "Cup"}\n')

    assert read_items(path, item="id").table["title"].to_pylist() == ["Ball", "Cup"]
    assert read_items(path, item="id").table["a"].to_pylist() == ["[1]", None]


def test_csv_may_quote_line_breaks(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text('asin,title\nB1,"Two\nlines, one title"\n')

    assert read_items(path, item="asin").table.to_pydict() == {
        "item_id": ["B1"],
        "title": ["Two lines, one title"],
        "text": ["Two lines, one title"],
    }


def test_parquet_lists_become_texts_and_json(tmp_path):
    pq.write_table(pa.table({"item_id": [5], "features": [["soft", "red"]]}), tmp_path / "items.parquet")

    row = read_items(tmp_path / "items.parquet").table.to_pylist()[0]

    assert row == {"item_id": "5", "title": "", "text": "soft, red.", "features": '["soft", "red"]'}


def test_fields_title_and_ascii_are_the_callers_choice():
    row = read_items(
        RECORDS, item="id", title="description", fields=("description",), ascii_only=True
    ).table.to_pylist()[1]

    assert (row["title"], row["text"]) == ("Caf\u00e9 cup", "Caf cup")


def test_only_the_wanted_items_are_kept():
    assert read_items(RECORDS, item="id", only={"x9", "zz"}).table["item_id"].to_pylist() == ["x9"]


def test_an_id_that_comes_twice_is_an_error_or_a_counted_skip():
    records = [*RECORDS, {"id": "3", "title": "Again"}]

    with pytest.raises(ValueError, match=r"row 3: item id '3' has a record already \(row 1\)"):
        read_items(records, item="id")
    read = read_items(records, item="id", on_error="skip")
    assert read.table["title"].to_pylist() == ["Ball & bat", ""]
    assert (read.skips.count, read.skips.first) == (1, "row 3: item id '3' has a record already (row 1).")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ('{"title": "no id"}', "no id in the field 'item_id'"),
        ('{"item_id": 1.5}', "'item_id' holds '1.5'; ids are strings or whole numbers"),
        ('{"item_id": "a b"}', "whitespace"),
        ('{"item_id": "<eos>"}', "special token"),
        ('{"item_id": ""}', "empty"),
    ],
)
def test_malformed_records_are_shown_or_skipped(tmp_path, line, reason):
    path = tmp_path / "items.jsonl"
    path.write_text(f'{{"item_id": "a"}}\n{line}\n')

    with pytest.raises(ValueError, match=f"items.jsonl: line 2.*{reason}"):
        read_items(path)
    read = read_items(path, on_error="skip")
    assert (read.table["item_id"].to_pylist(), read.skips.count) == (["a"], 1)


def test_a_table_without_the_id_field_is_an_error_even_when_skipping():
    with pytest.raises(ValueError, match="no record with the field 'sku'"):
        read_items(RECORDS, item="sku", on_error="skip")


def test_mixed_and_huge_values_become_strings():
    table = read_items([{"item_id": 1, "a": "n/a", "b": 2**70}, {"item_id": 2, "a": 3.5, "b": 1}]).table

    assert table["a"].to_pylist() == ["n/a", "3.5"]
    assert table["b"].to_pylist() == [str(2**70), "1"]


@pytest.mark.parametrize("title", [1984, 1984.0, "1984", ["1984"], [[1984]]])
def test_titles_that_are_numbers_or_lists_are_titles(title):
    assert read_items([{"item_id": 1, "title": title}]).table["title"].to_pylist() == ["1984"]


def test_an_object_of_objects_has_its_keys_as_ids(tmp_path):
    (tmp_path / "items.json").write_text('{"10": {"title": "Cup"}, "11": {"title": "Ball"}}')

    table = read_items(tmp_path / "items.json", item="sku").table

    assert table.select(["item_id", "title"]).to_pylist() == [
        {"item_id": "10", "title": "Cup"},
        {"item_id": "11", "title": "Ball"},
    ]


def test_half_a_character_in_a_title_is_replaced_and_in_an_id_refused():
    read = read_items([{"item_id": "a", "title": "Cup \ud83d"}, {"item_id": "b\ud83d"}], on_error="skip")

    assert read.table["title"].to_pylist() == ["Cup \ufffd"]
    assert read.skips.first.startswith("row 2: item id 'b\ufffd' is empty, holds whitespace or a broken character")


def test_texts_that_lose_most_of_their_letters_are_counted(caplog):
    records = [{"item_id": 1, "title": "\u6ecb\u5473\u6210\u90fd 2"}, {"item_id": 2, "title": "Pok\u00e9mon"}]

    assert read_items(records).table["text"].to_pylist() == ["\u6ecb\u5473\u6210\u90fd 2", "Pok\u00e9mon"]
    assert caplog.messages == []
    assert read_items(records, ascii_only=True).table["text"].to_pylist() == ["2", "Pok mon"]
    assert caplog.messages[0].startswith("The texts of 1 items lost most of their characters")


def test_an_error_about_many_fields_is_short(tmp_path):
    (tmp_path / "items.jsonl").write_text("{" + ", ".join(f'"{field}": 1' for field in range(12_000)) + "}\n")

    with pytest.raises(ValueError, match=r"no id in the field 'item_id'; .*\(12,000 in all\)") as raised:
        read_items(tmp_path / "items.jsonl")
    assert len(str(raised.value)) < 700


def test_integers_of_thousands_of_digits_and_deep_lists_are_named():
    deep: list = []
    for _ in range(2000):
        deep = [deep]
    read = read_items([{"item_id": 1, "a": 10**5000}, {"item_id": 2, "a": deep}, {"item_id": 3}], on_error="skip")

    assert (read.table["item_id"].to_pylist(), read.skips.count) == (["3"], 2)
    assert read.skips.first == "row 1: an integer of more than 4,300 digits."


def test_a_table_of_deep_lists_is_refused():
    deep = pa.array(["x"])
    for _ in range(101):
        deep = pa.ListArray.from_arrays([0, 1], deep)

    with pytest.raises(ValueError, match="nested too deeply"):
        read_items(pa.table({"item_id": ["a"], "tags": deep}))


def test_fields_without_end_are_an_error(tmp_path):
    records = [{"item_id": row, f"field {row}": 1} for row in range(5000)]

    with pytest.raises(ValueError, match="row 998: the items have more than 1,000 fields"):
        read_items(records)


def test_names_of_fields_may_be_numbers():
    assert read_items([{"item_id": 1, 2020: "a", None: "b"}]).table.column_names == [
        "item_id", "title", "text", "2020", "None",
    ]  # fmt: skip
