"""Files are read by DuckDB and Arrow as they are line by line, or left to be read so."""

import json
import time

import pytest

from hf_genrec.data import native, text_files
from hf_genrec.data.native import plain_rows
from hf_genrec.data.readers import open_interactions
from hf_genrec.data.text_files import TextFile


def read_interactions(source, **options):
    return open_interactions(source, **options).read()


COLUMNS = {"user_id": "u", "item_id": "i", "timestamp": "t"}
ROW = {"u": "a", "i": 1, "t": 7}


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """What is read the quick way of a text: a list per field, or `None`."""
    monkeypatch.setattr(native, "_LEAST", 0)

    def read(text, columns=COLUMNS):
        path = tmp_path / "log.jsonl"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        spool, fields = plain_rows(TextFile(path), columns), [*columns.values()]
        tables = None if spool is None else [batch.to_pydict() for batch in spool.batches(fields, 1)]
        return None if tables is None else {name: sum((one[name] for one in tables), []) for name in fields}

    return read


def lines(*rows, **options):
    return "".join(f"{json.dumps(row, ensure_ascii=False, **options)}\n" for row in rows)


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":"), (",", ": ")])
def test_values_are_the_texts_of_records_whatever_the_other_fields_hold(quick, separators):
    users, others = ["\u00c4", " b", "7.0", "", "e\U0001f600"], ['say "hi"\n\U0001f600', "", None, "2", "2020-01-01"]
    rows = [
        {"t": time, "x": other, "y": {"z": [number, None]}, "u": user, "i": 12 - number, "w": number % 2 == 0}
        for number, (time, other, user) in enumerate(zip([7.0, 8, -0.25, 1.6e9, -0.0], others, users, strict=True))
    ]

    assert quick("\ufeff" + lines(*rows, separators=separators).replace("\n", "\r\n")) == {
        "u": users,
        "i": ["12", "11", "10", "9", "8"],
        "t": ["7", "8", "-0.25", "1600000000", "0"],
    }


def test_values_may_be_missing_and_fields_in_any_order(quick):
    found = quick(
        '{"u": "a", "i": 1, "t": 7}\n{"t": 8, "i": null}\n {"x": 1, "i": -0, "u": "\\u00e4\\ud83d\\ude00"} \n'
    )

    assert found is None  # a line that does not begin with its object leaves a doubt
    assert quick('{"u": "a", "i": 1, "t": 7}\n{"t": 8, "i": null}\n{"i": -0, "u": "\\u00e4\\ud83d\\ude00"}') == {
        "u": ["a", None, "\u00e4\U0001f600"],
        "i": ["1", None, "0"],
        "t": ["7", "8", None],
    }


@pytest.mark.parametrize(
    "line",
    [
        "", "null", "[]", '{"u": "a", "i": 1, "t": 7, "t": 8}', '{"u": "a", "i": 1, "t": 7, "x": 1, "x": 2}',
        '{"u": "a", "i": 1, "t": 7, "x": {"y": 1, "y": 2}}', '{"u": "a", "i": 1, "t": 7, "\\u0075": "b"}',
        '{"u": "a", "i": 1, "t": 7}{"u": "a", "i": 1, "t": 7}', '{"u": "a", "i": 1, "t": 7}\r{"u": "a"}',
        '{"u": "a", "i": 1,\r"t": 7}', '{"u": "a", "i": 1,\n"t": 7}', '{"u": "a", "i": 1,\n"t": 7}{"u": "b"}',
        '{"u": "a\x01", "i": 1, "t": 7}', '{"u": "a\\ud83d", "i": 1, "t": 7}', '{"u": "a", "i": 1, "t": 7, "\x00": 1}',
        '{"u": "a", "i": 1.0, "t": 7}', '{"u": "a", "i": 01, "t": 7}', '{"u": "a", "i": 1, "t": 7.0.0}',
        '{"u": "a", "i": 1, "t": NaN}', '{"u": "a", "i": 1, "t": 10000000000000000000}',
        '{"u": "a", "i": true, "t": 7}', '{"u": 1, "i": 1, "t": 7}', '{"u": "a", "i": 1, "t": 7', '{"u": "a',
        '{"u": "a", "i": 1, "t": 7, "x": ' + "9" * 4301 + "}", '{"x": ' + "[" * 101 + "]" * 101 + "}",
        b'{"u": "a", "i": 1, "t": 7, "\xff": 1}',
    ],
)  # fmt: skip
def test_a_line_that_leaves_a_doubt_leaves_the_file_to_be_read_line_by_line(quick, line):
    line = line if isinstance(line, bytes) else line.encode()
    good = lines(ROW).encode()

    assert quick(good + good) == {"u": ["a", "a"], "i": ["1", "1"], "t": ["7", "7"]}
    assert quick(good + line + b"\n" + good) is None
    assert quick(line + b"\n" + good) is None


@pytest.mark.parametrize("number", ["1e-5", "123456789012345680000.0", "NaN", "Infinity"])
def test_a_float_that_records_would_write_in_another_way_leaves_a_doubt(quick, number):
    assert quick('{"t": 0.25}\n{"t": 0.0}\n', {"timestamp": "t"}) == {"t": ["0.25", "0"]}
    assert quick(f'{{"t": 0.25}}\n{{"t": {number}}}\n', {"timestamp": "t"}) is None


def test_nothing_is_read_that_a_record_would_not_hold(quick):
    assert quick('{"u": "a", "x": "}\\n{", "i": 1, "t": 7}\n')["u"] == ["a"]
    assert quick('{"x": {"u": "no"}, "u": "a", "i": 1, "t": 7}\n')["u"] == ["a"]
    assert quick('{"x": {"u": "no"}, "i": 1, "t": 7}\n') is None
    assert quick('{"u": ["a"], "i": 1, "t": 7}\n') is None


def test_a_hostile_line_takes_no_time(quick):
    for text in ("\\" * 200_000, '"' * 200_000, "9" * 200_000, "\\u0041" * 40_000, "[" * 200_000, '{"x":' * 40_000):
        start = time.process_time()
        assert quick(f'{lines(ROW | {"x": 1})}{{"u": "a", "i": 1, "t": 7, "x": "{text}\n') is None
        assert quick(f'{lines(ROW | {"x": 1})}{{"u": "a", "i": 1, "t": 7, "x": {text}\n') is None
        assert time.process_time() - start < 0.5


def test_keys_without_end_take_no_time_and_no_memory(quick):
    start = time.process_time()
    for key in ('"k%d"', '"k%d" ', '"k%d\\"t"'):
        assert quick("".join(f'{{"u": "a", "i": 1, "t": 7, {key % n}: 1}}\n' for n in range(20_000))) is None
    wide = "{" + ", ".join(f'"k{n}": [{n}]' for n in range(20_000)) + "}"
    assert quick(lines(ROW) + wide) is quick(wide) is None
    assert len(quick("".join(f'{{"u": "a", "i": 1, "t": 7, "k{n % 9}" : 1}}\n' for n in range(20_000)))["u"]) == 20_000
    assert time.process_time() - start < 1


@pytest.mark.parametrize("line", ["null", "[]", "7", "{", "}", '{"u": "a"} 1'])
def test_a_block_of_one_odd_line_leaves_a_doubt(quick, monkeypatch, line):
    monkeypatch.setattr(text_files, "_BLOCK", 10)

    assert quick(f"{lines(ROW, ROW)}{line}\n{lines(ROW)}") is quick(f"{lines(ROW, ROW)}{line}") is None


def test_other_fields_may_hold_more_later_than_in_the_first_lines(quick):
    first = [ROW | {"x": 1, "y": "2020-01-01", "z": [{"a": 2, "b": "2020-01-01 12:00:00"}]}] * 100

    assert len(quick(lines(*first, ROW | {"x": 1.5, "y": "b", "z": [{"a": 1e9}, {"b": "c"}]}))["u"]) == 101
    assert quick(lines(*first, ROW | {"x": "1"})) is None
    assert quick(lines(*first, ROW | {"w": 1})) is None


def test_a_file_of_several_blocks_is_one_table_with_and_without_a_doubt_in_one_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_LEAST", 0)
    monkeypatch.setattr(text_files, "_BLOCK", 200)
    path, odd = tmp_path / "log.jsonl", {7: "{", 30: '{"i": "x", "t": 5, "u": "late"}', 41: "", 55: '{"u": "\udc80"}'}
    texts = [odd.get(n, f'{{"u": "u{n}", "i": {n}, "t": {n}}}') for n in range(60)]
    path.write_bytes("\r\n".join(texts).encode(errors="surrogateescape"))

    found = read_interactions(path, user="u", item="i", timestamp="t", on_error="skip")

    assert found.table["user_id"].to_pylist() == [
        "late" if n == 30 else f"u{n}" for n in range(60) if n not in (7, 41, 55)
    ]
    assert (found.skips.count, found.skips.first.partition("log.jsonl: ")[2][:6]) == (2, "line 8")
    texts[50] = '{"u": "<pad>", "i": 50, "t": 50}'
    path.write_text("\n".join(texts[42:55]), encoding="utf-8")
    assert plain_rows(TextFile(path), COLUMNS).num_rows == 13
    with pytest.raises(ValueError, match=r"log.jsonl: line 9 .*user id '<pad>'"):
        read_interactions(path, user="u", item="i", timestamp="t")


@pytest.mark.parametrize("field", [' "x"', '"x" ', '"x"  ', '"x" "y"', '"x""" ', ' """x"'])
@pytest.mark.parametrize("row", ["{},1", "1,{}"])
def test_blanks_beside_a_quoted_field_leave_a_doubt(tmp_path, monkeypatch, field, row):
    monkeypatch.setattr(native, "_LEAST", 0)
    columns, path = {"user_id": "u", "item_id": "i"}, tmp_path / "log.csv"

    for text, is_read in ((row.format(field), False), ('"say, ""hi"" , x",1', True)):
        for end in ("", "\n2,3\n"):
            path.write_text(f"u,i\n{text}{end}", encoding="utf-8")
            assert (plain_rows(TextFile(path, delimiter=","), columns) is not None) == is_read


def test_blank_lines_before_a_header_make_no_row_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_LEAST", 0)
    (tmp_path / "log.csv").write_text("\n \nu,i\na,x\nb,y\n", encoding="utf-8")

    found = read_interactions(tmp_path / "log.csv", user="u", item="i", timestamp=None)

    assert found.table["user_id"].to_pylist() == ["a", "b"]
