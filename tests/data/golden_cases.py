"""
Logs with everything that can go wrong, made from a seed, and the sizes that a preparation of them has.

Every kind of log is written in many forms, which must all give the same; the bad lines differ from form to form.
`test_golden.py` holds what the first reader of this library made of them.
"""

import csv
import gzip
import io
import json
import random
import re
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec.data.prepare import prepare


DAY, START = 86_400_000, 1_600_000_000_000  # milliseconds
UNICODE = (
    "caf\u00e9", "cafe\u0301", "CAF\u00c9", "\U0001f375", "\uff5e", "\u65e5\u672c", "\u05e9\u05dc", "\u00df", "ss",
    "\u0130", "a\u200db", "#1", "--x", "007", "7", "07",
)  # fmt: skip
FORMS = ("csv", "tsv", "quoted.csv", "jsonl", "array.json", "csv.gz", "utf16.csv", "parquet", "table", "records")


def log_of(kind):
    """The rows of a log: user, item, milliseconds (or `None`) and rating."""
    draw = random.Random(kind)  # a seed that is a text is the same in every process
    users, items, num_rows = [f"u{n}" for n in range(9)], [f"i{n}" for n in range(13)], 150
    times = [START + draw.randrange(400) * DAY // 16 for _ in range(num_rows)]
    if kind == "one user":
        users = ["alone"]
    elif kind == "short users":
        users = [f"u{n}" for n in range(70)]
    elif kind == "numbers":
        users, items = ["-3", "0", "10", "9007199254740993", "2", "31"], [str(7**n) for n in range(12)]
    elif kind == "unicode":
        users = items = UNICODE
    elif kind == "ties":
        times = [START + draw.randrange(4) * DAY for _ in range(num_rows)]
    elif kind == "old":
        times = [draw.randrange(-8000, -4000) * DAY for _ in range(num_rows)]  # before 1970
    elif kind == "power law":
        users, items = ([f"{side}{int(draw.paretovariate(0.7))}" for _ in range(99)] for side in "ui")
    rows = [(draw.choice(users), draw.choice(items), time, draw.randrange(1, 6)) for time in times]
    if kind == "copies":
        rows = [row for row in rows[:60] for _ in range(draw.randrange(1, 4))]
        draw.shuffle(rows)
    elif kind == "no times":
        rows = [(user, item, None, rating) for user, item, _, rating in rows]
    return rows


def items_of(rows):
    """The items table in another order: one item without a text, one that is not there, one that is in no row."""
    names = sorted({item for _, item, *_ in rows}, reverse=True)
    listed = [{"item_id": name, "title": f"The {name}" if at else "", "price": at} for at, name in enumerate(names)]
    return [*listed[: len(names) // 2], *listed[len(names) // 2 + 1 :], {"item_id": "unseen", "title": "Never taken"}]


def records_of(rows, iso=False):
    """The rows as dictionaries, times as ISO 8601 where wanted."""

    def shown(time):
        return datetime.fromtimestamp(time / 1000, UTC).isoformat() if iso else time

    records = []
    for user, item, time, rating in rows:
        records.append({"user_id": user, "item_id": item, "note": "a, b", "rating": rating})
        if rows[0][2] is not None:
            records[-1]["timestamp"] = shown(time)
    return records


def write_log(rows, form, folder):
    """A log in one form: the path of a file, or what is in memory."""
    records = records_of(rows, iso=form in ("quoted.csv", "array.json"))
    if form == "records":
        return records
    if form in ("table", "parquet"):
        table = pa.Table.from_pylist(records)
        if form == "table":
            return table.set_column(0, "user_id", table["user_id"].dictionary_encode())
        pq.write_table(table, folder / "log.parquet", row_group_size=37)
        return folder / "log.parquet"
    path = folder / f"log.{form}"
    if form == "jsonl":
        text = "".join(f"{json.dumps(record)}\n" for record in records)
    elif form == "array.json":
        text = json.dumps(records, indent=1, ensure_ascii=False)
    else:
        buffer, quoting = io.StringIO(), csv.QUOTE_ALL if form == "quoted.csv" else csv.QUOTE_MINIMAL
        fields = [name for name in records[0] if form == "quoted.csv" or name != "note"]
        writer = csv.writer(buffer, delimiter="\t" if form == "tsv" else ",", quoting=quoting, lineterminator="\n")
        writer.writerows([fields, *([record[name] for name in fields] for record in records)])
        text = buffer.getvalue()
    data = text.encode("utf-16" if form == "utf16.csv" else "utf-8")
    path.write_bytes(gzip.compress(data, mtime=0) if form == "csv.gz" else data)
    return path


_BAD_FIELDS = [("u1", "i1", time, 3) for time in ("", "soon", START // 1000, START * 1000, "1e999", "9" * 30)]
_BAD_FIELDS += [("u1", "i1", START, "good"), ("u1", "i1", START, "nan"), ("", "i1", START, 3), ("a b", "i1", START, 3)]
_BAD_FIELDS += [("u1", item, START, 3) for item in ("", "<pad>", "<code_0_1>", "x\ufffd", "x\u00a0y")]
_BAD_LINES = {
    "csv": [
        b"u1,i1", b"u1,i1,3,1600000000000,more", b"\xff\xfe,i1,3,1600000000000", b'"u1,i1,3,1600000000000', b"",
        b"\x00,i1,3,4",
    ],
    "tsv": [b"u1\ti1", b"u1\ti1\t3\t1600000000000\tmore", b"\xff\ti1\t3\t1600000000000", b'"u1\ti1', b"", b" "],
    "jsonl": [
        b"{", b"[]", b"null", b"", b"\xff", b'{"user_id": "u1"}', b'{"user_id": true, "item_id": "i1"}',
        b'{"user_id": ["u1"], "item_id": "i1", "timestamp": 1600000000000, "rating": 3}',
        b'{"user_id": 1.5, "item_id": "i1", "timestamp": 1600000000000, "rating": 3}',
        b'{"user_id": "u1", "item_id": "i1", "item_id": "i2", "timestamp": 1600000000000, "rating": 3}',
    ],
}  # fmt: skip


def write_bad_log(form, folder):
    """A log between whose rows lie bad ones of every kind that the form has."""
    draw = random.Random(f"bad {form}")
    # The user "late" is named first by a bad row: that is its place among the users.
    good = [*log_of("plain"), *(("late", f"i{n}", START + n * DAY, 3) for n in range(3))]
    first = ("late", "i0", "soon", 3)
    if form in ("records", "table"):
        rows = [*good, *_BAD_FIELDS, (None, "i1", START, 3), ("u1", None, START, 3), ("u1", "i1", None, 3)]
        draw.shuffle(rows)
        records = records_of([first, *rows])
        if form == "records":
            odd = {"user_id": 2.5, "item_id": "i1", "timestamp": START, "rating": 1}
            return [*records[:50], odd, odd | {"user_id": {"a": 1}}, "no record", *records[50:]]
        names = ("user_id", "item_id", "timestamp", "rating")
        return pa.table({name: [None if row[name] is None else str(row[name]) for row in records] for name in names})
    if form == "jsonl":
        lines = [json.dumps(record).encode() for record in records_of([first, *good, *_BAD_FIELDS])]
    else:
        mark = b"\t" if form == "tsv" else b","
        columns = [(user, item, rating, time) for user, item, time, rating in [first, *good, *_BAD_FIELDS]]
        lines = [mark.join(str(field).encode() for field in row) for row in columns]
    lines = [lines[0], *draw.sample([*lines[1:], *_BAD_LINES[form]], len(lines) - 1 + len(_BAD_LINES[form]))]
    if form != "jsonl":
        lines = [mark.join([b"user_id", b"item_id", b"rating", b"timestamp"]), *lines]
    (folder / f"bad.{form}").write_bytes(b"\n".join([*lines, b""]))
    return folder / f"bad.{form}"


OPTIONS = {
    "plain": {"missing_text": "keep"},
    "pairs": {"missing_text": "keep", "deduplicate": True},
    "core": {"missing_text": "drop", "k_core": 3, "min_history": 2},
    "all": {"missing_text": "keep", "rating": "rating", "min_rating": 2, "deduplicate": True, "k_core": 2},
    "cold": {"missing_text": "keep", "cold_items": 0.25, "keep_all_items": True},
}
KINDS = ("plain", "ties", "copies", "no times", "old", "one user", "short users", "numbers", "unicode", "power law")
CASES = {  # three of the options for each kind
    f"{kind}, {option}": (kind, option)
    for at, kind in enumerate(KINDS)
    for option in (["plain", "pairs", "cold"] if kind == "one user" else [*list(OPTIONS)[at % 2 :: 2], "core"])
}

# Real data sets: files below the folder of shared data, and options.
_FILES = ("interactions", "sequences", "items")
_BEAUTY = {"sequences": "amazon2014_beauty/sequences.tsv", "items": "amazon2014_beauty/items.jsonl"}
_SCIENTIFIC = {"sequences": "amazon2018_scientific/sequences.tsv", "items": "amazon2018_scientific/items.jsonl"}
_RETAIL = {"interactions": "online_retail/interactions.csv", "items": "online_retail/items.jsonl"}
_REVIEWS = {
    "interactions": "amazon2023_all_beauty/All_Beauty.csv",
    "items": "amazon2023_all_beauty/items.jsonl",
    "item": "parent_asin",
    "rating": "rating",
}
_SAMPLES = {"items": [{"item_id": "unseen", "title": "Never taken"}], "missing_text": "keep"}
_NAMES_2014 = {"user": "reviewerID", "item": "asin", "timestamp": "unixReviewTime"}
_PUBLISHED = "amazon2023_all_beauty/benchmark_5core_last_out_w_his"
REAL_CASES = {
    "Beauty, protocol": _BEAUTY | {"protocol": "amazon2014"},
    "Beauty, cold": _BEAUTY | {"cold_items": 0.05},
    "Beauty, all": _BEAUTY | {"deduplicate": True, "k_core": 8, "min_history": 9},
    "Scientific, protocol": _SCIENTIFIC | {"protocol": "amazon2018"},
    "Scientific, cold": _SCIENTIFIC | {"k_core": 6, "cold_items": 0.1},
    "All_Beauty, protocol": _REVIEWS | {"protocol": "amazon2023"},
    "All_Beauty, rated": _REVIEWS | {"min_rating": 4, "k_core": 3},
    "All_Beauty, cold": _REVIEWS | {"cold_items": 0.05, "min_history": 5},
    "Retail, plain": _RETAIL,
    "Retail, pairs": _RETAIL | {"deduplicate": True},
    "Retail, core": _RETAIL | {"k_core": 20, "min_history": 30},
    "Retail, cold": _RETAIL | {"cold_items": 0.1, "k_core": 5},
    "Retail, file order": _RETAIL | {"timestamp": None, "k_core": 5},
    "All_Beauty, published part": _REVIEWS | {"interactions": f"{_PUBLISHED}/All_Beauty.train.csv"},
    "samples of 2014": _SAMPLES | _NAMES_2014 | {"interactions": "raw_format_samples/reviews_Beauty_5.json"},
    "samples of 2023": _SAMPLES | {"interactions": "raw_format_samples/All_Beauty.jsonl", "item": "parent_asin"},
}


def summary_of(prepared):
    """The fingerprint, users/items/interactions after every step, and the counts, as one line."""
    metadata, skipped = prepared.metadata, prepared.metadata["skipped"]
    sizes = [f"{step['num_users']}/{step['num_items']}/{step['num_interactions']}" for step in metadata["steps"]]
    parts = [prepared.fingerprint, " ".join(sizes), f"repeats {metadata['repeat_rate']:.4g}"]
    names = {"log_lines": "log", "items_lines": "items", "textless_items": "textless", "textless_interactions": "of"}
    names["users_without_evaluation"] = "short"
    parts += [f"{name} {skipped[key]}" for key, name in names.items() if skipped[key]]
    if skipped["log_first_line"]:
        parts.append(f"first {re.search('(line|row) [0-9]+', skipped['log_first_line'])[0]}")
    cold = metadata["cold_items"]
    return ", ".join(parts + ([f"cold {' '.join(str(cold[name]) for name in cold if 'num' in name)}"] if cold else []))


def prepare_case(name, form, folder, **engine):
    """A generated log in one form, prepared."""
    kind, option = CASES[name]
    rows = log_of(kind)
    arguments = OPTIONS[option] | ({"timestamp": None} if rows[0][2] is None else {})
    log = write_log(rows, form, folder)
    return prepare(folder / "data", interactions=log, items=items_of(rows), **arguments, **engine)


def prepare_bad(form, folder, **engine):
    """A log with bad lines, which are skipped."""
    reading = {"rating": "rating", "on_error": "skip", "missing_text": "keep"}
    log = write_bad_log(form, folder)
    return prepare(folder / "data", interactions=log, items=items_of(log_of("plain")), **reading, **engine)


def prepare_real(name, shared_data, output_dir, **engine):
    """A real data set, prepared."""
    arguments = REAL_CASES[name]
    files = {key: shared_data / value for key, value in arguments.items() if key in _FILES and isinstance(value, str)}
    return prepare(output_dir, **arguments | files, **engine)
