"""Logs and ready-made sequences: every format gives the same table, every defect is named."""

import gzip
import json

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_genrec.data import native, text_files
from hf_genrec.data.readers import open_interactions, open_sequences


def read_interactions(source, **options):
    return open_interactions(source, **options).read()


def read_sequences(path, **options):
    return open_sequences(path, **options).read()


ROWS = [("u", "b", 1_600_000_020), ("7", "a", 1_600_000_010), ("u", "c", 1_600_000_030)]
EXPECTED = [{"user_id": user, "item_id": item, "timestamp": time * 1000} for user, item, time in ROWS]
NAMES = {"user": "who", "item": "what", "timestamp": "at"}


def write(folder, suffix):
    path = folder / f"log{suffix}"
    frame = pd.DataFrame(ROWS, columns=["who", "what", "at"])
    if suffix.startswith(".csv"):
        frame.to_csv(path, index=False)
    elif suffix.startswith(".tsv"):
        frame.to_csv(path, index=False, sep="\t")
    elif suffix.startswith(".parquet"):
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".jsonl", ".jsonl.gz", ".json"])
def test_every_format_gives_the_same_table(tmp_path, suffix):
    assert read_interactions(write(tmp_path, suffix), **NAMES).table.to_pylist() == EXPECTED


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"\xef\xbb\xbfuser_id,item_id\r\nu,a\r\n")

    assert read_interactions(path, timestamp=None).table["user_id"].to_pylist() == ["u"]


def test_tables_in_memory_are_read_like_files():
    frame = pd.DataFrame(ROWS, columns=["who", "what", "at"])

    assert read_interactions(frame, **NAMES).table.to_pylist() == EXPECTED
    assert read_interactions(pa.Table.from_pandas(frame), **NAMES).table.to_pylist() == EXPECTED


VIEWS = pa.schema([("who", pa.string_view()), ("what", pa.large_string()), ("at", pa.int64())])


class Frame:
    """What polars and others have: columns for whoever asks for them."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "make",
    [
        datasets.Dataset.from_list,
        lambda rows: datasets.Dataset.from_list([*rows, rows[0]]).select(range(len(rows))),
        list,
        lambda rows: pd.DataFrame(rows).astype(object),
        lambda rows: Frame(pa.Table.from_pylist(rows).cast(VIEWS)),
    ],
)  # fmt: skip
def test_whatever_holds_rows_in_memory_is_read(make):
    rows = [dict(zip(("who", "what", "at"), row, strict=True)) for row in ROWS]

    assert read_interactions(make(rows), **NAMES).table.to_pylist() == EXPECTED


def test_columns_of_a_frame_may_mix_numbers_and_strings():
    frame = pd.DataFrame(
        {"user_id": [7, "u", 8.0], "item_id": ["a", 3, None], "timestamp": [1, "2", 3.0]}, dtype=object
    )

    read = read_interactions(frame, on_error="skip")

    assert read.table.to_pylist() == [
        {"user_id": "7", "item_id": "a", "timestamp": 1000},
        {"user_id": "u", "item_id": "3", "timestamp": 2000},
    ]
    assert read.skips.first.startswith("row 3: item id None is empty")


@pytest.mark.parametrize("source", [datasets.DatasetDict(), 7, {"user_id": ["u"]}])
def test_what_holds_no_rows_is_refused_with_what_is_read(source):
    with pytest.raises(
        TypeError, match="is no source: pass a path, a table of pyarrow, pandas or polars, one split of"
    ):
        read_interactions(source)


@pytest.mark.parametrize("first", ["null", "[", "1", "{}", '"', "\x00", '{"user_id": null}'])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".json"])
def test_a_first_line_that_is_none_stops_or_is_skipped_and_never_kills(tmp_path, first, suffix):
    path = tmp_path / f"log{suffix}"
    path.write_text(f'{first}\n{{"user_id": "u", "item_id": "a"}}\n')

    with pytest.raises(ValueError, match=f"log{suffix}"):
        read_interactions(path, timestamp=None)
    if suffix.startswith(".json"):
        read = read_interactions(path, timestamp=None, on_error="skip")
        assert (read.table["item_id"].to_pylist(), read.skips.count) == (["a"], 1)


def test_float_ids_are_whole_numbers_or_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"user_id": 1.0, "item_id": 10001.0}\n{"user_id": 2, "item_id": 1.5}\n')

    read = read_interactions(path, timestamp=None, on_error="skip")

    assert read.table.select(["user_id", "item_id"]).to_pylist() == [{"user_id": "1", "item_id": "10001"}]
    assert "item id 1.5 is no string and no number" in read.skips.first


def test_when_no_line_can_be_read_the_first_says_why(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nu,a,9/10/2020 12:26\nu,b,9/11/2020 12:27\n")

    # Either of them could be September, so the column says nothing.
    with pytest.raises(
        ValueError,
        match=r"no interactions that can be read: 2 were skipped, the first: .*line 2 .*'%d.*'%m/%d/%Y %H:%M' and "
        "'%d/%m/%Y %H:%M' fit alike",
    ):
        read_interactions(path, on_error="skip")


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: b"PAR1" + b"x" * 50 + b"PAR1", lambda _: b""]
)
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    path = write(tmp_path, ".parquet")
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(ValueError, match=r"log\.parquet is no readable Parquet file"):
        read_interactions(path, **NAMES)


def test_a_parquet_file_that_unpacks_to_far_more_than_its_size_is_refused_unless_it_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "ALWAYS_ALLOWED", 100_000)
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({name: ["a"] * 100_000 for name in ("user_id", "item_id")}), path)

    with pytest.raises(ValueError, match=r"log.parquet unpacks to 1,600,000 bytes.*`allow_huge=True`"):
        read_interactions(path, timestamp=None)
    assert read_interactions(path, timestamp=None, allow_huge=True).table.num_rows == 100_000


def test_columns_that_come_twice_are_refused():
    table = pa.table([["u"], ["a"], ["b"]], names=["user_id", "item_id", "item_id"])

    with pytest.raises(ValueError, match="the table has several columns called 'item_id'"):
        read_interactions(table, timestamp=None)


@pytest.mark.parametrize(
    "doubt", ["", "\n", 'v,"b",4\n', "broken\n", "v,,4\n", "v,b,soon\n", "v,\u82b1,4\n", "v,\r", "\ufeff\n"]
)
def test_a_large_file_is_read_alike_with_and_without_a_doubt_at_its_end(tmp_path, monkeypatch, doubt):
    monkeypatch.setattr(native, "_LEAST", 0)
    monkeypatch.setattr(text_files, "_BLOCK", 100)
    path = tmp_path / "log.csv"
    rows = [(f"u{row}", f"i{row % 7}", row) for row in range(300)]
    lines = [f"{user},{item},{time}\n" for user, item, time in rows]
    path.write_text("user_id,item_id,timestamp\n" + "".join(lines) + doubt + "w,,4\n", encoding="utf-8")
    number = 302 + len(doubt.splitlines())

    read = read_interactions(path, on_error="skip")

    assert read.table["user_id"].to_pylist()[:300] == [user for user, _, _ in rows]
    assert read.table["timestamp"].to_pylist()[299] == 299_000
    assert read.table.num_rows + read.skips.count == 301 + len(doubt.split())
    with pytest.raises(ValueError, match=r"line 30\d"):
        read_interactions(path)
    if read.skips.count == 1:
        assert f"line {number} ('w,,4')" in read.skips.first


def test_integer_ids_become_strings_in_every_format(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"user_id": 7, "item_id": "b"}\n{"user_id": "u", "item_id": 12}\n')
    pq.write_table(pa.table({"user_id": [7], "item_id": pa.array([12], pa.int16())}), tmp_path / "log.parquet")

    lines = read_interactions(tmp_path / "log.jsonl", timestamp=None).table
    parquet = read_interactions(tmp_path / "log.parquet", timestamp=None).table

    assert lines.to_pydict() == {"user_id": ["7", "u"], "item_id": ["b", "12"], "timestamp": [None, None]}
    assert parquet.to_pydict() == {"user_id": ["7"], "item_id": ["12"], "timestamp": [None]}


@pytest.mark.parametrize(
    ("written", "milliseconds"),
    [
        ("1300000000", 1_300_000_000_000),
        ("1300000000.25", 1_300_000_000_250),
        ("1300000000123", 1_300_000_000_123),
        ("2010-12-07 14:57:00", 1_291_733_820_000),
        ("2010-12-07T15:57:00+01:00", 1_291_733_820_000),
        ("2010-12-07", 1_291_680_000_000),
    ],
)
def test_times_are_milliseconds_whatever_the_file_holds(tmp_path, written, milliseconds):
    path = tmp_path / "log.csv"
    path.write_text(f"user_id,item_id,timestamp\nu,a,{written}\n")

    assert read_interactions(path).table["timestamp"].to_pylist() == [milliseconds]


def test_other_ways_of_writing_times_need_their_format(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nu,a,07.12.2010 14:57\nu,b,24.13.2010 00:00\n")

    with pytest.raises(ValueError, match=r"timestamp '07\.12\.2010 14:57' is neither .* pass `date_format`"):
        read_interactions(path)
    with pytest.raises(
        ValueError,
        match=r"line 3 .*: timestamp '24\.13\.2010 00:00' does not have the form `date_format='%d\.%m\.%Y %H:%M'`",
    ):
        read_interactions(path, date_format="%d.%m.%Y %H:%M")
    read = read_interactions(path, date_format="%d.%m.%Y %H:%M", on_error="skip")
    assert (read.table["timestamp"].to_pylist(), read.skips.count) == ([1_291_733_820_000], 1)


def test_a_date_format_applies_to_numbers_and_not_to_times():
    times = pa.array([20_101_207])
    table = pa.table({"user_id": ["u"], "item_id": ["a"], "timestamp": times})

    assert read_interactions(table, date_format="%Y%m%d").table["timestamp"].to_pylist() == [1_291_680_000_000]
    with pytest.raises(
        ValueError, match=r"`timestamp` holds timestamp\[s\]; `date_format` is for times written as text"
    ):
        read_interactions(table.set_column(2, "timestamp", times.cast(pa.timestamp("s"))), date_format="%Y")


@pytest.mark.parametrize(("mark", "name"), [(";", "log.csv"), ("|", "log.txt"), ("\t", "log.csv"), (",", "log.tsv")])
def test_another_delimiter_can_be_named(tmp_path, mark, name):
    path = tmp_path / name
    path.write_text(f'user_id{mark}item_id\n"u"{mark}a\n'.replace('"', "" if mark == "\t" else '"'))

    assert read_interactions(path, timestamp=None, delimiter=mark).table["user_id"].to_pylist() == ["u"]


@pytest.mark.parametrize(("mark", "name"), [(";", "log.csv"), ("|", "log.csv"), ("\t", "log.csv"), (",", "log.tsv")])
def test_a_header_with_another_delimiter_is_recognised(tmp_path, mark, name):
    path = tmp_path / name
    path.write_text(f"user_id{mark}item_id{mark}timestamp\nu{mark}a{mark}1\n")

    assert read_interactions(path).table["item_id"].to_pylist() == ["a"]


@pytest.mark.parametrize(
    ("texts", "milliseconds"),
    [
        (["07.12.2010 14:57", "24.12.2010 00:00"], [1_291_733_820_000, 1_293_148_800_000]),
        (["12/07/2010", "12/24/2010"], [1_291_680_000_000, 1_293_148_800_000]),
        (["07/12/2010", "24/12/2010"], [1_291_680_000_000, 1_293_148_800_000]),
    ],
)
def test_a_common_form_of_dates_is_found_where_the_whole_column_leaves_no_other(caplog, texts, milliseconds):
    table = pa.table({"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": texts})

    assert read_interactions(table).table["timestamp"].to_pylist() == milliseconds
    assert "Times are read as dates of the form '%" in caplog.text
    with pytest.raises(ValueError, match="row 1: timestamp .* is neither .*pass `date_format`"):
        read_interactions(table.set_column(2, "timestamp", pa.array([texts[0], "soon"])))


def test_a_delimiter_is_one_character(tmp_path):
    (tmp_path / "log.csv").write_text("user_id::item_id\n")

    with pytest.raises(ValueError, match=r"`delimiter` must be one character, got '::'"):
        read_interactions(tmp_path / "log.csv", delimiter="::")


def test_parquet_timestamps_are_cast():
    times = pa.array(["2010-12-07 14:57:00"]).cast(pa.timestamp("us"))

    table = read_interactions(pa.table({"user_id": ["u"], "item_id": ["a"], "timestamp": times})).table

    assert table["timestamp"].to_pylist() == [1_291_733_820_000]


def test_one_column_of_times_has_one_unit():
    table = read_interactions(
        pa.table({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [5, 1_300_000_000_000]})
    ).table

    assert table["timestamp"].to_pylist() == [5, 1_300_000_000_000]


def test_ratings_are_read_when_asked_for(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,stars\nu,a,4\nu,b,x\n")

    with pytest.raises(ValueError, match=r"line 3 \('u,b,x'\): rating 'x' is not a number"):
        read_interactions(path, timestamp=None, rating="stars")
    assert read_interactions(path, timestamp=None, rating="stars", on_error="skip").table["rating"].to_pylist() == [
        4.0
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("u,b", "expected 3 fields"),
        (",b,1", "user id '' is empty"),
        ("u,two words,1", "holds whitespace"),
        ("u,<pad>,1", "special token"),
        ("u,b,soon", "neither a number nor an ISO 8601 time"),
    ],
)
def test_a_malformed_line_is_shown_with_its_number(tmp_path, line, reason):
    path = tmp_path / "log.csv"
    path.write_text(f"user_id,item_id,timestamp\nu,a,1\n\n{line}\nv,c,3\n")

    with pytest.raises(ValueError, match=rf"log.csv: line 4 \('{line}'\).*{reason}.*on_error=\"skip\""):
        read_interactions(path)


def test_skipped_lines_are_counted_and_the_first_is_kept(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nu,a,1\nbroken\nv,c,3\nv,,4\n")

    read = read_interactions(path, on_error="skip")

    assert read.table["item_id"].to_pylist() == ["a", "c"]
    assert read.skips.count == 2
    assert "line 3 ('broken')" in read.skips.first


def test_quoted_line_breaks_do_not_shift_line_numbers(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text('user_id,item_id,timestamp,note\nu,a,1,"two\nlines"\nu,,2,x\n')

    with pytest.raises(ValueError, match="line 4"):
        read_interactions(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [("{", "not JSON"), ("[1]", "not a JSON object"), ('{"user_id": 1.5, "item_id": "b"}', "user id")],
)
def test_malformed_json_lines_are_shown_or_skipped(tmp_path, line, reason):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"user_id": "u", "item_id": "a"}}\n\n{line}\n')

    with pytest.raises(ValueError, match=rf"line 3.*{reason}"):
        read_interactions(path, timestamp=None)
    read = read_interactions(path, timestamp=None, on_error="skip")
    assert (read.table["item_id"].to_pylist(), read.skips.count) == (["a"], 1)


def test_a_json_id_that_looks_like_a_date_stays_as_it_is(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"user_id": "u", "item_id": "2020-01-01", "timestamp": "2020-01-02"}) + "\n")

    table = read_interactions(path).table

    assert table.to_pylist() == [{"user_id": "u", "item_id": "2020-01-01", "timestamp": 1_577_923_200_000}]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, suffix):
    with pytest.raises(ValueError, match="no column 'buyer'; it has .*who.*Name the column with `user`"):
        read_interactions(write(tmp_path, suffix), user="buyer", item="what", timestamp="at")


def test_a_missing_time_says_how_to_do_without():
    with pytest.raises(ValueError, match="timestamp=None"):
        read_interactions(pa.table({"user_id": ["u"], "item_id": ["a"]}))


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.tsv.gz"])
def test_an_empty_file_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")

    with pytest.raises(ValueError, match=rf"{name} is empty"):
        read_interactions(tmp_path / name)


def test_a_file_without_rows_is_an_error(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n")

    with pytest.raises(ValueError, match="holds no interactions"):
        read_interactions(tmp_path / "log.csv")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".csv.gz"])
def test_lines_that_are_not_utf8_are_named_with_their_byte_or_skipped(tmp_path, suffix):
    before, line, after = b"user_id,item_id\n", b"u,x\xe9\n", b"v,b\n"
    if "json" in suffix:
        before, line, after = b"", b'{"user_id": "u", "item_id": "\xe9"}\n', b'{"user_id": "v", "item_id": "b"}\n'
    path = tmp_path / f"log{suffix}"
    path.write_bytes(gzip.compress(before + line + after) if suffix.endswith(".gz") else before + line + after)
    number = 1 + before.count(b"\n")

    with pytest.raises(ValueError, match=f"line {number} .*not UTF-8: byte 0xe9 after {line.index(0xE9)} characters"):
        read_interactions(path, timestamp=None)
    read = read_interactions(path, timestamp=None, on_error="skip")
    assert (read.table["user_id"].to_pylist(), read.skips.count) == (["v"], 1)


def test_unknown_formats_and_modes_are_refused(tmp_path):
    (tmp_path / "log.xlsx").write_bytes(b"x")

    with pytest.raises(ValueError, match=r"\.csv, \.tsv"):
        read_interactions(tmp_path / "log.xlsx")
    with pytest.raises(ValueError, match="on_error"):
        read_interactions(tmp_path / "log.xlsx", on_error="ignore")


def test_sequences_become_one_row_per_interaction(tmp_path):
    path = tmp_path / "sequences.tsv"
    path.write_text("u\ta b a\n\n9\tc\n")

    table = read_sequences(path).table

    assert table["user_id"].to_pylist() == ["u", "u", "u", "9"]
    assert table["item_id"].to_pylist() == ["a", "b", "a", "c"]
    assert table["timestamp"].null_count == 4


@pytest.mark.parametrize(
    ("line", "reason"),
    [("v", "2 fields"), ("v\t", "item id ''"), ("u\tc", "has a line already"), ("v\tc  d", "item id ''")],
)
def test_malformed_sequences_are_shown_or_skipped(tmp_path, line, reason):
    path = tmp_path / "sequences.tsv"
    path.write_text(f"u\ta b\n{line}\nw\tc\n")

    with pytest.raises(ValueError, match=rf"sequences.tsv: line 2.*{reason}"):
        read_sequences(path)
    read = read_sequences(path, on_error="skip")
    assert (read.table["item_id"].to_pylist(), read.skips.count) == (["a", "b", "c"], 1)
