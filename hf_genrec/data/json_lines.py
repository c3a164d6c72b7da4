"""
JSON Lines in one layout, as programs write logs: their columns, several times faster than one line at a time.

A block of whole lines comes in; the values of some fields, as texts, go out if every line has the fields of the first
one, in its order and with its separators, and plain values. At any doubt nothing goes out, and the block is to be read
line by line. A regular expression does it: a native reader would have to trust bytes that nothing has looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hf_genrec.data.text_files import parse_json


_IDS = ("user_id", "item_id")
# The pieces of a line, without backtracking (`*+`): any line takes time in proportion to its length.
_TEXT = r'"([^"\\\x00-\x1f]*+)"'
_WHOLE = r"(0|-?[1-9][0-9]{0,39})"
# Numbers as records write them: 7.0 as 7. Those with more digits or an exponent would be other texts there.
_NUMBER = (
    r"((?:0|-?[1-9][0-9]{0,39})(?=[,}])|(?:0|-?[1-9][0-9]{0,14})(?=\.0[,}])"
    r"|-?(?:0|[1-9][0-9]{0,9})\.[0-9]{0,3}[1-9](?=[,}]))(?:\.0)?"
)
_ANY_TEXT = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
_ANY_NUMBER = r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,3})?"
_ANY = f"(?:{_ANY_TEXT}|{_ANY_NUMBER}|true|false|null)"
_SEPARATORS = ((", ", ": "), (",", ":"), (",", ": "))  # of Python, of pandas and polars, of others


def columns_of(block: str, columns: Mapping[str, str]) -> dict[str, list[str]] | None:
    """
    The values of a block of JSON Lines, a list per column; `None` if a line is not in the layout of the first one.

    Args: whole lines, and the fields by the names of the columns, of which `user_id` and `item_id` hold ids.
    """
    block = block if block.endswith("\n") else f"{block}\n"
    first = block[: block.index("\n") + 1]
    record = _flat_record(first, columns)
    layout = None if record is None else _layout_of(first, record, columns)
    if record is None or layout is None:
        return None
    fields = [field for field in record if field in columns.values()]
    # Between two lines lies nothing, then come the values of the next: no tuple per line, which would take most time.
    parts = layout.split(block)
    between, *found = (parts[at :: len(fields) + 1] for at in range(len(fields) + 1))
    if any(between) or len(between) != block.count("\n") + 1:
        return None
    values = dict(zip(fields, found, strict=True))
    return {key: values[field] for key, field in columns.items()}


def _flat_record(line: str, columns: Mapping[str, str]) -> dict[str, Any] | None:
    """The record of a line, if it has all fields, of which an id is no fraction and nothing is missing."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or len(set(columns.values()) & record.keys()) < max(2, len(columns)):
        return None
    kinds = {key: type(record[field]) for key, field in columns.items()}
    is_plain = all(kind in ((str, int) if key in _IDS else (str, int, float)) for key, kind in kinds.items())
    return record if is_plain else None


def _layout_of(line: str, record: Mapping[str, Any], columns: Mapping[str, str]) -> re.Pattern[str] | None:
    """A pattern for lines as this one, with a group for each field that is wanted; `None` if there is none."""
    kinds = dict.fromkeys(record, _ANY)
    for key, field in columns.items():
        number = _WHOLE if key in _IDS else _NUMBER
        kinds[field] = _TEXT if isinstance(record[field], str) else number
    for comma, colon in _SEPARATORS:
        fields = comma.join(f'"{re.escape(field)}"{colon}{kind}' for field, kind in kinds.items())
        layout = re.compile(rf"^\{{{fields}\}}\n", re.MULTILINE)
        if layout.match(line):
            return layout
    return None
