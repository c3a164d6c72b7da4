"""
Items tables in, one record per item out: JSON, CSV, TSV or Parquet with any column for the id.

The table of a catalog has `item_id`, `title` and `text` first and every other field behind, nested ones as JSON.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import pyarrow as pa

from hf_genrec.data.columns import ID_RULE, id_string, is_bad_id, text_of
from hf_genrec.data.items import default_fields, item_text, plain_text
from hf_genrec.data.readers import ReadTable, open_source, records_of
from hf_genrec.data.tables import Source, owner_of
from hf_genrec.data.text_files import OnError, Record, Skips, TextFile, first_names


MAX_FIELDS = 1_000  # of all items together, each of which becomes a column

logger = logging.getLogger(__name__)


def read_items(
    source: Source,
    *,
    item: str = "item_id",
    title: str = "title",
    fields: Sequence[str] | None = None,
    ascii_only: bool = False,
    only: Set[str] | None = None,
    delimiter: str | None = None,
    on_error: OnError = "raise",
    allow_huge: bool = False,
) -> ReadTable:
    """
    Reads an items table and makes the text of every item. Columns are `item_id`, `title`, `text`, then every other
    field in the order of the source; a field that is called `text` counts only through `fields`.

    Args: a JSON, CSV, TSV or Parquet file, or what [`~tables.table_of`] reads (JSON is one object per line, one array
        of objects, or one object of objects whose keys are the ids); the fields of the ids and of the titles; the
        fields of the text, [`default_fields`] if `None`, see [`item_text`]; `ascii_only` as for [`clean_text`]; the
        ids of the items to keep; the others: see [`~readers.open_interactions`]. An id that comes twice is malformed.
    """
    skips, num_lost, has_id = Skips(on_error), 0, False
    fields = default_fields(title) if fields is None else fields
    seen: dict[str, Record] = {}  # the first record of every item, without its values
    columns: dict[str, list[Any]] = {"item_id": [], "title": [], "text": []}
    for record in _records(source, item, delimiter, allow_huge=allow_huge):
        values = record.values or {}
        has_id = has_id or item in values
        item_id = id_string(values.get(item))
        problem = record.error or _problem_of(values, item, item_id, seen)
        if problem is not None:
            skips.add(record.shown, problem)
        elif item_id is not None and (only is None or item_id in only):
            text = item_text(values, fields=fields, ascii_only=ascii_only)
            num_lost += ascii_only and 2 * len(text) < len(item_text(values, fields=fields, ascii_only=False))
            shown = values.get(title)
            own = {"item_id": item_id, "title": plain_text(text_of(shown) or shown), "text": text}
            for name, value in ({name: value for name, value in values.items() if name != item} | own).items():
                column = columns.setdefault(name, [])
                column += [None] * (len(seen) - len(column))  # items before it without such a field
                column.append(value)
            if len(columns) > MAX_FIELDS:
                raise ValueError(f"{record.place}: the items have more than {MAX_FIELDS:,} fields: leave some out.")
            seen[item_id] = record._replace(values=None, text="")
    if not has_id:
        skipped = f" {skips.count} were skipped, the first: {skips.first}" if skips.count else ""
        raise ValueError(
            f"The items table {owner_of(source, 'in memory')} has no record with the field {item!r}: name the field "
            f"of the ids with `items_id`.{skipped}"
        )
    if num_lost:
        logger.warning(
            "The texts of %d items lost most of their characters, which are not ASCII: pass `ascii_only=False` to "
            "keep them.", num_lost
        )  # fmt: skip
    arrays = {name: _column([*values, *[None] * (len(seen) - len(values))]) for name, values in columns.items()}
    return ReadTable(pa.table(arrays), skips)


def _records(source: Source, item: str, delimiter: str | None, *, allow_huge: bool) -> Iterator[Record]:
    """The records one at a time, so that a large table never has to fit in memory."""
    opened = open_source(source, delimiter, allow_huge=allow_huge)
    if isinstance(opened, TextFile):
        return opened.records(key=item)
    if isinstance(opened, list):
        return records_of(opened)
    owner = owner_of(source, "")
    return (Record(owner, number, row, unit="row") for number, row in enumerate(opened.rows(), start=1))


def _problem_of(values: Mapping[str, Any], item: str, item_id: str | None, seen: Mapping[str, Record]) -> str | None:
    """What keeps a record out of the table, or `None`."""
    if item_id is None:
        if values.get(item) is not None:
            return f"the field {item!r} holds {str(values[item])[:200]!r}; ids are strings or whole numbers"
        other = "" if item in values else "; name the field of the ids with `items_id`"
        return f"no id in the field {item!r}; the fields are {first_names(values)}{other}"
    if item_id in seen:
        return f"item id {item_id!r} has a record already ({seen[item_id].place})"
    return f"item id {item_id!r} {ID_RULE}" if is_bad_id(item_id) else None


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
