"""
Interaction logs and ready-made sequences in, batches of checked rows out.

A source is read as often as needed and never held whole: times are surveyed first, since one column has one unit, then
rows come in batches. Ids are strings, times `int64` milliseconds since the epoch, and what is left out is counted. The
format is inferred from the extension: `.csv`, `.tsv`, `.parquet`, `.jsonl` (`.json`, `.ndjson`), the text formats also
packed with gzip. A `.tsv` file has no quoting, other delimited files may quote with `"`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from hf_genrec.data.columns import (
    ID_RULE,
    TimeForm,
    TimeSurvey,
    bad_ids,
    id_column,
    id_string,
    is_bad_id,
    number_column,
    text_of,
    times_of,
)
from hf_genrec.data.native import plain_rows
from hf_genrec.data.spools import Spool
from hf_genrec.data.tables import Part, Source, Table, parquet_table, table_of
from hf_genrec.data.text_files import DELIMITERS, OnError, Record, Skips, TextFile, first_names, format_of, writable


_ROWS_AT_ONCE = 2**16  # of a text file, as Python strings


@dataclass(frozen=True)
class ReadTable:
    """The rows that could be read, and what was skipped with `on_error="skip"`."""

    table: pa.Table
    skips: Skips


@dataclass
class Log:
    """
    A log that is open: its rows, batch by batch, and what was skipped so far.

    Attributes:
        batches (iterator of `pa.RecordBatch`):
            Columns `user_id`, `item_id`, `timestamp` (int64, milliseconds, null without times), `rating` if asked for,
            and `is_good`: rows that do not count come along, since they may be the first to name a user.
        skips (`Skips`): complete when the last batch is read.
    """

    batches: Iterator[pa.RecordBatch]
    skips: Skips

    def read(self) -> ReadTable:
        """All good rows in one table."""
        tables = [pa.Table.from_batches([batch]) for batch in self.batches]
        tables = [table.filter(table["is_good"]).drop_columns("is_good") for table in tables]
        return ReadTable(pa.concat_tables(tables), self.skips)


def open_interactions(
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
) -> Log:
    """
    Opens a log with one interaction per row; rows keep the order of the source.

    Timestamps may be numbers, ISO 8601 strings or Parquet timestamps. Numbers are seconds, milliseconds, microseconds
    or nanoseconds: what the median of the column says (below 1e11 seconds, and so on), and numbers that are dates of
    our days in another unit are malformed. Columns of numbers such as 20191001, 201910011830 or 20191001183000 are
    read as the dates that they spell, with a warning, and so are texts such as 24.12.2020 18:30 where (nearly) all fit
    one common form and no other. Without a zone, times count as UTC. Whole numbers as ids are converted to strings.

    Args:
        source (`str`, `os.PathLike`, table or list):
            CSV, TSV, Parquet or JSON Lines file; many Parquet files as a list, a pattern such as `"logs/*.parquet"` or
            an address `"hf://datasets/..."`; or what [`~tables.table_of`] reads.
        user (`str`, *optional*, defaults to `"user_id"`): Column of the users' ids.
        item (`str`, *optional*, defaults to `"item_id"`): Column of the items' ids.
        timestamp (`str`, *optional*, defaults to `"timestamp"`): Column of the times; `None` for the file's order.
        rating (`str`, *optional*): Column of the ratings; `None` reads none.
        delimiter (`str`, *optional*): Between the fields of a delimited file; `None` infers it.
        date_format (`str`, *optional*):
            How times are written, such as `"%d.%m.%Y %H:%M"` (see `datetime.strptime`); `None` for the forms above.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            Malformed lines: stop with an error that shows the first one, or count them and leave them out.
        allow_huge (`bool`, *optional*, defaults to `False`):
            Whether a line may have more than 16 million characters, and a packed file more than 200 times its size.

    Returns:
        [`Log`]: with columns `user_id`, `item_id` (strings), `timestamp` and, if asked for, `rating`
        (double).
    """
    skips = Skips(on_error)
    columns = columns_by_key(user, item, timestamp, rating)
    table = _open(source, columns, skips, delimiter, allow_huge=allow_huge)
    return Log(_checked(table, columns, skips, date_format), skips)


def columns_by_key(user: str, item: str, timestamp: str | None, rating: str | None) -> dict[str, str]:
    """The columns that are read, by our names. Args: see [`open_interactions`]."""
    names = {"user_id": user, "item_id": item, "timestamp": timestamp, "rating": rating}
    columns = {key: name for key, name in names.items() if name is not None}
    for key, name in columns.items():
        first = next(other for other, same in columns.items() if same == name)
        if first != key:
            raise ValueError(
                f"`{first.removesuffix('_id')}` and `{key.removesuffix('_id')}` are both {name!r}: name a column each."
            )
    return columns


def open_sequences(path: str | os.PathLike[str], *, on_error: OnError = "raise", allow_huge: bool = False) -> Log:
    """
    Opens ready-made sequences, which are read at once: one user per line, `user<TAB>item item ...`, oldest item first;
    `timestamp` is null.

    Args: a text file without a header, plain or gzipped; for the others see [`open_interactions`]. Malformed are lines
    without a tab or an item, a user seen before, and impossible ids.
    """
    skips, users = Skips(on_error), set[str]()
    rows: dict[str, list[Any]] = {"user_id": [], "item_id": [], "is_good": []}
    is_bad: dict[str, bool] = {}  # of every id, which is kept once
    for record in TextFile(path, delimiter="\t", header=["user", "items"], allow_huge=allow_huge).records():
        if record.values is None:
            skips.add(record.shown, str(record.error))
            continue
        user, items = record.values["user"], record.values["items"].strip().split(" ")
        is_bad |= {name: is_bad_id(name) for name in (user, *items) if name not in is_bad}
        wrong = [("item", name) for name in items if is_bad[name]] or [("user", user)] * is_bad[user]
        problem = f"{wrong[0][0]} id {wrong[0][1]!r} {ID_RULE}" if wrong else None
        if user in users:
            problem = f"user {user!r} has a line already"
        if problem is not None:
            skips.add(record.shown, problem)
        users.add(user)
        rows["user_id"] += [user] * len(items)
        rows["item_id"] += items
        rows["is_good"] += [problem is None] * len(items)
    if not any(rows["is_good"]):
        raise skips.nothing_left(str(path), "sequences")
    texts = {key: pa.array(rows[key], pa.large_string()) for key in ("user_id", "item_id")}
    times = pa.nulls(len(rows["is_good"]), pa.int64())
    return Log(iter(pa.table(texts | {"timestamp": times, "is_good": rows["is_good"]}).to_batches()), skips)


def open_source(
    source: Source, delimiter: str | None = None, *, allow_huge: bool = False
) -> Table | list[Any] | TextFile:
    """
    Opens what a reader was given: a table, records in memory, or a file of text.

    Args: see [`open_interactions`].
    """
    table = table_of(source, allow_huge=allow_huge)
    if table is not None:
        return table
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file.")
    kind = format_of(path, delimiter)
    if kind == "parquet":
        return parquet_table([path], allow_huge=allow_huge)
    default = DELIMITERS[kind]
    if default is not None:
        header = next(TextFile(path, allow_huge=allow_huge).lines()).text
        if delimiter is None:
            marks = [mark for mark in (default, *";\t|,") if mark in header]
            default = marks[0] if marks else default
        else:  # one delimiter is given for the log and the items, and the other of them may be an ordinary .csv
            default = default if default in header and delimiter not in header else delimiter
    return TextFile(path, delimiter=default, allow_huge=allow_huge)


def records_of(rows: Iterable[Any]) -> Iterator[Record]:
    """What a list holds as records. Args: the rows, maybe no dictionaries."""
    for number, values in enumerate(rows, start=1):
        error = None if isinstance(values, dict | Mapping) else f"no dictionary of fields but {type(values).__name__}"
        try:
            values = writable(values)
            if error is None and not all(isinstance(name, str) for name in values):
                values = {str(name): value for name, value in values.items()}
        except ValueError as reason:
            error = str(reason)
        yield Record("", number, values if error is None else None, error, unit="row")


def _open(source: Source, columns: dict[str, str], skips: Skips, delimiter: str | None, *, allow_huge: bool) -> Table:
    """Opens a source as a table that has the columns; what is malformed in a text is counted."""
    opened = open_source(source, delimiter, allow_huge=allow_huge)
    if isinstance(opened, Table):
        for part in opened.parts:
            require_columns(part.names, columns, part.owner)
        return opened
    spool, owner, records = None, "the table", lambda: records_of(cast(list[Any], opened))
    if isinstance(opened, TextFile):
        owner, records = str(opened.path), opened.records
        if opened.delimiter is not None:
            require_columns(opened.header, columns, owner)
        spool = plain_rows(opened, columns)
    spool = spool or _spooled(records, columns, skips, owner)

    def place_of(row: int) -> str:
        return next(itertools.islice(_readable(records(), columns), row, None))[0].shown

    return Table(owner, [Part(owner, list(columns.values()), spool.num_rows, spool.batches)], place_of)


def require_columns(found: list[str], columns: dict[str, str], owner: str) -> None:
    """Raises where a source lacks a column. Args: its columns, those wanted by our names, and what it is called."""
    missing = {key.removesuffix("_id"): name for key, name in columns.items() if name not in found}
    if missing:
        options = ", ".join(f"`{key}`" for key in missing)
        hint = " Pass `timestamp=None` if there are no times." if "timestamp" in missing else ""
        raise ValueError(
            f"{owner} has no column {', '.join(map(repr, missing.values()))}; it has {first_names(found)}. Name the "
            f"column with {options}.{hint}"
        )


def _spooled(records: Callable[[], Iterator[Record]], columns: dict[str, str], skips: Skips, owner: str) -> Spool:
    """Collects the columns asked for as texts, row by row; what is malformed is counted."""
    spool, filled = Spool(), set[str]()
    schema = pa.schema([(name, pa.large_string()) for name in columns.values()])
    rows = (texts for _, texts in _readable(records(), columns, skips))
    while some := list(itertools.islice(rows, _ROWS_AT_ONCE)):
        table = pa.table([list(texts) for texts in zip(*some, strict=True)], schema=schema)
        filled |= {name for name in schema.names if table[name].null_count < len(table)}
        spool.add(table)
    if spool.num_rows and len(filled) < len(schema):  # without values, or no record has such a field
        found = dict.fromkeys(name for record in records() for name in record.values or ())
        require_columns(list(found), columns, owner)
    return spool


def _readable(
    records: Iterator[Record], columns: dict[str, str], skips: Skips | None = None
) -> Iterator[tuple[Record, tuple[str | None, ...]]]:
    """The records that could be read, each with the columns asked for as texts; the others are counted."""
    fields = [(key, name, id_string if key in ("user_id", "item_id") else text_of) for key, name in columns.items()]
    for record in records:
        error, values = record.error, record.values or {}
        texts = []
        for key, name, convert in fields:
            value = values.get(name)
            texts.append(convert(value))
            if texts[-1] is None and value is not None:
                error = f"{in_words(key)} {value!r} is no string and no number"
        if error is None:
            yield record, tuple(texts)
        elif skips is not None:
            skips.add(record.shown, error)


def _checked(
    source: Table, columns: dict[str, str], skips: Skips, date_format: str | None
) -> Iterator[pa.RecordBatch]:
    """The rows in the types of a [`Log`]; those whose values cannot be used are counted and marked."""
    form, num_rows, num_good = TimeForm("numbers", "seconds"), 0, 0
    if "timestamp" in columns:
        with naming_the_column(source.owner, "timestamp"):
            survey = TimeSurvey(date_format)
            for table in source.scan({"timestamp": columns["timestamp"]}):
                survey.add(table["timestamp"])
            form = survey.form()
    for table in source.scan(columns):
        found, problems = converted(table, tuple(columns), source.owner, form)
        bad = np.logical_or.reduce([mask for _, mask, _ in problems])
        if bad.any():
            row = int(bad.argmax())
            key, reason = next((key, reason) for key, mask, reason in problems if mask[row])
            place = "" if skips.first else source.place_of(num_rows + row)
            value = table[key][row].as_py()
            skips.add(place, f"{in_words(key)} {value!r} {reason}", number=int(bad.sum()))
        num_rows += len(bad)
        num_good += len(bad) - int(bad.sum())
        yield from pa.table(found | {"is_good": ~bad}).to_batches()
    if not num_good:
        raise skips.nothing_left(source.owner, "interactions")


def converted(
    table: pa.Table, keys: Sequence[str], owner: str, form: TimeForm
) -> tuple[dict[str, Any], list[tuple[str, np.ndarray, str]]]:
    """
    Columns in our types, and what is wrong with which rows: column, mask, reason.

    Args: a part of the rows under our names, the columns, what messages call the source, and the form of its times.
    """
    columns: dict[str, Any] = {}
    problems: list[tuple[str, np.ndarray, str]] = []
    for key in keys:
        with naming_the_column(owner, key):
            if key == "timestamp":
                columns[key], found = times_of(table[key], form)
            elif key == "rating":
                numbers = number_column(table[key])
                columns[key], found = pa.array(numbers, from_pandas=True), [(np.isnan(numbers), "is not a number")]
            else:
                columns[key] = id_column(table[key])
                found = [(bad_ids(columns[key]), ID_RULE)]
        problems += [(key, bad, reason) for bad, reason in found]
    columns.setdefault("timestamp", pa.nulls(table.num_rows, pa.int64()))
    return columns, problems


@contextmanager
def naming_the_column(owner: str, key: str) -> Iterator[None]:
    """Says which column an error is about. Args: what messages call the source, and our name of the column."""
    try:
        yield
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{owner}: the column for `{key.removesuffix('_id')}` {error}.") from error


def in_words(key: str) -> str:
    """Our name of a column for a message. Args: the name."""
    return key.replace("_", " ")
