"""
Every reader survives any bytes: rows, or an error that names the file; no line is lost without being counted.

`make fuzz` runs the same properties over many more inputs and counts them: see `fuzz_readers.py`.
"""

import gzip
import json
import os
import re
import shutil
import time
import zipfile
from functools import cache, partial

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_genrec.data import native, readers, text_files
from hf_genrec.data.item_readers import read_items
from hf_genrec.data.prepare import prepare
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.readers import open_interactions, open_sequences
from hf_genrec.data.sources import amazon
from hf_genrec.data.sources.movielens import read_movielens
from hf_genrec.data.text_files import Skips, TextFile


def read_interactions(source, **options):
    return open_interactions(source, **options).read()


def read_sequences(path, **options):
    return open_sequences(path, **options).read()


NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=NUM_EXAMPLES or 12,
    derandomize=not NUM_EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SECONDS = 2  # for a small file, whatever is in it

ROWS = [
    (f"u{user}", f"i{(3 * user + place) % 5}", 1_600_000_000 + 60 * place) for user in range(4) for place in range(4)
]
LOG = [dict(zip(("user_id", "item_id", "timestamp"), row, strict=True)) for row in ROWS]
ITEMS = [
    {"item_id": f"i{n}", "title": f"Caf\u00e9 <b>{n}</b>", "categories": [["A", "B"]], "price": 1.5} for n in range(5)
]
REVIEWS = [{"reviewerID": u, "asin": i, "overall": 5.0, "unixReviewTime": t} for u, i, t in ROWS]
RAW = [{"user_id": u, "parent_asin": i, "rating": 5.0, "timestamp": 1000 * t, "text": "good"} for u, i, t in ROWS]
META = [
    {"parent_asin": f"i{n}", "title": f"T{n}", "features": ["a"], "details": {"Size": "L"}, "price": "2"}
    for n in range(5)
]


def delimited(rows, mark):
    lines = [mark.join(map(str, row)) for row in rows]
    return "\n".join([mark.join(["user_id", "item_id", "timestamp"]), *lines, ""]).encode()


def json_lines(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


QUOTED = (
    b'user_id,item_id,timestamp,note\nu,i1,1600000000,"two\nlines, ""x"""\nv,i2,1600000060,"y"\nw,i3,1600000120,z\n'
)
SEQUENCES = b"u\ti0 i1 i2 i3\nv\ti1 i2\nw\ti4\nx\ti0 i0 i3\n"
BENCHMARK = b"user_id,parent_asin,rating,timestamp,history\nu,i1,5.0,1600000000000,\nu,i2,5.0,1600000000001,i1\n"
TOKENS = [
    b"null", b"[", b"]", b"{", b"}", b'"', b'""', b"'", b"\\", b"\\ud83d", b"\\u0000", b"\xff", b"\xc3", b"\x00",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\n", b"\r\n", b"\n\n", b"\xc2\x85", b"\xe2\x80\xa8", b"\x1f\x8b",
    b"PAR1", b"9" * 5000, b"1e999", b"-Infinity", b"NaN", b"1+", b"-", b"<!--", b"-->", b"&#9", b"<code_0_0>",
    b"<pad>", b",", b"\t", b";", b" ", b":", b"150000000000", b"2" * 20, b"1600000000000",
    b"2019-10-01 00:00:00 UTC", b"2019-10-01", b"now", b"True", b"user_id", b"item_id", b"asin", b"0", b"\x85",
    b"\x1c",
]  # fmt: skip

# (kind, place from 0 to 1, token or bytes, length or number of repetitions)
MUTATION = st.tuples(
    st.sampled_from(["insert", "replace", "delete", "repeat", "copy", "cut", "flip", "line"]),
    st.floats(0, 1),
    st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=6)),
    st.sampled_from([1, 2, 5, 40, 1000]),
)
MUTATIONS = st.lists(MUTATION, min_size=1, max_size=4)
PACKINGS = st.sampled_from(["plain", "plain", "plain", "gzip", "gzip, then changed", "UTF-16"])


def mutated(content, mutations):
    for kind, place, token, number in mutations:
        at = int(place * len(content))
        if kind == "insert":
            content = content[:at] + token + content[at:]
        elif kind == "replace":
            content = content[:at] + token + content[at + len(token) :]
        elif kind == "delete":
            content = content[:at] + content[at + number :]
        elif kind == "repeat":
            content = content[:at] + token * min(number, 20_000 // len(token)) + content[at:]
        elif kind == "copy":
            content = content[:at] + content[at : at + number] + content[at:]
        elif kind == "cut":
            content = content[:at]
        elif kind == "flip" and content:
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([content[at] ^ token[0]]) + content[at + 1 :]
        elif kind == "line":
            lines = content.split(b"\n")
            content = b"\n".join([*lines[: int(place * len(lines))], token, *lines[int(place * len(lines)) :]])
    return content


def packed(content, mutations, packing):
    if packing == "gzip, then changed":
        return mutated(gzip.compress(content, mtime=0), mutations)
    content = mutated(content, mutations)
    if packing == "gzip":
        return gzip.compress(content, mtime=0)
    return content.decode(errors="replace").encode("utf-16") if packing == "UTF-16" else content


def outcome(read, path):
    """What a reader returned, or its error, which must name the file and be one of a user's."""
    start = time.process_time()
    result = error = None
    try:
        result = read(path)
    except (ValueError, OSError) as raised:
        error = str(raised)
    assert time.process_time() - start < SECONDS
    assert error is None or (path.parent.name in error and len(error) < 1500 + len(str(path))), error
    return result, error


def check_reader(read, path):
    """Both modes agree; returns how many rows and how many skipped lines there were, or `None`."""
    strict, _ = outcome(partial(read, on_error="raise"), path)
    lax, _ = outcome(partial(read, on_error="skip"), path)
    if strict is not None:
        assert strict.skips.count == 0
        assert lax.table.equals(strict.table)
    if lax is None:
        return None
    assert (lax.skips.count > 0) == (strict is None) == (lax.skips.first is not None)
    lax.table.validate(full=True)
    return lax.table.num_rows + lax.skips.count


def lines_in(path):
    """The lines that are not blank, counted without the library."""
    content = path.read_bytes()
    content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="replace")
    return [line for line in re.split("\r\n|\r|\n", text) if line.strip()]


LOGS = {
    ".csv": delimited(ROWS, ","),
    ".tsv": delimited(ROWS, "\t"),
    ".jsonl": json_lines(LOG),
    ".json": json.dumps(LOG, indent=1).encode(),
    ".parquet": parquet(LOG),
    ".quoted.csv": QUOTED,
    ".sequences": SEQUENCES,
}
CATALOGS = {
    ".csv": b'item_id,title\ni0,"Cup, big"\ni1,"two\nlines"\ni2,Ball\n',
    ".tsv": b"item_id\ttitle\ni0\tCup\ni1\tBall\n",
    ".jsonl": json_lines(ITEMS),
    ".array.json": json.dumps(ITEMS).encode(),
    ".keyed.json": json.dumps({item["item_id"]: item for item in ITEMS}, indent=1).encode(),
    ".parquet": parquet(ITEMS),
}


AMAZON = {
    "reviews": json_lines(REVIEWS),
    "meta": "".join(f"{{'asin': 'i{n}', 'title': \"It's {n}\", 'price': 1.5}}\n" for n in range(4)).encode(),
    "raw_review": json_lines(RAW),
    "raw_meta": json_lines(META),
    "5core_last_out_w_his": BENCHMARK,
}


def check_log(path, suffix, content):
    """The properties of a log; where a line is a record, every line is a row or counted."""
    path.write_bytes(content)
    number = check_reader(read_sequences if suffix == ".sequences" else read_interactions, path)
    if number is not None and suffix in (".csv", ".tsv", ".jsonl"):
        lines = lines_in(path)
        if suffix != ".csv" or '"' not in "".join(lines):
            assert number == len(lines) - (suffix != ".jsonl")
    if number is not None and suffix.endswith(("sv", ".jsonl")):
        check_the_quick_way(path, {".tsv": "\t", ".jsonl": None}.get(suffix, ","))


def check_the_quick_way(path, delimiter):
    """Files without a doubt hold for DuckDB what they hold line by line; blocks of JSON Lines, too."""
    columns = {name: name for name in LOG[0]}
    found = []
    with pytest.MonkeyPatch.context() as small:
        small.setattr(text_files, "_BLOCK", 200)
        small.setattr(native, "_LEAST", 0)
        try:
            file = TextFile(path, delimiter=delimiter)
            readers.require_columns(file.header or list(columns), columns, "log")
        except ValueError:
            return
        for read in (native.plain_rows, lambda *_: None):
            small.setattr(readers, "plain_rows", read)
            skips = Skips("skip")
            try:
                opened = readers._open(path, columns, skips, delimiter, allow_huge=False)
            except ValueError as error:
                found.append(str(error).replace(str(path), "log"))
                continue
            table = pa.concat_tables([*opened.scan(columns)] or [pa.table({name: [] for name in columns})])
            places = [opened.place_of(row) for row in range(min(table.num_rows, 2))]
            found.append(
                (
                    table.select(list(columns)).cast(pa.schema({n: pa.string() for n in columns})).to_pylist(),
                    places,
                    skips.count,
                    skips.first,
                )
            )
    assert found[0] == found[1]


def check_items(path, suffix, content):
    """The properties of an items table."""
    path.write_bytes(content)
    number = check_reader(read_items, path)
    if number is not None and suffix == ".jsonl":
        assert number == len(lines_in(path))


@cache
def schema_of(kind):
    return datasets.Features(amazon._columns_of(kind)).arrow_schema


def check_amazon(path, kind, content):
    """The properties of Amazon's files: rows that fit the schema of the data set."""
    path.write_bytes(content)
    for mode in ("raise", "skip"):
        rows, _ = outcome(lambda path, mode=mode: list(amazon._records(str(path), kind, mode)), path)
        pa.Table.from_pylist(rows or [], schema=schema_of(kind))


KINDS = [(check_log, LOGS), (check_items, CATALOGS), (check_amazon, AMAZON)]


@pytest.mark.parametrize(
    ("check", "kind", "content"), [(check, kind, made[kind]) for check, made in KINDS for kind in made]
)
def test_a_file_of_any_bytes_is_read_or_named_and_no_line_is_lost(tmp_path, check, kind, content):
    path = tmp_path / f"file{kind if kind.startswith('.') else '.json'}"

    @fuzz
    @given(mutations=MUTATIONS, packing=PACKINGS)
    def run(mutations, packing):
        check(path, kind, packed(content, mutations, packing))

    run()


def check_movielens(folder, name, mutations):
    """The properties of MovieLens: one damaged file of a folder, or the damaged archive."""
    folder = folder / "ml-100k"
    folder.mkdir(exist_ok=True)
    item = "|".join(["1", "Barn (1971)", "", "", "", "1", *["0"] * 18])
    (folder / "u.data").write_text("1\t1\t5\t881250949\n2\t1\t4\t881250950\n")
    (folder / "u.item").write_text(f"{item}\n{item}\n")
    archive = folder / "ml-100k.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for inner in ("u.data", "u.item"):
            file.write(folder / inner, f"ml-100k/{inner}")
    (folder / name).write_bytes(mutated((folder / name).read_bytes(), mutations))

    outcome(read_movielens, archive if name == archive.name else folder)


FILMS = ["u.data", "u.item", "ml-100k.zip"]


@fuzz
@given(mutations=MUTATIONS, name=st.sampled_from(FILMS))
def test_movielens_of_any_bytes_is_read_or_named(tmp_path_factory, mutations, name):
    check_movielens(tmp_path_factory.mktemp("films"), name, mutations)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("prepared") / "data", interactions=LOG, items=ITEMS, cold_items=0.2)


def check_prepared(prepared, folder, name, mutations):
    """A folder with one damaged file is what it was, or refused."""
    shutil.copytree(prepared.folder, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(mutated((folder / name).read_bytes(), mutations))

    def read(folder):
        loaded = PreparedDataset.load(folder)
        return (
            [loaded.split(split).to_list() for split in ("train", "validation", "test")],
            loaded.item_ids,
            loaded.items,
        )

    found, _ = outcome(read, folder)
    if found is not None:
        assert found[0] == [prepared.split(split).to_list() for split in ("train", "validation", "test")]
        assert found[1] == prepared.item_ids


@fuzz
@given(data=st.data(), mutations=MUTATIONS)
def test_a_prepared_folder_of_any_bytes_is_read_as_it_was_or_named(prepared, tmp_path_factory, data, mutations):
    names = sorted(path.name for path in prepared.folder.iterdir())
    check_prepared(prepared, tmp_path_factory.mktemp("copy") / "data", data.draw(st.sampled_from(names)), mutations)


TYPES = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.int8(), pa.int64(), pa.uint64(),
    pa.float16(), pa.float64(), pa.bool_(), pa.null(), pa.date32(), pa.date64(), pa.time64("us"), pa.duration("s"),
    pa.decimal128(20, 2), pa.list_(pa.int64()), pa.struct([("a", pa.int64())]), pa.timestamp("s"),
    pa.timestamp("ns", "Europe/Berlin"), pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.int64()), pa.list_(pa.string()), pa.map_(pa.string(), pa.int64()),
]  # fmt: skip
VALUES = [
    None,
    0,
    1,
    -1,
    7.0,
    1.5,
    float("nan"),
    float("inf"),
    2**63 - 1,
    2**64 - 1,
    1_600_000_000,
    1_600_000_000_000,
    True,
]
VALUES += [
    "",
    "a",
    " b",
    "7",
    "2020-01-01",
    "<eos>",
    "caf\u00e9",
    "1e999",
    b"\xff",
    [1],
    ["x"],
    {"a": 1},
    np.float32(2),
    pd.NaT,
]
VALUES += [pd.Timestamp("2020-01-01"), 10**5000, "\ud83d"]
SMALL = st.lists(st.sampled_from(VALUES), min_size=3, max_size=3)


@fuzz
@given(
    columns=st.lists(st.tuples(st.sampled_from([None, *TYPES]), SMALL), min_size=4, max_size=4), as_list=st.booleans()
)
def test_a_table_of_any_types_is_read_or_refused(columns, as_list):
    names = ("user_id", "item_id", "timestamp", "rating")
    arrays = []
    for kind, values in columns:
        try:
            arrays.append(pa.array(values) if kind is None else pa.array(values).cast(kind))
        except (pa.ArrowException, ValueError, OverflowError):
            arrays.append(pa.nulls(3, kind or pa.null()))
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(values for _, values in columns), strict=True)]
    source = rows if as_list else pa.table(arrays, names=names)

    for read in (partial(read_interactions, rating="rating"), read_items):
        for mode in ("raise", "skip"):
            found = error = None
            try:
                found = read(source, on_error=mode)
            except ValueError as raised:
                error = str(raised)
            assert len(error) < 1500 if error else found.table.num_rows + found.skips.count == 3


def check_prepare(folder, log, items, times, k_core):
    """What `prepare` makes of a damaged log and a damaged items table: a sound folder or an error and no folder."""
    (folder / "log.jsonl").write_bytes(mutated(LOGS[".jsonl"], log))
    (folder / "items.jsonl").write_bytes(mutated(CATALOGS[".jsonl"], items))
    try:
        made = prepare(
            folder / "data",
            interactions=folder / "log.jsonl",
            items=folder / "items.jsonl",
            timestamp="timestamp" if times else None,
            on_error="skip",
            missing_text="keep",
            k_core=k_core,
        )
    except ValueError:
        assert not (folder / "data").exists()
    else:
        loaded = PreparedDataset.load(made.folder)
        assert loaded.split("train").num_rows <= loaded.metadata["statistics"]["num_users"]
        assert not any("" == text for text in loaded.items["text"].to_pylist())


@fuzz
@given(log=MUTATIONS, items=MUTATIONS, times=st.booleans(), k_core=st.integers(0, 2))
def test_whatever_is_read_becomes_a_sound_folder_or_an_error(tmp_path_factory, log, items, times, k_core):
    check_prepare(tmp_path_factory.mktemp("all"), log, items, times, k_core)
