"""
Items tables in, one record per item out: JSON Lines, CSV, TSV or Parquet with any column for the id.

[`iterate_items`] walks through a table without holding it; [`read_items`] makes the table of a catalog, with
`item_id`, `title` and `text` first and every other field behind, nested ones as JSON strings.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from hf_genrec.data.items import DEFAULT_FIELDS, clean_text, item_text
from hf_genrec.data.log_readers import ID_RULE, ReadTable, Source, id_string, is_bad_id, table_in_memory
from hf_genrec.data.text_files import (
    SHOWN,
    SKIP_HINT,
    OnError,
    check_not_empty,
    check_on_error,
    check_utf8,
    format_of,
    numbered_lines,
    open_text,
    parse_json_line,
    quoting_of,
)


@dataclass(frozen=True)
class ItemRow:
    """
    One record of an items table.

    Attributes:
        place (`str`): the file and line, or the row number, for messages.
        record (`dict` or `None`): field to value; `None` for a malformed line.
        error (`str` or `None`): what is wrong with a malformed line.
    """

    place: str
    record: dict[str, Any] | None
    error: str | None = None


def read_items(
    source: Source | list[dict[str, Any]],
    *,
    item: str = "item_id",
    title: str = "title",
    fields: Sequence[str] = DEFAULT_FIELDS,
    ascii_only: bool = True,
    only: Set[str] | None = None,
    on_error: OnError = "raise",
) -> ReadTable:
    """
    Reads an items table and writes the text of every item.

    Args:
        source (`str`, `os.PathLike`, `pyarrow.Table`, `pandas.DataFrame` or `list[dict]`):
            JSON Lines, CSV, TSV or Parquet file, or records already in memory.
        item (`str`, *optional*, defaults to `"item_id"`):
            Name of the field with the ids. Integers are converted to strings.
        title (`str`, *optional*, defaults to `"title"`):
            Name of the field that people read.
        fields (`Sequence[str]`, *optional*, defaults to title, features, categories, description):
            The fields of the text, in order; see [`~items.item_text`].
        ascii_only (`bool`, *optional*, defaults to `True`):
            See [`~items.clean_text`].
        only (`Set[str]` or `None`, *optional*):
            Ids to keep; `None` keeps all. A large table is never held as a whole.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            What malformed lines and repeated ids do: stop, or be counted and left out (the first of an id stays).

    Returns:
        [`ReadTable`]: `item_id`, `title`, `text` (empty if an item has none), then the other fields as given; a list
        or a mapping as a JSON string. A field of the file that is called `text` counts only through `fields`.

    Raises:
        ValueError: If the file is empty or not UTF-8, no record has the id field, or, with `on_error="raise"`, a line
            is malformed or an id comes twice.

    Example:

    ```python
    >>> read_items([{"id": 3, "title": "Ball", "categories": [["Toys"]]}], item="id").table.to_pylist()
    [{'item_id': '3', 'title': 'Ball', 'text': 'Ball Toys.', 'categories': '[["Toys"]]'}]

    ```
    """
    places: dict[str, str] = {}
    columns: dict[str, list[Any]] = {"item_id": [], "title": [], "text": []}
    num_skipped, first_skipped, has_id = 0, None, False
    for row in iterate_items(source, on_error=on_error):
        has_id = has_id or (row.record is not None and item in row.record)
        item_id = id_string(row.record.get(item)) if row.record is not None else None
        problem = _problem_of(row, item, item_id, places)
        if problem is not None:
            if on_error == "raise":
                raise ValueError(f"{row.place}: {problem}. {SKIP_HINT}")
            num_skipped, first_skipped = num_skipped + 1, first_skipped or f"{row.place}: {problem}."
        elif item_id is not None and row.record is not None and (only is None or item_id in only):
            places[item_id] = row.place
            text = item_text(row.record, fields=fields, ascii_only=ascii_only)
            _append(
                columns, {"item_id": item_id, "title": _title(row.record.get(title)), "text": text}, row.record, item
            )
    if not has_id:
        raise ValueError(f"The items table {_name_of(source)} has no record with the field {item!r}.")
    table = pa.table({name: _column(values) for name, values in columns.items()})
    return ReadTable(table, num_skipped, first_skipped)


def iterate_items(source: Source | list[dict[str, Any]], *, on_error: OnError = "raise") -> Iterator[ItemRow]:
    """
    Walks through an items table one record at a time, so a large table never has to fit in memory.

    Args:
        source (`str`, `os.PathLike`, `pyarrow.Table`, `pandas.DataFrame` or `list[dict]`):
            JSON Lines, CSV, TSV or Parquet file, or records already in memory.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            What a malformed line does. A skipped line comes out as an [`ItemRow`] without a record.

    Yields:
        [`ItemRow`]: where the record stands and the record.

    Raises:
        ValueError: If the file is empty or not UTF-8, or, with `on_error="raise"`, at a malformed line.

    Example:

    ```python
    >>> next(iterate_items([{"item_id": 3, "title": "Ball"}]))
    ItemRow(place='row 1', record={'item_id': 3, 'title': 'Ball'}, error=None)

    ```
    """
    check_on_error(on_error)
    if isinstance(source, list):
        yield from (ItemRow(f"row {row}", record) for row, record in enumerate(source, start=1))
    elif isinstance(source, pa.Table | pd.DataFrame) or format_of(Path(source)) == "parquet":
        table = source if isinstance(source, pa.Table) else table_in_memory(source)
        row = 0
        for batch in table.to_batches(max_chunksize=10_000):
            for record in batch.to_pylist():
                row += 1
                yield ItemRow(f"row {row}", record)
    else:
        yield from _iterate_item_lines(Path(source), on_error)


def _problem_of(row: ItemRow, item: str, item_id: str | None, places: dict[str, str]) -> str | None:
    """What keeps a record out of the table, or `None`."""
    if row.record is None:
        return row.error
    if item_id is None:
        return f"no id in the field {item!r}; the fields are {', '.join(map(str, row.record))}"
    if item_id in places:
        return f"item id {item_id!r} has a record already ({places[item_id]})"
    return f"item id {item_id!r} {ID_RULE}" if is_bad_id(item_id) else None


def _append(columns: dict[str, list[Any]], ours: dict[str, str], record: dict[str, Any], item: str) -> None:
    """Adds one row; a field that appears for the first time is filled up with nulls."""
    num_rows = len(columns["item_id"])
    others = {name: value for name, value in record.items() if name not in ours and name != item}
    columns |= {name: [None] * num_rows for name in others if name not in columns}
    for name, values in columns.items():
        values.append(ours[name] if name in ours else others.get(name))


def _title(value: Any) -> str:
    return clean_text(value, ascii_only=False) if isinstance(value, str) else ""


def _column(values: list[Any]) -> pa.Array:
    """Scalars of one kind as they are, everything nested as JSON, a mixture as strings."""
    plain = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    kinds = {type(value) for value in plain} - {type(None)}
    if kinds <= {str}:
        return pa.array(plain, pa.string())
    if kinds in ({bool}, {int}, {float}, {int, float}):
        try:
            return pa.array(plain, pa.float64() if kinds == {int, float} else None)
        except (OverflowError, pa.ArrowInvalid):
            pass  # an integer beyond 64 bits: keep its digits
    return pa.array([value if value is None or isinstance(value, str) else _as_json(value) for value in plain])


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _name_of(source: Any) -> str:
    return "in memory" if isinstance(source, list | pa.Table | pd.DataFrame) else str(source)


def _iterate_item_lines(path: Path, on_error: OnError) -> Iterator[ItemRow]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file.")
    kind = format_of(path)
    check_not_empty(path)
    rows = _json_rows(path) if kind == "jsonl" else _csv_rows(path, "," if kind == "csv" else "\t")
    for row in rows:
        if row.error is not None and on_error == "raise":
            raise ValueError(f"{row.place}: {row.error}. {SKIP_HINT}")
        yield row


def _json_rows(path: Path) -> Iterator[ItemRow]:
    for number, line in numbered_lines(path):
        record, problem = parse_json_line(line)
        place = f"{path}: line {number}"
        yield ItemRow(place, record) if record is not None else ItemRow(f"{place} ({line[:SHOWN]!r})", None, problem)


def _csv_rows(path: Path, delimiter: str) -> Iterator[ItemRow]:
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with open_text(path) as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting_of(delimiter))
            header = next(reader, [])
            for fields in reader:
                place = f"{path}: line {reader.line_num}"
                if fields and len(fields) == len(header):
                    yield ItemRow(place, dict(zip(header, fields, strict=True)))
                elif fields:
                    shown = f"{place} ({delimiter.join(fields)[:SHOWN]!r})"
                    yield ItemRow(shown, None, f"malformed, {len(header)} fields were expected")
    except UnicodeDecodeError:
        check_utf8(path)
        raise
    finally:
        csv.field_size_limit(limit)
