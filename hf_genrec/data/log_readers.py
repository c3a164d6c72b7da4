"""
Files in, tables out: interaction logs, ready-made sequences and items tables in any of the usual formats.

Every reader returns a [`ReadTable`]: ids are strings, timestamps are `int64` milliseconds since the epoch, and what
was skipped is counted. Formats are told by the file name: `.csv`, `.tsv`, `.parquet`, `.jsonl` (`.json`, `.ndjson`),
the text formats also with `.gz` behind. Text is UTF-8. A `.tsv` file has no quoting; a `.csv` file may quote with `"`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from hf_genrec.data.text_files import (
    SHOWN,
    SKIP_HINT,
    OnError,
    check_not_empty,
    check_on_error,
    check_utf8,
    csv_header,
    format_of,
    numbered_lines,
    parse_json_line,
    place_in_csv,
    place_in_lines,
)


Source: TypeAlias = str | os.PathLike[str] | pa.Table | pd.DataFrame

SPECIAL_TOKENS = ("<pad>", "<unk>", "<eos>", "<user>")
ID_RULE = f"is empty, holds whitespace or is a special token ({', '.join(SPECIAL_TOKENS)})"
SECONDS_BELOW = 1e11  # a column of times whose largest number is below this holds seconds (up to the year 5138)
_BAD_ID = r"[\s\x0b\x1c-\x1f\x{85}\p{Z}]"  # what `str.split` splits at; RE2 knows only ASCII `\s`


@dataclass(frozen=True)
class ReadTable:
    """
    A table and what had to be left out to get it.

    Attributes:
        table (`pyarrow.Table`): the rows that could be read.
        num_skipped (`int`): how many lines were skipped because `on_error="skip"` was asked for.
        first_skipped (`str` or `None`): the first skipped line with its file, line number and reason.
    """

    table: pa.Table
    num_skipped: int = 0
    first_skipped: str | None = None


def read_interactions(
    source: Source,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    rating: str | None = None,
    on_error: OnError = "raise",
) -> ReadTable:
    """
    Reads a log with one interaction per row.

    Timestamps may be numbers (seconds or milliseconds: a column whose largest value is below 1e11 holds seconds), ISO
    8601 strings or Parquet timestamps. Without a zone they count as UTC. Rows keep the order of the file.

    Args:
        source (`str`, `os.PathLike`, `pyarrow.Table` or `pandas.DataFrame`):
            CSV, TSV, Parquet or JSON Lines file, or a table already in memory.
        user (`str`, *optional*, defaults to `"user_id"`):
            Name of the column with the users' ids. Integers are converted to strings.
        item (`str`, *optional*, defaults to `"item_id"`):
            Name of the column with the items' ids. Integers are converted to strings.
        timestamp (`str` or `None`, *optional*, defaults to `"timestamp"`):
            Name of the column with the times. `None`: there is none, the order of the file is the order in time.
        rating (`str` or `None`, *optional*):
            Name of the column with the ratings. `None`: no ratings are read.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            What a malformed line does: stop with an error that shows it, or be counted and left out.

    Returns:
        [`ReadTable`]: columns `user_id`, `item_id` (string), `timestamp` (int64, milliseconds; null without times)
        and, if asked for, `rating` (double).

    Raises:
        ValueError: If the file is empty, not UTF-8, misses a column or, with `on_error="raise"`, has a malformed line.

    Example:

    ```python
    >>> read_interactions(pa.table({"who": [7, 7], "what": ["b", "a"], "at": [20, 10]}), user="who", item="what",
    ...                   timestamp="at").table.to_pylist()[0]
    {'user_id': '7', 'item_id': 'b', 'timestamp': 20000}

    ```
    """
    check_on_error(on_error)
    names = {"user_id": user, "item_id": item, "timestamp": timestamp, "rating": rating}
    columns = {key: name for key, name in names.items() if name is not None}
    return _checked_interactions(_read_raw(source, columns, on_error), on_error)


def read_sequences(path: str | os.PathLike[str], *, on_error: OnError = "raise") -> ReadTable:
    """
    Reads ready-made sequences: one user per line, `user<TAB>item item ...`, oldest item first.

    Args:
        path (`str` or `os.PathLike`):
            Text file without a header, plain or `.gz`.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            What a malformed line (no tab, no item, a user seen before, an impossible id) does.

    Returns:
        [`ReadTable`]: one row per interaction in the order of the file; `timestamp` is null throughout.

    Raises:
        ValueError: If the file is empty, not UTF-8 or, with `on_error="raise"`, has a malformed line.
    """
    check_on_error(on_error)
    path = Path(path)
    check_not_empty(path)
    raw = _read_delimited(path, {"user": "user", "items": "items"}, on_error, delimiter="\t", header=["user", "items"])
    users, lists = raw.table["user"].combine_chunks(), raw.table["items"].combine_chunks()
    users, lists = _plain(users), pc.split_pattern(pc.utf8_trim_whitespace(_plain(lists)), " ")
    rows = pc.list_parent_indices(lists).to_numpy()
    first_rows = np.unique(users.dictionary_encode().indices.to_numpy(), return_index=True)[1]
    repeated = np.setdiff1d(np.arange(len(users)), first_rows)
    reasons = {int(row): f"user {users[int(row)].as_py()!r} has a line already" for row in repeated}
    items = pc.list_flatten(lists)
    for index in np.flatnonzero(_bad_ids(items)):
        reasons.setdefault(int(rows[index]), f"item id {items[int(index)].as_py()!r} {ID_RULE}")
    for index in np.flatnonzero(_bad_ids(users)):
        reasons.setdefault(int(index), f"user id {users[int(index)].as_py()!r} {ID_RULE}")
    raw = raw.with_bad_rows(reasons, on_error)
    kept = ~np.isin(rows, np.fromiter(reasons, dtype=np.int64))
    table = pa.table(
        {
            "user_id": users.take(pa.array(rows[kept])),
            "item_id": items.filter(pa.array(kept)),
            "timestamp": pa.nulls(int(kept.sum()), pa.int64()),
        }
    )
    if not table.num_rows:
        raise ValueError(f"{path} holds no sequences.")
    return ReadTable(table, raw.num_skipped, raw.first_skipped)


def is_bad_id(value: str) -> bool:
    """
    Tells whether an id cannot be used: it is empty, holds whitespace or equals a special token.

    Args:
        value (`str`): a user's or an item's id.

    Returns:
        `bool`: `True` if the id is refused.

    Example:

    ```python
    >>> is_bad_id("B004756YJA"), is_bad_id("two words"), is_bad_id("<pad>")
    (False, True, True)

    ```
    """
    return value.split() != [value] or value in SPECIAL_TOKENS


def id_string(value: Any) -> str | None:
    """
    The string form of an id as it stands in a record.

    Args:
        value: what a record holds.

    Returns:
        `str` or `None`: strings and integers as strings; `None` for anything else (missing, a float, a list).

    Example:

    ```python
    >>> id_string(7), id_string("7"), id_string(7.5)
    ('7', '7', None)

    ```
    """
    is_id = isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
    return str(value) if is_id else None


def table_in_memory(source: Source) -> pa.Table:
    """
    One table from a Parquet file, a DataFrame or a table.

    Args:
        source (`str`, `os.PathLike`, `pyarrow.Table` or `pandas.DataFrame`): the data.

    Returns:
        `pyarrow.Table`: the same rows.
    """
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pd.DataFrame):
        return pa.Table.from_pandas(source, preserve_index=False)
    return pq.read_table(source)


@dataclass(frozen=True)
class _Raw:
    """Columns as the file has them, under our names, and how to find a row's line again."""

    table: pa.Table
    locate: Callable[[int], str]
    num_skipped: int = 0
    first_skipped: str | None = None

    def with_bad_rows(self, reasons: dict[int, str], on_error: OnError) -> _Raw:
        """Counts the bad rows, or raises with the first of them."""
        if not reasons:
            return self
        row = min(reasons)
        message = f"{self.locate(row)}: {reasons[row]}."
        if on_error == "raise":
            raise ValueError(f"{message} {SKIP_HINT}")
        return _Raw(self.table, self.locate, self.num_skipped + len(reasons), self.first_skipped or message)


def _read_raw(source: Source, columns: dict[str, str], on_error: OnError) -> _Raw:
    if isinstance(source, pa.Table | pd.DataFrame):
        return _select(table_in_memory(source), columns, "the table", "the table: row")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file.")
    kind = format_of(path)
    if kind == "parquet":
        names = pq.read_schema(path).names
        _require_columns(names, columns, str(path))
        return _select(pq.read_table(path, columns=list(columns.values())), columns, str(path), f"{path}: row")
    check_not_empty(path)
    if kind == "jsonl":
        return _read_json_lines(path, columns, on_error)
    return _read_delimited(path, columns, on_error, delimiter="," if kind == "csv" else "\t")


def _select(table: pa.Table, columns: dict[str, str], where: str, row_name: str) -> _Raw:
    _require_columns(table.column_names, columns, where)
    picked = pa.table({key: table[name] for key, name in columns.items()})
    return _Raw(picked, lambda row: f"{row_name} {row + 1}")


def _require_columns(found: list[str], columns: dict[str, str], where: str) -> None:
    missing = [name for name in columns.values() if name not in found]
    if missing:
        hint = " Pass `timestamp=None` if there are no times." if columns.get("timestamp") in missing else ""
        raise ValueError(f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(found)}.{hint}")


def _read_delimited(
    path: Path, columns: dict[str, str], on_error: OnError, *, delimiter: str, header: list[str] | None = None
) -> _Raw:
    quoted = delimiter == ","
    names = header if header is not None else csv_header(path, delimiter)
    _require_columns(names, columns, str(path))
    num_bad = 0

    def skip(row: Any) -> str:
        nonlocal num_bad
        num_bad += 1
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=header),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=skip,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(columns.values()), column_types=dict.fromkeys(columns.values(), pa.string())
            ),
        )
    except pa.ArrowInvalid as error:
        check_utf8(path)
        raise ValueError(f"{path}: {error}") from error
    table = table.rename_columns(list(columns))
    raw = _Raw(table, lambda row: place_in_csv(path, delimiter, len(names), row=row, has_header=header is None))
    if num_bad:
        message = f"{place_in_csv(path, delimiter, len(names), row=None, has_header=header is None)}: malformed, "
        message += f"{len(names)} fields were expected."
        if on_error == "raise":
            raise ValueError(f"{message} {SKIP_HINT}")
        raw = _Raw(table, raw.locate, num_bad, message)
    return raw


def _read_json_lines(path: Path, columns: dict[str, str], on_error: OnError) -> _Raw:
    types = {"timestamp": pa.int64(), "rating": pa.float64()}
    schema = pa.schema([(name, types.get(key, pa.string())) for key, name in columns.items()])
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:  # the quick way, for files whose values have the plain types; every doubt goes line by line
        table = pyarrow.json.read_json(path, parse_options=options)
        table.validate(full=True)
        if table.num_rows and not any(column.null_count for column in table.columns):
            return _Raw(table.rename_columns(list(columns)), lambda row: place_in_lines(path, row))
    except pa.ArrowInvalid:
        pass
    values: dict[str, list[Any]] = {key: [] for key in columns}
    places: list[int] = []
    found: set[str] = set()
    num_skipped, first_skipped = 0, None
    for number, line in numbered_lines(path):
        record, problem = parse_json_line(line)
        if record is None:
            message = f"{path}: line {number} ({line[:SHOWN]!r}): {problem}."
            if on_error == "raise":
                raise ValueError(f"{message} {SKIP_HINT}")
            num_skipped, first_skipped = num_skipped + 1, first_skipped or message
            continue
        found |= record.keys()
        places.append(number)
        for key, name in columns.items():
            values[key].append(record.get(name))
    if places:
        _require_columns(sorted(found), columns, str(path))
    plain = {key: [id_string(value) or "" for value in values[key]] for key in ("user_id", "item_id")}
    table = pa.table({key: pa.array(list(map(str, plain.get(key, values[key])))) for key in columns})
    return _Raw(table, lambda row: f"{path}: line {places[row]}", num_skipped, first_skipped)


def _plain(array: pa.Array) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _bad_ids(array: pa.Array) -> np.ndarray:
    """Marks ids that are null, empty, hold whitespace or are a special token; looks at distinct values only."""
    encoded = array.dictionary_encode()
    values = encoded.dictionary
    bad = pc.or_(pc.match_substring_regex(values, _BAD_ID), pc.equal(values, ""))
    bad = pc.or_(bad, pc.is_in(values, value_set=pa.array(SPECIAL_TOKENS))).to_numpy(zero_copy_only=False)
    codes = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    return np.append(bad.astype(bool), True)[codes]


def _checked_interactions(raw: _Raw, on_error: OnError) -> ReadTable:
    if not raw.table.num_rows:
        raise ValueError(f"{raw.locate(0).rsplit(':', 1)[0]} holds no interactions.")
    columns = {key: _id_column(raw.table[key], key) for key in ("user_id", "item_id")}
    masks = {f"{key.replace('_', ' ')} {ID_RULE}": _bad_ids(columns[key]) for key in columns}
    if "timestamp" in raw.table.column_names:
        columns["timestamp"] = _milliseconds(raw.table["timestamp"])
        masks["the timestamp is neither a number nor an ISO 8601 time"] = _nulls(columns["timestamp"])
    else:
        columns["timestamp"] = pa.nulls(raw.table.num_rows, pa.int64())
    if "rating" in raw.table.column_names:
        columns["rating"] = pa.array(_numbers(raw.table["rating"]), from_pandas=True)
        masks["the rating is not a number"] = _nulls(columns["rating"])
    reasons: dict[int, str] = {}
    for reason, mask in masks.items():
        for row in np.flatnonzero(mask):
            reasons.setdefault(int(row), reason)
    raw = raw.with_bad_rows(reasons, on_error)
    table = pa.table(columns)
    if reasons:
        table = table.filter(pa.array(~np.logical_or.reduce(list(masks.values()))))
    return ReadTable(table, raw.num_skipped, raw.first_skipped)


def _nulls(array: pa.Array) -> np.ndarray:
    return array.is_null().to_numpy(zero_copy_only=False)


def _id_column(column: pa.ChunkedArray, name: str) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
        raise ValueError(f"The column for `{name}` holds {column.type}; ids must be strings or integers.")
    return _plain(column.cast(pa.string()))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """The column as float64; what is no finite number becomes NaN."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64(), safe=False).to_pandas().to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        series = column.cast(pa.string()).to_pandas()
        numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _milliseconds(column: pa.ChunkedArray) -> pa.Array:
    """Times as int64 milliseconds since the epoch, null where there is no time to read."""
    if pa.types.is_temporal(column.type):
        return _plain(column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()))
    numbers = _numbers(column)
    missing = np.isnan(numbers)
    if pa.types.is_string(column.type) and missing.mean() > 0.5:
        times = pd.to_datetime(column.to_pandas(), format="ISO8601", utc=True, errors="coerce")
        return pa.array(times.dt.tz_localize(None).astype("datetime64[ms]"), from_pandas=True).cast(pa.int64())
    numbers = np.where(missing, 0.0, numbers)
    if np.abs(numbers).max() < SECONDS_BELOW:
        numbers = numbers * 1000
    return pa.array(np.round(numbers).astype(np.int64), mask=missing)
