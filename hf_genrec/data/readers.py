"""
Interaction logs and ready-made sequences in, tables out.

Every reader returns a [`ReadTable`]: ids are strings, timestamps are `int64` milliseconds since the epoch, and what
was skipped is counted. The format is inferred from the extension: `.csv`, `.tsv`, `.parquet`, `.jsonl` (`.json`,
`.ndjson`), the text formats also followed by `.gz`. Text is UTF-8. A `.tsv` file has no quoting, other delimited files
may quote with `"`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from hf_genrec.data.columns import ID_RULE, bad_ids, id_column, id_string, number_column, time_column
from hf_genrec.data.text_files import DELIMITERS, SKIP_HINT, OnError, TextFile, check_on_error, format_of


Source: TypeAlias = str | os.PathLike[str] | pa.Table | pd.DataFrame


@dataclass(frozen=True)
class ReadTable:
    """
    The rows that could be read, how many lines were skipped (`on_error="skip"`), and the first of these: its file,
    line number and reason.
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
    delimiter: str | None = None,
    date_format: str | None = None,
    on_error: OnError = "raise",
) -> ReadTable:
    """
    Reads a log with one interaction per row; rows keep the order of the file.

    Timestamps may be numbers (seconds or milliseconds: a column whose largest value is below 1e11 holds seconds), ISO
    8601 strings or Parquet timestamps. Without a zone they count as UTC. Integer ids are converted to strings.

    Args:
        source (`str`, `os.PathLike`, `pyarrow.Table` or `pandas.DataFrame`):
            CSV, TSV, Parquet or JSON Lines file, or a table already in memory.
        user (`str`, *optional*, defaults to `"user_id"`): Column of the users' ids.
        item (`str`, *optional*, defaults to `"item_id"`): Column of the items' ids.
        timestamp (`str`, *optional*, defaults to `"timestamp"`):
            Column of the times; `None` where there is none and the order of the file is the order in time.
        rating (`str`, *optional*): Column of the ratings; `None` reads none.
        delimiter (`str`, *optional*): Between the fields of a delimited file; `None` infers it from the extension.
        date_format (`str`, *optional*):
            How times are written, such as `"%d.%m.%Y %H:%M"` (see `datetime.strptime`); `None` for the forms above.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            Malformed lines: stop with an error that shows the first one, or count them and leave them out.

    Returns:
        [`ReadTable`]: columns `user_id`, `item_id` (string), `timestamp` (int64, milliseconds; null without times)
        and, if asked for, `rating` (double).
    """
    check_on_error(on_error)
    names = {"user_id": user, "item_id": item, "timestamp": timestamp, "rating": rating}
    columns = {key: name for key, name in names.items() if name is not None}
    return _checked(_read_raw(source, columns, on_error, delimiter), on_error, date_format)


def read_sequences(path: str | os.PathLike[str], *, on_error: OnError = "raise") -> ReadTable:
    """
    Reads ready-made sequences: one user per line, `user<TAB>item item ...`, oldest item first; `timestamp` is null.

    Args:
        path (`str` or `os.PathLike`): Text file without a header, plain or gzipped.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            Malformed lines (no tab, no item, a user seen before, an impossible id): see [`read_interactions`].
    """
    check_on_error(on_error)
    file = TextFile(path, delimiter="\t", header=["user", "items"])
    raw = _read_delimited(file, {"user": "user", "items": "items"}, on_error)
    users, texts = _plain(raw.table["user"]), _plain(raw.table["items"])
    lists = pc.split_pattern(pc.utf8_trim_whitespace(texts), " ")
    rows, items = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
    first_rows = np.unique(users.dictionary_encode().indices.to_numpy(), return_index=True)[1]
    repeated = np.setdiff1d(np.arange(len(users)), first_rows)
    reasons = {int(row): f"user {users[int(row)].as_py()!r} has a line already" for row in repeated}
    for index in np.flatnonzero(bad_ids(id_column(items))):
        reasons.setdefault(int(rows[index]), f"item id {items[int(index)].as_py()!r} {ID_RULE}")
    for index in np.flatnonzero(bad_ids(id_column(users))):
        reasons.setdefault(int(index), f"user id {users[int(index)].as_py()!r} {ID_RULE}")
    if reasons:
        raw = raw.without(len(reasons), raw.place_of(min(reasons)), reasons[min(reasons)], on_error)
    kept = ~np.isin(rows, np.fromiter(reasons, dtype=np.int64))
    if not kept.any():
        raise ValueError(f"{path} holds no sequences.")
    columns = {"user_id": users.take(pa.array(rows[kept])), "item_id": items.filter(pa.array(kept))}
    columns["timestamp"] = pa.nulls(int(kept.sum()), pa.int64())
    return ReadTable(pa.table(columns), raw.num_skipped, raw.first_skipped)


def open_source(source: Source, delimiter: str | None = None) -> pa.Table | pq.ParquetFile | TextFile:
    """
    Opens what a reader was given: a table in memory, or a file not read yet.

    Args:
        source (`str`, `os.PathLike`, `pyarrow.Table` or `pandas.DataFrame`): See [`read_interactions`].
        delimiter (`str`, *optional*): See [`read_interactions`].
    """
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pd.DataFrame):
        return pa.Table.from_pandas(source, preserve_index=False)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file.")
    kind = format_of(path, delimiter)
    if kind == "parquet":
        return pq.ParquetFile(path)
    default = DELIMITERS[kind]
    if default is not None and delimiter is not None:
        # One delimiter is given for the log and the items, and the other of them may be an ordinary .csv.
        _, header = next(TextFile(path).lines(), (0, ""))
        default = default if default in header and delimiter not in header else delimiter
    return TextFile(path, delimiter=default)


class _Raw(NamedTuple):
    """Columns as the file has them, under our names, and how to find the place of a row again."""

    table: pa.Table
    place_of: Callable[[int], str]
    owner: str
    num_skipped: int = 0
    first_skipped: str | None = None

    def without(self, num_bad: int, place: str, reason: str, on_error: OnError) -> _Raw:
        """Counts bad rows, the first of which is at `place`, or raises."""
        message = f"{place}: {reason}."
        if on_error == "raise":
            raise ValueError(f"{message} {SKIP_HINT}")
        return self._replace(num_skipped=self.num_skipped + num_bad, first_skipped=self.first_skipped or message)


def _read_raw(source: Source, columns: dict[str, str], on_error: OnError, delimiter: str | None) -> _Raw:
    opened = open_source(source, delimiter)
    if isinstance(opened, TextFile):
        return (_read_json if opened.delimiter is None else _read_delimited)(opened, columns, on_error)
    owner = "the table" if isinstance(source, pa.Table | pd.DataFrame) else str(source)
    _require_columns((opened.schema if isinstance(opened, pa.Table) else opened.schema_arrow).names, columns, owner)
    names = list(columns.values())
    table = opened.select(names) if isinstance(opened, pa.Table) else opened.read(columns=names)
    picked = pa.table({key: table[name] for key, name in columns.items()})
    return _Raw(picked, lambda row: f"{owner}: row {row + 1}", owner)


def _require_columns(found: list[str], columns: dict[str, str], owner: str) -> None:
    missing = [name for name in columns.values() if name not in found]
    if missing:
        hint = " Pass `timestamp=None` if there are no times." if columns.get("timestamp") in missing else ""
        raise ValueError(f"{owner} has no column {', '.join(map(repr, missing))}; it has {', '.join(found)}.{hint}")


def _read_delimited(file: TextFile, columns: dict[str, str], on_error: OnError) -> _Raw:
    _require_columns(file.header, columns, str(file.path))
    num_bad = 0

    def skip(row: Any) -> str:
        nonlocal num_bad
        num_bad += 1
        return "skip"

    names = list(columns.values())
    try:
        table = pyarrow.csv.read_csv(
            file.path,
            read_options=pyarrow.csv.ReadOptions(column_names=None if file.has_header else file.header),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=file.delimiter,
                quote_char='"' if file.is_quoted else False,
                newlines_in_values=file.is_quoted,
                invalid_row_handler=skip,
            ),
            # Ids stay as they are written ("007"), and times are converted in one place for all formats.
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names, column_types=dict.fromkeys(names, pa.string())
            ),
        )
    except pa.ArrowInvalid as error:
        file.check_utf8()
        raise ValueError(f"{file.path}: {error}") from error
    raw = _Raw(table.rename_columns(list(columns)), file.place_of, str(file.path))
    if not num_bad:
        return raw
    return raw.without(num_bad, file.place_of(None), f"malformed, expected {len(file.header)} fields", on_error)


def _read_json(file: TextFile, columns: dict[str, str], on_error: OnError) -> _Raw:
    types = {"timestamp": pa.int64(), "rating": pa.float64()}
    schema = pa.schema([(name, types.get(key, pa.string())) for key, name in columns.items()])
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:  # the quick way, for files whose values have the plain types; every doubt goes line by line
        table = pyarrow.json.read_json(file.path, parse_options=options)
        table.validate(full=True)
        if table.num_rows and not any(column.null_count for column in table.columns):
            return _Raw(table.rename_columns(list(columns)), file.place_of, str(file.path))
    except pa.ArrowInvalid:
        pass
    values: dict[str, list[Any]] = {key: [] for key in columns}
    places: list[str] = []
    found: set[str] = set()
    num_skipped, first_skipped = 0, None
    for record in file.records():
        if record.values is None:
            message = f"{record.shown}: {record.error}."
            if on_error == "raise":
                raise ValueError(f"{message} {SKIP_HINT}")
            num_skipped, first_skipped = num_skipped + 1, first_skipped or message
            continue
        found |= record.values.keys()
        places.append(record.place)
        for key, name in columns.items():
            values[key].append(record.values.get(name))
    if places:
        _require_columns(sorted(found), columns, str(file.path))
    for key in ("user_id", "item_id"):
        values[key] = [id_string(value) or "" for value in values[key]]
    table = pa.table({key: pa.array(list(map(str, column))) for key, column in values.items()})
    return _Raw(table, places.__getitem__, str(file.path), num_skipped, first_skipped)


def _checked(raw: _Raw, on_error: OnError, date_format: str | None) -> ReadTable:
    """Converts the columns and leaves out the rows whose values cannot be used."""
    if not raw.table.num_rows:
        raise ValueError(f"{raw.owner} holds no interactions.")
    columns: dict[str, Any] = {}
    problems: list[tuple[str, np.ndarray, str]] = []
    for key in raw.table.column_names:
        try:
            if key == "timestamp":
                columns[key], found = time_column(raw.table[key], date_format)
            elif key == "rating":
                numbers = number_column(raw.table[key])
                columns[key], found = pa.array(numbers, from_pandas=True), [(np.isnan(numbers), "is not a number")]
            else:
                columns[key] = id_column(raw.table[key])
                found = [(bad_ids(columns[key]), ID_RULE)]
        except ValueError as error:
            raise ValueError(f"{raw.owner}: the column for `{key.removesuffix('_id')}` {error}.") from error
        problems += [(key, bad, reason) for bad, reason in found]
    columns.setdefault("timestamp", pa.nulls(raw.table.num_rows, pa.int64()))
    bad = np.logical_or.reduce([mask for _, mask, _ in problems])
    table = pa.table(columns)
    if bad.any():
        row = int(bad.argmax())
        key, reason = next((key, reason) for key, mask, reason in problems if mask[row])
        value = raw.table[key][row].as_py()
        described = f"{key.replace('_', ' ')} {value!r} {reason}"
        raw = raw.without(int(bad.sum()), raw.place_of(row), described, on_error)
        table = table.filter(pa.array(~bad))
    return ReadTable(table, raw.num_skipped, raw.first_skipped)


def _plain(array: pa.Array) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
