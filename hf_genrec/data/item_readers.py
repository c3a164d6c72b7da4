"""
Items tables in, one record per item out: JSON Lines, CSV, TSV or Parquet with any column for the id.

[`iterate_items`] walks through a table without holding it; [`read_items`] makes the table of a catalog, with
`item_id`, `title` and `text` first and every other field behind, nested ones as JSON strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence, Set
from typing import Any

import pandas as pd
import pyarrow as pa

from hf_genrec.data.columns import ID_RULE, id_string, is_bad_id
from hf_genrec.data.items import clean_text, default_fields, item_text
from hf_genrec.data.readers import ReadTable, Source, open_source
from hf_genrec.data.text_files import SKIP_HINT, OnError, Record, TextFile, check_on_error


def read_items(
    source: Source | list[dict[str, Any]],
    *,
    item: str = "item_id",
    title: str = "title",
    fields: Sequence[str] | None = None,
    ascii_only: bool = True,
    only: Set[str] | None = None,
    delimiter: str | None = None,
    on_error: OnError = "raise",
) -> ReadTable:
    """
    Reads an items table and makes the text of every item. Columns are `item_id`, `title`, `text`, then every other
    field in the order of the source; a field that is called `text` counts only through `fields`.

    Args:
        source (`str`, `os.PathLike`, `pyarrow.Table`, `pandas.DataFrame` or `list[dict]`):
            JSON Lines, CSV, TSV or Parquet file, or records already in memory.
        item (`str`, *optional*, defaults to `"item_id"`): Field of the ids. Integers are converted to strings.
        title (`str`, *optional*, defaults to `"title"`): Field that people read.
        fields (`Sequence[str]`, *optional*): See [`item_text`]; `None` is [`default_fields`] of `title`.
        ascii_only (`bool`, *optional*, defaults to `True`): See [`clean_text`].
        only (`Set[str]`, *optional*): Ids of the items to keep; `None` keeps all.
        delimiter (`str`, *optional*): See [`~readers.read_interactions`].
        on_error (`"raise"` or `"skip"`, *optional*): See there; an id that comes twice is malformed too.
    """
    fields = default_fields(title) if fields is None else fields
    places: dict[str, str] = {}
    columns: dict[str, list[Any]] = {"item_id": [], "title": [], "text": []}
    num_skipped, first_skipped, has_id = 0, None, False
    for record in iterate_items(source, delimiter=delimiter, on_error=on_error):
        values = record.values or {}
        has_id = has_id or item in values
        item_id = id_string(values.get(item))
        problem = record.error or _problem_of(values, item, item_id, places)
        if problem is not None:
            message = f"{record.shown}: {problem}."
            if on_error == "raise":
                raise ValueError(f"{message} {SKIP_HINT}")
            num_skipped, first_skipped = num_skipped + 1, first_skipped or message
        elif item_id is not None and (only is None or item_id in only):
            places[item_id] = record.place
            shown = values.get(title)
            row = {"item_id": item_id, "title": clean_text(shown, ascii_only=False) if isinstance(shown, str) else ""}
            row["text"] = item_text(values, fields=fields, ascii_only=ascii_only)
            _append(columns, {name: value for name, value in values.items() if name != item} | row)
    if not has_id:
        in_memory = isinstance(source, list | pa.Table | pd.DataFrame)
        owner = "in memory" if in_memory else str(source)
        raise ValueError(f"The items table {owner} has no record with the field {item!r}.")
    table = pa.table({name: _column(values) for name, values in columns.items()})
    return ReadTable(table, num_skipped, first_skipped)


def iterate_items(
    source: Source | list[dict[str, Any]], *, delimiter: str | None = None, on_error: OnError = "raise"
) -> Iterator[Record]:
    """
    Walks through an items table one record at a time, so that a large table never has to fit in memory.

    Args:
        source (`str`, `os.PathLike`, `pyarrow.Table`, `pandas.DataFrame` or `list[dict]`): See [`read_items`].
        delimiter (`str`, *optional*): See [`~readers.read_interactions`].
        on_error (`"raise"` or `"skip"`, *optional*): Malformed lines: stop, or a [`Record`] without values.
    """
    check_on_error(on_error)
    opened = source if isinstance(source, list) else open_source(source, delimiter)
    if isinstance(opened, TextFile):
        for record in opened.records():
            if record.error is not None and on_error == "raise":
                raise ValueError(f"{record.shown}: {record.error}. {SKIP_HINT}")
            yield record
        return
    for row, values in enumerate(_rows_of(opened), start=1):
        yield Record(f"row {row}", values)


def _rows_of(opened: Any) -> Iterator[dict[str, Any]]:
    """The rows of a list, a table or a Parquet file, the latter two in batches."""
    if isinstance(opened, list):
        yield from opened
        return
    batches = opened.to_batches(10_000) if isinstance(opened, pa.Table) else opened.iter_batches(10_000)
    for batch in batches:
        yield from batch.to_pylist()


def _problem_of(values: dict[str, Any], item: str, item_id: str | None, places: dict[str, str]) -> str | None:
    """What keeps a record out of the table, or `None`."""
    if item_id is None:
        return f"no id in the field {item!r}; the fields are {', '.join(map(str, values))}"
    if item_id in places:
        return f"item id {item_id!r} has a record already ({places[item_id]})"
    return f"item id {item_id!r} {ID_RULE}" if is_bad_id(item_id) else None


def _append(columns: dict[str, list[Any]], row: dict[str, Any]) -> None:
    """Adds one row; a field that appears for the first time is filled up with nulls."""
    num_rows = len(columns["item_id"])
    columns |= {name: [None] * num_rows for name in row if name not in columns}
    for name, values in columns.items():
        values.append(row.get(name))


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
