"""
Interaction logs and ready-made sequences in, tables out.

Every reader returns a [`ReadTable`]: ids are strings, timestamps are `int64` milliseconds since the epoch, and what
was skipped is counted. The format is inferred from the extension: `.csv`, `.tsv`, `.parquet`, `.jsonl` (`.json`,
`.ndjson`), the text formats also packed with gzip. A `.tsv` file has no quoting, other delimited files may quote with
`"`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from hf_genrec.data.columns import ID_RULE, bad_ids, id_column, id_string, number_column, text_of, time_column
from hf_genrec.data.json_lines import columns_of
from hf_genrec.data.tables import Source, open_parquet, owner_of, table_of
from hf_genrec.data.text_files import DELIMITERS, OnError, Record, Skips, TextFile, first_names, format_of, writable
from hf_genrec.files import reading


_ROWS_AT_ONCE = 2**16  # of a text file, as Python strings


@dataclass(frozen=True)
class ReadTable:
    """The rows that could be read, and what was skipped with `on_error="skip"`."""

    table: pa.Table
    skips: Skips


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
    allow_huge: bool = False,
) -> ReadTable:
    """
    Reads a log with one interaction per row; rows keep the order of the file.

    Timestamps may be numbers, ISO 8601 strings or Parquet timestamps. Numbers are seconds, milliseconds, microseconds
    or nanoseconds: what the median of the column says (below 1e11 seconds, and so on), and numbers that are dates of
    our days in another unit are malformed. Columns of numbers such as 20191001, 201910011830 or 20191001183000 are
    read as the dates that they spell, with a warning. Without a zone, times count as UTC. Whole numbers as ids are
    converted to strings.

    Args:
        source (`str`, `os.PathLike`, table or `list[dict]`):
            CSV, TSV, Parquet or JSON Lines file, or what [`~tables.table_of`] reads.
        user (`str`, *optional*, defaults to `"user_id"`): Column of the users' ids.
        item (`str`, *optional*, defaults to `"item_id"`): Column of the items' ids.
        timestamp (`str`, *optional*, defaults to `"timestamp"`): Column of the times; `None` for the file's order.
        rating (`str`, *optional*): Column of the ratings; `None` reads none.
        delimiter (`str`, *optional*): Between the fields of a delimited file; `None` infers it from the extension.
        date_format (`str`, *optional*):
            How times are written, such as `"%d.%m.%Y %H:%M"` (see `datetime.strptime`); `None` for the forms above.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            Malformed lines: stop with an error that shows the first one, or count them and leave them out.
        allow_huge (`bool`, *optional*, defaults to `False`):
            Whether a line may have more than 16 million characters, and a packed file more than 200 times its size.

    Returns:
        [`ReadTable`]: columns `user_id`, `item_id` (dictionaries of strings), `timestamp` (int64, milliseconds; null
        without times) and, if asked for, `rating` (double).
    """
    skips = Skips(on_error)
    names = {"user_id": user, "item_id": item, "timestamp": timestamp, "rating": rating}
    columns = {key: name for key, name in names.items() if name is not None}
    for key, name in columns.items():
        first = next(other for other, same in columns.items() if same == name)
        if first != key:
            raise ValueError(
                f"`{first.removesuffix('_id')}` and `{key.removesuffix('_id')}` are both {name!r}: name a column each."
            )
    opened = open_source(source, delimiter, allow_huge=allow_huge)
    owner = owner_of(source)
    if isinstance(opened, TextFile):
        raw = _read_plain(opened, columns, owner)
        raw = raw or _read_records(_parts(opened, columns), columns, skips, owner, opened)
    elif isinstance(opened, list):
        raw = _read_records(records_of(opened), columns, skips, owner, None)
    else:
        found = opened.schema if isinstance(opened, pa.Table) else opened.schema_arrow
        _require_columns(found.names, columns, owner)
        wanted = list(columns.values())
        with reading(owner, "table"):
            table = opened.select(wanted) if isinstance(opened, pa.Table) else opened.read(columns=wanted)
            table.validate(full=True)
        picked = pa.table({key: table[name] for key, name in columns.items()})
        raw = _Raw(picked, lambda row: f"{owner}: row {row + 1}")
    if not raw.table.num_rows:
        raise skips.nothing_left(owner, "interactions")
    table = _checked(raw, skips, owner, date_format)
    if not table.num_rows:
        raise skips.nothing_left(owner, "interactions")
    return ReadTable(table, skips)


def read_sequences(
    path: str | os.PathLike[str], *, on_error: OnError = "raise", allow_huge: bool = False
) -> ReadTable:
    """
    Reads ready-made sequences: one user per line, `user<TAB>item item ...`, oldest item first; `timestamp` is null.

    Args: a text file without a header, plain or gzipped; for the others see [`read_interactions`]. Malformed are lines
    without a tab or an item, a user seen before, and impossible ids.
    """
    skips = Skips(on_error)
    file = TextFile(path, delimiter="\t", header=["user", "items"], allow_huge=allow_huge)
    columns = {"user_id": "user", "items": "items"}
    raw = _read_plain(file, columns, str(path)) or _read_records(file.records(), columns, skips, str(path), file)
    if not raw.table.num_rows:
        raise skips.nothing_left(str(path), "sequences")
    users = id_column(raw.table["user_id"])
    lists = pc.split_pattern(pc.utf8_trim_whitespace(raw.table["items"]), " ")
    rows, items = pc.list_parent_indices(lists).to_numpy(), id_column(pc.list_flatten(lists))
    reasons: dict[int, str] = {}
    for row in np.setdiff1d(np.arange(len(users)), np.unique(users.indices.to_numpy(), return_index=True)[1]):
        reasons[int(row)] = f"user {users[int(row)].as_py()!r} has a line already"
    for index in np.flatnonzero(bad_ids(items)):
        reasons.setdefault(int(rows[index]), f"item id {items[int(index)].as_py()!r} {ID_RULE}")
    for row in np.flatnonzero(bad_ids(users)):
        reasons.setdefault(int(row), f"user id {users[int(row)].as_py()!r} {ID_RULE}")
    if reasons:
        skips.add(raw.place_of(min(reasons)), reasons[min(reasons)], number=len(reasons))
    kept = ~np.isin(rows, np.fromiter(reasons, dtype=np.int64))
    if not kept.any():
        raise skips.nothing_left(str(path), "sequences")
    table = {"user_id": users.take(pa.array(rows[kept])), "item_id": items.filter(pa.array(kept))}
    return ReadTable(pa.table(table | {"timestamp": pa.nulls(int(kept.sum()), pa.int64())}), skips)


def open_source(
    source: Source, delimiter: str | None = None, *, allow_huge: bool = False
) -> pa.Table | list[Mapping[str, Any]] | pq.ParquetFile | TextFile:
    """
    Opens what a reader was given: a table or records in memory, or a file not read yet.

    Args: see [`read_interactions`].
    """
    table = table_of(source)
    if table is not None:
        return table
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file.")
    kind = format_of(path, delimiter)
    if kind == "parquet":
        return open_parquet(path, allow_huge=allow_huge)
    default = DELIMITERS[kind]
    if default is not None and delimiter is not None:
        # One delimiter is given for the log and the items, and the other of them may be an ordinary .csv.
        header = next(TextFile(path, allow_huge=allow_huge).lines()).text
        default = default if default in header and delimiter not in header else delimiter
    return TextFile(path, delimiter=default, allow_huge=allow_huge)


def records_of(rows: Iterable[Any], owner: str = "") -> Iterator[Record]:
    """Rows of a table as records. Args: the rows, and the file that they are of, if any."""
    for number, values in enumerate(rows, start=1):
        error = None if isinstance(values, Mapping) else f"no dictionary of fields but {type(values).__name__}"
        try:
            values = writable(values)
            if error is None and not all(isinstance(name, str) for name in values):
                values = {str(name): value for name, value in values.items()}
        except ValueError as reason:
            error = str(reason)
        yield Record(owner, number, values if error is None else None, error, unit="row")


class _Raw(NamedTuple):
    """Columns as the source has them, under our names, and how to find the place of a row again."""

    table: pa.Table
    place_of: Callable[[int], str]


def _require_columns(found: list[str], columns: dict[str, str], owner: str) -> None:
    missing = {key.removesuffix("_id"): name for key, name in columns.items() if name not in found}
    if missing:
        options = ", ".join(f"`{key}`" for key in missing)
        hint = " Pass `timestamp=None` if there are no times." if "timestamp" in missing else ""
        raise ValueError(
            f"{owner} has no column {', '.join(map(repr, missing.values()))}; it has {first_names(found)}. Name the "
            f"column with {options}.{hint}"
        )


def _read_plain(file: TextFile, columns: dict[str, str], owner: str) -> _Raw | None:
    """The quick way, for delimited files every line of which is a row of the right length; `None` at a doubt."""
    if file.delimiter is None:
        return None
    _require_columns(file.header, columns, owner)
    wanted = list(dict.fromkeys(columns.values()))
    tables: list[pa.Table] = []
    header = f"{file.delimiter.join(file.header)}\n" if file.has_header else ""
    for _, block, is_sound in file.blocks():
        if not is_sound or not block.startswith(header):
            return None
        block, header = block.removeprefix(header), ""
        # A quotation mark, a blank line; a byte order mark inside the text would be taken for that of the block.
        if '"' in block or "\n\n" in f"\n{block}" or block.startswith("\ufeff"):
            return None
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(block.encode()),
                read_options=pyarrow.csv.ReadOptions(column_names=file.header, block_size=2 * len(block) + 2**20),
                parse_options=pyarrow.csv.ParseOptions(delimiter=file.delimiter, quote_char=False),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=wanted, column_types=dict.fromkeys(wanted, pa.large_string())
                ),
            )
        except pa.ArrowInvalid:  # a row of another length
            return None
        tables.append(pa.table({key: table[name] for key, name in columns.items()}))
    return _Raw(pa.concat_tables(tables), lambda row: file.place_of(row + 1 + file.has_header)) if tables else None


class _Block(NamedTuple):
    """Lines of one layout: the number of the first, and the values of each column."""

    number: int
    values: dict[str, list[str]]


def _parts(file: TextFile, columns: dict[str, str]) -> Iterator[Record | _Block]:
    """The records of a file; where many lines of JSON have one layout, blocks of them."""
    if file.delimiter is not None:
        yield from file.records()
        return
    for number, block, is_sound in file.blocks():
        values = columns_of(block, columns) if is_sound else None
        if values is not None:
            yield _Block(number, values)
        elif number == 1 and columns_of(block.partition("\n")[0], columns) is None:
            yield from file.records()  # it may be one array, or one object of objects
            return
        else:
            yield from file.records_in(number, block)


def _read_records(
    records: Iterator[Record | _Block], columns: dict[str, str], skips: Skips, owner: str, file: TextFile | None
) -> _Raw:
    """Collects the columns asked for as texts, a batch at a time, and the line of every row."""
    batches: dict[str, list[pa.Array]] = {key: [] for key in columns}
    values: dict[str, list[str | None]] = {key: [] for key in columns}
    numbers: list[int] = []
    last: Mapping[str, Any] = {}
    absent, unit = set(columns.values()), "line"

    def flush() -> None:
        for key, column in values.items():
            batches[key].append(pa.array(column, pa.large_string()))
            column.clear()

    for record in records:
        if isinstance(record, _Block):
            flush()
            for key, column in record.values.items():
                batches[key].append(pa.array(column, pa.large_string()))
            numbers.extend(range(record.number, record.number + len(column)))
            absent.clear()
            continue
        row, error = _texts_of(record, columns)
        if error is not None:
            skips.add(record.shown, error)
            continue
        last, unit = record.values or {}, record.unit
        if absent:
            absent -= last.keys()
        numbers.append(record.number)
        for key, value in row.items():
            values[key].append(value)
        if len(values["user_id"]) == _ROWS_AT_ONCE:
            flush()
    flush()
    if numbers and absent:
        present = [name for name in columns.values() if name not in absent]
        _require_columns(list(dict.fromkeys([*present, *last])), columns, owner)
    places = np.array(numbers, dtype=np.int64)

    def place_of(row: int) -> str:
        number = int(places[row])
        if file is not None and unit == "line":
            return file.place_of(number)
        return Record("" if file is None else owner, number, None, unit=unit).place

    return _Raw(pa.table({key: pa.chunked_array(chunks) for key, chunks in batches.items()}), place_of)


def _texts_of(record: Record, columns: dict[str, str]) -> tuple[dict[str, str | None], str | None]:
    """The columns asked for of one record, and what is wrong with it."""
    error = record.error
    row = {} if record.values is None else {key: record.values.get(name) for key, name in columns.items()}
    for key, value in row.items():
        if not isinstance(value, str):
            text = id_string(value) if key in ("user_id", "item_id") else text_of(value)
            if text is None and value is not None:
                error = f"{_in_words(key)} {value!r} is no string and no number"
            row[key] = text
    return row, error


def _checked(raw: _Raw, skips: Skips, owner: str, date_format: str | None) -> pa.Table:
    """Converts the columns and leaves out the rows whose values cannot be used."""
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
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"{owner}: the column for `{key.removesuffix('_id')}` {error}.") from error
        problems += [(key, bad, reason) for bad, reason in found]
    columns.setdefault("timestamp", pa.nulls(raw.table.num_rows, pa.int64()))
    bad = np.logical_or.reduce([mask for _, mask, _ in problems])
    table = pa.table(columns)
    if not bad.any():
        return table
    row = int(bad.argmax())
    key, reason = next((key, reason) for key, mask, reason in problems if mask[row])
    value = raw.table[key][row].as_py()
    skips.add(raw.place_of(row), f"{_in_words(key)} {value!r} {reason}", number=int(bad.sum()))
    return table.filter(pa.array(~bad))


def _in_words(key: str) -> str:
    return key.replace("_", " ")
