"""Text files: whatever the bytes are, each line is read, counted or named, in linear time."""

import bz2
import csv
import gzip
import json
import random
import time

import pytest

from hf_genrec.data import text_files
from hf_genrec.data.text_files import Skips, TextFile


def rows_of(path, **options):
    """Fields and errors of a delimited file, by line."""
    found = {}
    for record in TextFile(path, delimiter=",", **options).records():
        found[record.number] = list(record.values.values()) if record.values is not None else record.error
    return found


def write(folder, content, name="log.csv"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


@pytest.mark.parametrize("encode", [lambda text: text.encode("utf-8-sig"), lambda text: text.encode("utf-16")])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_encodings_packing_and_line_ends_do_no_harm_whatever_the_name(tmp_path, encode, pack, end):
    path = write(tmp_path, pack(encode(end.join(["a,b", "1,\u82b1", '"x",y', ""]))), "log.CSV")

    assert rows_of(path) == {2: ["1", "\u82b1"], 3: ["x", "y"]}


def test_a_quoted_field_may_hold_line_ends_and_marks(tmp_path):
    path = write(tmp_path, 'a,b\n1,"two\n\n""lines"""\n\n2,5" pipe\n3,"a"b\n')

    assert rows_of(path) == {2: ["1", 'two\n\n"lines"'], 6: ["2", '5" pipe'], 7: ["3", "ab"]}


@pytest.mark.parametrize("opened", ['2,"open', '2,"open, and more', '"2,open', '2,"o","p'])
@pytest.mark.parametrize("later", ["3,x", '3,"x"', '"3",x', '3,"two\nlines"'])
def test_a_quote_that_nothing_closes_takes_its_own_line_only(tmp_path, opened, later):
    path = write(tmp_path, f"a,b\n1,x\n{opened}\n{later}\n4,y\n")

    rows = rows_of(path)

    assert rows[3] == "a quotation mark opens a field and nothing closes it"
    assert [rows[2], rows[4][0], rows[max(rows)]] == [["1", "x"], "3", ["4", "y"]]


def test_a_row_of_the_wrong_length_is_one_row_however_many_lines_it_has(tmp_path):
    text = f'a,b\n1,"two\n{"y" * 200_000}\nlines",extra\n2,x\n"three\r\nlines"\n3,y\n4,"a\n\udcffb"\n5,z\n'
    path = write(tmp_path, text.encode(errors="surrogateescape"))

    assert rows_of(path) == {
        2: "malformed, expected 2 fields, found 3",
        5: ["2", "x"],
        6: "malformed, expected 2 fields, found 1",
        8: ["3", "y"],
        10: "not UTF-8: byte 0xff after 0 characters; convert the file first",
        11: ["5", "z"],
    }


def test_rows_that_the_csv_module_wrote_are_the_rows_that_are_read(tmp_path):
    randomness, path = random.Random(5), tmp_path / "log.csv"
    parts = ["a", " ", ",", '"', "\n", "\n\n", "\u2028", "'", "\t", "x,y"]
    rows = [["".join(randomness.choices(parts, k=randomness.randrange(5))) for _ in range(3)] for _ in range(400)]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c"], *rows])

    found = [record.values for record in TextFile(path, delimiter=",").records()]

    assert found == [dict(zip("abc", row, strict=True)) for row in rows]


@pytest.mark.parametrize("line", ['x"y,"b', 'a","b', '"', '""', '"""', ',"', '"a', "a,b", "[", "{", '{"a":'])
@pytest.mark.parametrize("delimiter", [",", None])
def test_no_line_that_comes_again_and_again_takes_more_than_linear_time(tmp_path, line, delimiter):
    path = write(tmp_path, "a,b\n" + f"{line}\n" * 6_000)
    start = time.process_time()

    number = sum(1 for _ in TextFile(path, delimiter=delimiter).records())

    assert number >= 2_800
    assert time.process_time() - start < 1


def test_a_line_that_is_too_long_is_named_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_LINE", 1000)
    path = write(tmp_path, "a,b\n1,x\n" + "y" * 5000 + "\n" + "z" * 997 + ",z\n")

    rows = rows_of(path)

    assert rows[2] == ["1", "x"]
    assert rows[3] == "longer than 1,000 characters; pass `allow_huge=True` to read it"
    assert rows[4] == ["z" * 997, "z"]
    assert rows_of(path, allow_huge=True)[3] == "malformed, expected 2 fields, found 1"


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused_unless_it_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "ALWAYS_ALLOWED", 1000)
    path = write(tmp_path, gzip.compress(b"a,b\n" + b"1,x\n" * 20_000))

    with pytest.raises(ValueError, match=r"log.csv unpacks to .* bytes, more than 200 times .*`allow_huge=True`"):
        rows_of(path)
    assert len(rows_of(path, allow_huge=True)) == 20_000


def test_cut_and_flipped_gzip_is_damaged_with_its_name(tmp_path):
    packed = bytearray(gzip.compress(b"a,b\n" + bytes(range(65, 91)) * 100))
    cut = write(tmp_path, bytes(packed[: len(packed) // 2]), "cut.csv.gz")
    packed[len(packed) // 2] ^= 0xFF
    flipped = write(tmp_path, bytes(packed), "flipped.csv")

    for path in (cut, flipped):
        with pytest.raises(ValueError, match=rf"{path.name} is damaged or incomplete .*: fetch or pack it again"):
            rows_of(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (bz2.compress(b"a,b\n"), "a bzip2 archive"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"PAR1....", "a Parquet file"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, content, kind):
    with pytest.raises(ValueError, match=f"log.csv is {kind}.*not text"):
        rows_of(write(tmp_path, content))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n", gzip.compress(b"", mtime=0)])
def test_a_file_without_any_line_is_empty(tmp_path, content):
    with pytest.raises(ValueError, match="log.csv is empty"):
        rows_of(write(tmp_path, content))


def test_a_column_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="log.csv has several columns called 'a'"):
        rows_of(write(tmp_path, "a,b,a\n1,2,3\n"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": 1} {"a": 2}', "not JSON, Extra data"),
        ('{"a": 1, "a": 2}', "the key 'a' comes twice"),
        ('{"b": {"a": 1, "a": 2}}', "the key 'a' comes twice"),
        ('{"a":', "not JSON, Expecting value"),
        ('{"a": "\udc80"}', "not UTF-8: byte 0x80 after 7 characters"),
        ('{"a": ' + "9" * 5000 + "}", "an integer of more than 4,300 digits"),
        ('{"a": ' + "[" * 150 + "]" * 150 + "}", "nested too deeply"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ("[1]", "not a JSON object"),
        ("null", "not a JSON object"),
    ],
)
def test_a_line_that_is_no_json_object_has_a_reason(tmp_path, line, reason):
    path = write(tmp_path, f'{{"a": 0}}\n{line}\n{{"a": 2}}\n'.encode(errors="surrogateescape"), "log.jsonl")

    records = list(TextFile(path).records())

    assert [record.values for record in records] == [{"a": 0}, None, {"a": 2}]
    assert records[1].error.startswith(reason.replace("\\\\", "\\"))
    assert len(records[1].shown) < 500


def test_half_a_character_becomes_a_broken_one_and_a_whole_pair_stays(tmp_path):
    path = write(tmp_path, '{"a": "cut \\ud83d"}\n{"a": "\\ud83d\\ude00"}\n', "log.jsonl")

    assert [record.values for record in TextFile(path).records()] == [{"a": "cut \ufffd"}, {"a": "\U0001f600"}]


@pytest.mark.parametrize("indent", [None, 2])
def test_one_array_of_objects_and_one_object_of_objects_are_read_like_lines(tmp_path, indent):
    rows = [{"id": "x", "a": 1}, {"id": "y", "a": 2}]
    array = write(tmp_path, json.dumps(rows, indent=indent), "array.json")
    keyed = write(tmp_path, json.dumps({row["id"]: {"a": row["a"]} for row in rows}, indent=indent), "keyed.json")

    assert [record.values for record in TextFile(array).records()] == rows
    assert [record.values for record in TextFile(keyed).records(key="id")] == rows
    assert [record.place for record in TextFile(array).records()] == [f"{array}: record {row}" for row in (1, 2)]


def test_one_object_that_is_no_table_says_what_is_expected(tmp_path):
    path = write(tmp_path, "{\n" + ",\n".join(f'"{row}": ["a"]' for row in range(1000)) + "}", "log.json")

    with pytest.raises(
        ValueError, match=r"holds one JSON object with the keys '0', .*\(1,000 in all\); expected is one"
    ):
        list(TextFile(path).records(key="id"))


def test_skipped_lines_are_counted_and_reported_once(caplog):
    skips = Skips("skip")
    skips.add("log.csv: line 3", "malformed")
    skips.add("log.csv: line 9", "empty", number=4)

    skips.report("the log")

    assert (skips.count, skips.first) == (5, "log.csv: line 3: malformed.")
    assert caplog.messages == ["5 lines of the log were skipped, the first: log.csv: line 3: malformed."]
    with pytest.raises(ValueError, match=r'line 3: malformed. Pass `on_error="skip"`'):
        Skips("raise").add("log.csv: line 3", "malformed")
