"""Blocks of JSON Lines in one layout are read as they are line by line, or left to be read so."""

import json
import time

import pytest

from hf_genrec.data import text_files
from hf_genrec.data.json_lines import columns_of
from hf_genrec.data.readers import open_interactions


def read_interactions(source, **options):
    return open_interactions(source, **options).read()


COLUMNS = {"user_id": "u", "item_id": "i", "timestamp": "t"}
ROW = {"u": "a", "i": 1, "t": 7}


def lines(*rows, **options):
    return "".join(f"{json.dumps(row, ensure_ascii=False, **options)}\n" for row in rows)


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":"), (",", ": ")])
def test_values_are_the_texts_of_records_whatever_the_other_fields_hold(separators):
    others = [None, True, 'say "hi"\n\U0001f600', 1e-9, -2]
    times = [7.0, 8, -0.25, 1600000000, 10**19]
    rows = [
        {"t": t, "x": x, "u": u, "i": 12} for t, x, u in zip(times, others, ["Ä", " b", "7.0", "", "e"], strict=True)
    ]

    assert columns_of(lines(*rows, separators=separators), COLUMNS) == {
        "user_id": ["Ä", " b", "7.0", "", "e"],
        "item_id": ["12"] * 5,
        "timestamp": ["7", "8", "-0.25", "1600000000", str(10**19)],
    }


@pytest.mark.parametrize(
    "line",
    [
        "", "null", "[]", '{"u": "a", "i": 1}', '{"i": 1, "u": "a", "t": 7}', '{"u": "a", "i": 1, "t": 7, "t": 8}',
        '{"u": "a", "i": 1, "t": 7} ', '{"u": "a", "i": 1, "t": 7}{"u": "a", "i": 1, "t": 7}',
        '{"u": "a\\u00e4", "i": 1, "t": 7}', '{"u": "a\x01", "i": 1, "t": 7}', '{"u": null, "i": 1, "t": 7}',
        '{"u": "a", "i": 1.0, "t": 7}', '{"u": "a", "i": 01, "t": 7}', '{"u": "a", "i": 1, "t": 7.0.0}',
        '{"u": "a", "i": 1, "t": 0.00001}', '{"u": "a", "i": 1, "t": 1e9}', '{"u": "a", "i": 1, "t": NaN}',
        '{"u": "a", "i": 1, "t": -0.0}', '{"u": "a", "i": true, "t": 7}', '{"u": "a", "i": 1, "t": 7', '{"u": "a',
    ],
)  # fmt: skip
def test_a_line_of_another_layout_leaves_the_block_to_be_read_line_by_line(line):
    assert columns_of(lines(ROW, ROW), COLUMNS) is not None
    assert columns_of(f"{lines(ROW)}{line}\n{lines(ROW)}", COLUMNS) is None
    assert columns_of(f"{line}\n{lines(ROW)}", COLUMNS) is None


def test_a_last_line_needs_no_end():
    assert columns_of(lines(ROW, ROW)[:-1], COLUMNS)["timestamp"] == ["7", "7"]


def test_nothing_is_read_that_a_record_would_not_hold():
    assert columns_of('{"u": "a", "x": "}\\n{", "i": 1, "t": 7}\n', COLUMNS)["user_id"] == ["a"]
    assert columns_of('{"x": {"u": "no"}, "u": "a", "i": 1, "t": 7}\n', COLUMNS) is None
    assert columns_of('{"u": "a", "i": 1, "t": 7}\n', {"user_id": "u", "item_id": "u"}) is None


def test_a_hostile_line_takes_no_time():
    for text in ("\\" * 200_000, '"' * 200_000, "9" * 200_000, "\\u0041" * 40_000):
        start = time.process_time()
        columns_of(f'{lines(ROW | {"x": 1})}{{"u": "a", "i": 1, "t": 7, "x": "{text}\n', COLUMNS)
        columns_of(f'{lines(ROW | {"x": 1})}{{"u": "a", "i": 1, "t": 7, "x": {text}\n', COLUMNS)
        assert time.process_time() - start < 0.5


def test_blocks_of_one_layout_and_lines_of_others_make_one_table(tmp_path, monkeypatch):
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
    with pytest.raises(ValueError, match=r"log.jsonl: line 9 .*user id '<pad>'"):
        read_interactions(path, user="u", item="i", timestamp="t")
