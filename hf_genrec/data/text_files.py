"""
Text files with one record per line: opening, decoding, and naming the place where something is wrong.

Text is UTF-8, plain or gzipped. Line numbers count from 1, byte offsets from 0. The readers of logs, of items tables
and of public data sets share it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal


OnError = Literal["raise", "skip"]

SKIP_HINT = 'Pass `on_error="skip"` to count and skip such lines.'
_SHOWN = 200  # characters of a malformed line in a message
_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
}
DELIMITERS = {"csv": ",", "tsv": "\t", "jsonl": None}  # of each text format


@dataclass(frozen=True)
class Record:
    """
    One record of a file or table: its place for messages, field to value (`None` if malformed), the error, the line.
    """

    place: str
    values: dict[str, Any] | None
    error: str | None = None
    line: str = ""

    @property
    def shown(self) -> str:
        """The place, with the beginning of the line."""
        return f"{self.place} ({self.line[:_SHOWN]!r})" if self.line else self.place


class TextFile:
    """
    A file of JSON Lines or of delimited lines; it must not be empty.

    Args:
        path (`str` or `os.PathLike`): The file; gzip is recognised by its first bytes, whatever the name.
        delimiter (`str`, *optional*): One character, `None` for JSON Lines. Fields may be quoted unless it is a tab.
        header (`list[str]`, *optional*): Names of the fields, where the first line holds none.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, delimiter: str | None = None, header: list[str] | None = None
    ) -> None:
        self.path, self.delimiter, self.has_header = Path(path), delimiter, header is None
        if delimiter is not None and len(delimiter) != 1:
            raise ValueError(f"`delimiter` must be one character, got {delimiter!r}.")
        with self._open_bytes() as file:
            if not file.read(1):
                raise ValueError(f"{path} is empty.")
        self.header = header or []
        if delimiter is not None and header is None:
            self.header = next((fields for _, fields in self._rows()), [])
            other = next((mark for mark in ";\t|," if len(self.header) == 1 and mark in self.header[0]), None)
            if other is not None:
                raise ValueError(
                    f"{path} has one column, {self.header[0]!r}, with the delimiter {delimiter!r}. If its fields are "
                    f"separated by {other!r}, pass `delimiter={json.dumps(other)}`."
                )

    @property
    def is_quoted(self) -> bool:
        """`bool`: whether fields may be quoted; then one may hold line breaks."""
        return self.delimiter != "\t"

    def lines(self) -> Iterator[tuple[int, str]]:
        """The number of each line that is not blank, and the line without its end."""
        with self._decoded() as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")

    def records(self) -> Iterator[Record]:
        """Every record, malformed ones without values; blank lines are left out."""
        if self.delimiter is None:
            for number, line in self.lines():
                values, error = _parse_json(line)
                yield Record(f"{self.path}: line {number}", values, error, line)
            return
        rows = self._rows()
        if self.has_header:
            next(rows, None)
        for number, fields in rows:
            place, line = f"{self.path}: line {number}", self.delimiter.join(fields)
            if len(fields) == len(self.header):
                yield Record(place, dict(zip(self.header, fields, strict=True)), None, line)
            else:
                yield Record(place, None, f"malformed, expected {len(self.header)} fields", line)

    def place_of(self, row: int | None) -> str:
        """The place of a well-formed record, from 0, or of the first malformed one (`None`); slow, for messages."""
        well_formed = -1
        for record in self.records():
            well_formed += record.values is not None
            if (record.values is None) if row is None else (well_formed == row):
                return record.shown
        return str(self.path) if row is None else f"{self.path}: row {row + 1}"

    def check_utf8(self) -> None:
        """Raises `ValueError` with the first byte that is not UTF-8, if there is one; called when a reader failed."""
        offset = 0
        with self._open_bytes() as file:
            for line in file:
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    unpacked = " of the unpacked text" if isinstance(file, gzip.GzipFile) else ""
                    raise ValueError(
                        f"{self.path} is not UTF-8: byte {line[error.start]:#04x} at byte offset "
                        f"{offset + error.start}{unpacked}. Convert the file first."
                    ) from error
                offset += len(line)

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The lines of a delimited file as fields, with the number of the last line of each."""
        limit = csv.field_size_limit(2**31 - 1)
        try:
            with self._decoded() as file:
                quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.is_quoted else csv.QUOTE_NONE
                reader = csv.reader(file, delimiter=self.delimiter or ",", quoting=quoting)
                yield from ((reader.line_num, fields) for fields in reader if fields)
        finally:
            csv.field_size_limit(limit)

    @contextmanager
    def _decoded(self) -> Iterator[IO[str]]:
        try:
            with io.TextIOWrapper(self._open_bytes(), encoding="utf-8-sig", newline="") as file:
                yield file
        except UnicodeDecodeError:
            self.check_utf8()
            raise

    def _open_bytes(self) -> IO[bytes]:
        with open(self.path, "rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        return gzip.open(self.path, "rb") if is_gzip else open(self.path, "rb")  # type: ignore[return-value]


def format_of(path: Path, delimiter: str | None = None) -> str:
    """
    `"csv"`, `"tsv"`, `"parquet"` or `"jsonl"`, inferred from the extension of a file.

    Args:
        path (`Path`): The file; a last `.gz` does not count.
        delimiter (`str`, *optional*): Given, files with any other extension are taken for delimited text.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else "".join(suffixes[-1:])
    if suffix not in _FORMATS and delimiter is None:
        raise ValueError(f"{path}: the name must end in one of {', '.join(_FORMATS)} (text also followed by .gz).")
    return _FORMATS.get(suffix, "csv")


def check_on_error(on_error: str) -> None:
    """
    Refuses anything but `"raise"` and `"skip"`.

    Args:
        on_error (`str`): The argument of a reader.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'`on_error` must be "raise" or "skip", got {on_error!r}.')


def _parse_json(line: str) -> tuple[dict[str, Any] | None, str | None]:
    """The object of one line, or what is wrong with it."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        return None, f"not JSON, {error}"
    return (values, None) if isinstance(values, dict) else (None, "not a JSON object")
