"""
Item metadata in, one text per item out: the sentence that a text encoder reads.

A record is a mapping of metadata fields as they come from a catalog: strings, numbers, lists of strings, lists of
category paths. An item without any usable field gets the empty string; the caller decides what to do with it.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd


DEFAULT_FIELDS = ("title", "features", "categories", "description")

# A tag starts with a letter, "/" or "!" right after "<": "I <3 you" and "2 < 3 > 1" are no tags.
_TAG = re.compile(r"</?[a-zA-Z!][^<>]*>")
_LONG_REFERENCE = re.compile(r"&#(?:[0-9]{20,}|[xX][0-9a-fA-F]{20,});?")  # no character, and slow to convert
_NON_ASCII = re.compile(r"[^\x00-\x7f]+")


def default_fields(title: str = "title") -> tuple[str, ...]:
    """
    The fields of a text where the caller names none: the title, then what catalogs usually have. Args: title's field.
    """
    return (title, *DEFAULT_FIELDS[1:])


def clean_text(text: str, *, ascii_only: bool = False) -> str:
    """
    Plain text of one metadata string: HTML entities are resolved, tags removed, runs of white space become one space.

    Args: the string, and whether every run of non-ASCII characters becomes a space, as in the papers' code.

    Source: Hou et al. 2026, published preprocessing (https://huggingface.co/papers/2605.06331).
    """
    plain = html.unescape(_LONG_REFERENCE.sub("\ufffd", text)) if "&" in text else text
    plain = _TAG.sub(" ", _without_comments(plain)) if "<" in plain else plain
    if ascii_only:
        plain = _NON_ASCII.sub(" ", plain)
    return " ".join(plain.split())


def plain_text(value: Any, *, ascii_only: bool = False) -> str:
    """A string, a number or a collection of them, cleaned and joined with `", "`. Args: see [`clean_text`]."""
    if isinstance(value, str):
        return clean_text(value, ascii_only=ascii_only)
    cleaned = (clean_text(leaf, ascii_only=ascii_only) for leaf in leaves(value))
    return ", ".join(leaf for leaf in cleaned if leaf)


def item_text(record: Mapping[str, Any], *, fields: Sequence[str] = DEFAULT_FIELDS, ascii_only: bool = False) -> str:
    """
    The text of one item: its fields in order, cleaned and joined by spaces; empty if no field has content.

    A string or number stands as it is. A list (nested category paths are flattened) is joined with `", "` and closed
    with `"."`; a mapping becomes a list of `key: value`. Missing fields, `None`, NaN and empty strings are skipped.

    Args: the item's metadata, the fields in the order of the text, and `ascii_only` as for [`clean_text`].

    Example:

    ```python
    >>> item_text({"title": "Red <b>Polish</b>", "categories": [["Beauty", "Nails"], ["Gifts"]], "price": 3.5})
    'Red Polish Beauty, Nails, Gifts.'

    ```
    """
    if isinstance(fields, str):
        raise TypeError(f"`fields` must be a sequence of field names, got the string {fields!r}. Pass ({fields!r},).")
    parts = (_field_text(record.get(field), ascii_only=ascii_only) for field in fields)
    return " ".join(part for part in parts if part)


def _without_comments(text: str) -> str:
    """A regular expression would look for the end of every comment that has none, in quadratic time."""
    kept, start = [], 0
    while (begin := text.find("<!--", start)) >= 0 and (end := text.find("-->", begin + 4)) >= 0:
        kept.append(text[start:begin])
        start = end + 3
    return " ".join([*kept, text[start:]])


def _field_text(value: Any, *, ascii_only: bool) -> str:
    """Text of one field; empty if there is nothing to say."""
    if value is None:
        return ""
    text = plain_text(value, ascii_only=ascii_only)
    return f"{text}." if text and _is_collection(value) else text


def leaves(value: Any) -> Iterator[str]:
    """All scalars inside a value, depth first, as strings; what is missing is left out. Args: content of a field."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            text = ", ".join(leaves(inner))
            if text:
                yield f"{key}: {text}"
    elif _is_collection(value):
        for inner in value:
            yield from leaves(inner)
    elif value is not None and not pd.isna(value):
        yield str(value)


def _is_collection(value: Any) -> bool:
    return (
        not isinstance(value, str)
        and isinstance(value, (list, tuple, Mapping))
        or (isinstance(value, np.ndarray) and value.ndim > 0)
    )
