"""
Text files, line by line: opening, decoding, and telling where something is wrong.

Lines in, numbered lines or an error out. Text is UTF-8, plain or gzipped (`.gz`). Line numbers count from 1, byte
offsets from 0. Shared by the readers of logs and of items tables.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal


OnError = Literal["raise", "skip"]

SKIP_HINT = 'Pass `on_error="skip"` to count and skip such lines.'
SHOWN = 200  # characters of a malformed line in a message
_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".jsonl": "jsonl", ".json": "jsonl"}
_SUFFIXES |= {".ndjson": "jsonl"}


def open_text(path: str | os.PathLike[str]) -> IO[str]:
    """
    Opens a plain or gzipped UTF-8 text file for reading.

    Args:
        path (`str` or `os.PathLike`): the file; gzip is told by its first bytes, whatever the name.

    Returns:
        A text file object; a byte order mark at its start is left out, line ends are kept as they are.
    """
    return io.TextIOWrapper(_open_bytes(Path(path)), encoding="utf-8-sig", newline="")


def numbered_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """
    Walks through the lines of a text file that are not blank.

    Args:
        path (`str` or `os.PathLike`): a plain or gzipped UTF-8 text file.

    Yields:
        `tuple[int, str]`: the line number, from 1, and the line without its end.

    Raises:
        ValueError: If the file is empty or not UTF-8; the byte offset is named.
    """
    path = Path(path)
    check_not_empty(path)
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError:
        check_utf8(path)
        raise


def check_not_empty(path: Path) -> None:
    """
    Refuses a file without a byte in it.

    Args:
        path (`Path`): the file, plain or gzipped.

    Raises:
        ValueError: If there is nothing to read.
    """
    with _open_bytes(path) as file:
        if not file.read(1):
            raise ValueError(f"{path} is empty.")


def check_utf8(path: Path) -> None:
    """
    Looks for the first byte that is not UTF-8; called when a reader has stumbled.

    Args:
        path (`Path`): the file, plain or gzipped.

    Raises:
        ValueError: With the byte and its offset, if there is one.
    """
    offset = 0
    with _open_bytes(path) as file:
        for line in file:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                position = offset + error.start
                raise ValueError(
                    f"{path} is not UTF-8: byte {line[error.start]:#04x} at byte offset {position}"
                    f"{' of the unpacked text' if _is_gzip(path) else ''}. Convert the file first."
                ) from error
            offset += len(line)


def format_of(path: Path) -> str:
    """
    Tells the format of a file by its name.

    Args:
        path (`Path`): the file; a last `.gz` is looked through.

    Returns:
        `str`: `"csv"`, `"tsv"`, `"parquet"` or `"jsonl"`.

    Raises:
        ValueError: If the name ends in something else.

    Example:

    ```python
    >>> format_of(Path("log.tsv.gz"))
    'tsv'

    ```
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else "".join(suffixes[-1:])
    if suffix not in _SUFFIXES:
        raise ValueError(f"{path}: the name must end in one of {', '.join(_SUFFIXES)} (text also with .gz behind).")
    return _SUFFIXES[suffix]


def csv_header(path: Path, delimiter: str) -> list[str]:
    """
    The column names of a delimited file.

    Args:
        path (`Path`): the file, plain or gzipped.
        delimiter (`str`): comma or tab.

    Returns:
        `list[str]`: the fields of the first line.

    Raises:
        ValueError: If that line is not UTF-8.
    """
    with open_text(path) as file:
        try:
            return next(csv.reader(file, delimiter=delimiter, quoting=quoting_of(delimiter)))
        except UnicodeDecodeError:
            check_utf8(path)
            raise


def quoting_of(delimiter: str) -> Literal[0, 3]:
    """
    How fields are quoted: in comma-separated files with `"`, in tab-separated ones not at all.

    Args:
        delimiter (`str`): comma or tab.

    Returns:
        `int`: the constant of the `csv` module.
    """
    return csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE


def place_in_csv(path: Path, delimiter: str, num_columns: int, *, row: int | None, has_header: bool) -> str:
    """
    Finds the line of a well-formed row, or of the first malformed one; slow, for messages only.

    Args:
        path (`Path`): the file, plain or gzipped.
        delimiter (`str`): comma or tab.
        num_columns (`int`): fields of a well-formed row.
        row (`int` or `None`): number of the well-formed row, from 0; `None` looks for the first malformed one.
        has_header (`bool`): whether the first line holds names.

    Returns:
        `str`: file, line number and the line itself.
    """
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting_of(delimiter))
        well_formed = -2 if has_header else -1
        for fields in reader:
            if fields and len(fields) != num_columns:
                if row is None:
                    return f"{path}: line {reader.line_num} ({delimiter.join(fields)[:SHOWN]!r})"
            elif fields:
                well_formed += 1
                if well_formed == row:
                    return f"{path}: line {reader.line_num} ({delimiter.join(fields)[:SHOWN]!r})"
    return str(path) if row is None else f"{path}: row {row + 1}"


def parse_json_line(line: str) -> tuple[dict[str, Any] | None, str]:
    """
    Reads one line of a JSON Lines file.

    Args:
        line (`str`): the line.

    Returns:
        `tuple[dict | None, str]`: the object and an empty string, or `None` and what is wrong.

    Example:

    ```python
    >>> parse_json_line('{"item_id": 3}'), parse_json_line("[3]")
    (({'item_id': 3}, ''), (None, 'not a JSON object'))

    ```
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return None, f"not JSON, {error}"
    return (record, "") if isinstance(record, dict) else (None, "not a JSON object")


def place_in_lines(path: Path, row: int) -> str:
    """
    Finds the line of a row in a file with one record per line; slow, for messages only.

    Args:
        path (`Path`): the file, plain or gzipped.
        row (`int`): number of the line among those that are not blank, from 0.

    Returns:
        `str`: file, line number and the line itself.
    """
    for index, (number, line) in enumerate(numbered_lines(path)):
        if index == row:
            return f"{path}: line {number} ({line[:SHOWN]!r})"
    return f"{path}: row {row + 1}"


def check_on_error(on_error: str) -> None:
    """
    Refuses anything but `"raise"` and `"skip"`.

    Args:
        on_error (`str`): the argument of a reader.

    Raises:
        ValueError: If it is something else.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'`on_error` must be "raise" or "skip", got {on_error!r}.')


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if _is_gzip(path) else open(path, "rb")  # type: ignore[return-value]
