"""
Text files with one record per line: opening, decoding, naming the place where something is wrong, counting it.

The bytes may be anything. Gzip is recognised by its first bytes, whatever the name; text is UTF-8, or UTF-16 with a
byte order mark; lines end in any of the three ways. No line and no packed file may be so long that one line stops
everything. The readers of logs, of items tables and of public data sets share it. Line numbers count from 1.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import logging
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from hf_genrec.files import first_five


logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]

MAX_LINE = 2**24  # characters of a line: far more than any review, little for the memory
MAX_DOCUMENT = 2**28  # characters of a file that is one JSON array or object
MAX_EXPANSION, ALWAYS_ALLOWED = 200, 2**28  # text packs to a third or a tenth; only bombs to less than 1 / 200
DELIMITERS = {"csv": ",", "tsv": "\t", "jsonl": None}  # of each text format
MAX_DEPTH = 100  # lists in lists
MAX_DIGITS = 4_300  # of an integer, as in Python
_TOO_MANY_DIGITS = f"an integer of more than {MAX_DIGITS:,} digits"
_SHOWN, _SHOWN_NAME, _REASON = 200, 60, 500  # characters of a line, a name, a reason in a message
_BLOCK = 2**22  # bytes that are given to a parser at a time
_LOOK_AHEAD = 10_000  # lines that may be read in vain for the end of a quoted field, beside one for each line read
_JSON = dict.fromkeys((".jsonl", ".json", ".ndjson"), "jsonl")
_FORMATS = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"} | _JSON
_NO_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel table",
    b"\xd0\xcf\x11\xe0": "an Excel table",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "packed twice",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"(\xb5/\xfd": "a Zstandard archive",
}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Skips:
    """
    Lines that are left out: how many, and the first of them with its place and reason; or the error at the first.

    Args: `on_error`, the argument of a reader.
    """

    def __init__(self, on_error: str = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f'`on_error` must be "raise" or "skip", got {on_error!r}.')
        self.on_error, self.count = on_error, 0
        self.first: str | None = None

    def add(self, place: str, reason: str, *, number: int = 1) -> None:
        """Counts bad lines, the first of which is at `place`, or raises `ValueError`."""
        message = f"{place}: {reason[:_REASON]}."  # ids and fields may have any length
        if self.on_error == "raise":
            raise ValueError(f'{message} Pass `on_error="skip"` to count and skip such lines.')
        self.count += number
        self.first = self.first or message

    def report(self, what: str) -> None:
        """One warning for all."""
        if self.count:
            logger.warning("%d lines of %s were skipped, the first: %s", self.count, what, self.first)

    def nothing_left(self, owner: str, what: str) -> ValueError:
        """The error for a source of which nothing could be used."""
        if not self.count:
            return ValueError(f"{owner} holds no {what}.")
        return ValueError(
            f"{owner} holds no {what} that can be read: {self.count} were skipped, the first: {self.first}"
        )


class Record(NamedTuple):
    """A line of a file or a row of a table: place, field to value (`None` if malformed), error, text of the line."""

    owner: str
    number: int
    values: Mapping[str, Any] | None = None
    error: str | None = None
    text: str = ""
    unit: str = "line"

    @property
    def place(self) -> str:
        """Where it stands, such as `log.csv: line 3`."""
        where = f"{self.unit} {self.number}"
        return f"{self.owner}: {where}" if self.owner else where

    @property
    def shown(self) -> str:
        """The place, with the beginning of the line."""
        return f"{self.place} ({self.text[:_SHOWN]!r:.{_REASON}})" if self.text else self.place

    def holding(self, values: Any) -> Record:
        """The record with its values, or with an error if they are no object."""
        is_object = isinstance(values, dict)
        return self._replace(**({"values": values} if is_object else {"error": "not a JSON object"}))


class TextFile:
    """
    A file of JSON or of delimited lines; it must not be empty.

    Args: the file, plain or gzipped; the delimiter, one character, or `None` for JSON (fields may be quoted unless it
        is a tab); names of the fields, where the first line holds none; what reads a line that is not delimited; and
        whether no line and no packed file is too long.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        delimiter: str | None = None,
        header: list[str] | None = None,
        parse: Callable[[str], Any] | None = None,
        allow_huge: bool = False,
    ) -> None:
        self.path, self.delimiter, self.has_header, self.allow_huge = Path(path), delimiter, header is None, allow_huge
        self.parse = parse or parse_json
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError(f"`delimiter` must be one character, got {delimiter!r}.")
        if not any(line.error or line.text.strip() for line in self.lines()):
            raise ValueError(f"{path} is empty.")
        self.header = header or []
        if delimiter is not None and header is None:
            self.header = self._read_header(delimiter)

    def lines(self) -> Iterator[Record]:
        """Every line, blank ones too; one that is too long or no text has an error."""
        longest, owner = -2 if self.allow_huge else MAX_LINE, str(self.path)
        with self._decoded() as file:
            for number, text in enumerate(iter(lambda: file.readline(longest + 1), ""), start=1):
                error = None
                if len(text) > longest >= 0 and not text.endswith("\n"):
                    error = f"longer than {longest:,} characters; pass `allow_huge=True` to read it"
                    while (rest := file.readline(longest)) and not rest.endswith("\n"):
                        pass
                elif not text.isascii():
                    error = _undecoded(text)
                yield Record(owner, number, None, error, text.rstrip("\n"))

    def records(self, *, key: str | None = None) -> Iterator[Record]:
        """
        Every record, malformed ones without values; blank lines are left out. A JSON file may also be one array of
        objects or, if `key` names the field of the keys, one object of objects.
        """
        if self.delimiter is None:
            yield from self._json_records(key)
            return
        rows = self._rows(self.delimiter)
        if self.has_header:
            next(rows, None)
        for line, fields in rows:
            if fields is not None and len(fields) == len(self.header):
                yield line._replace(values=dict(zip(self.header, fields, strict=True)))
            else:
                error = f"malformed, expected {len(self.header)} fields, found {len(fields or [])}"
                yield line._replace(error=line.error or error)

    def blocks(self) -> Iterator[bytes]:
        """Whole lines as they are, without a byte order mark, about four million bytes at a time."""
        with self._opened() as file:
            mark = codecs.BOM_UTF8 if file.peek(3).startswith(codecs.BOM_UTF8) else b""
            file.read(len(mark))
            while block := file.read(_BLOCK):
                yield block + file.readline(MAX_LINE)

    def _read_header(self, delimiter: str) -> list[str]:
        line, fields = next(self._rows(delimiter))
        if fields is None:
            raise ValueError(f"{self.path}: line {line.number}, the header, cannot be read: {line.error}.")
        check_distinct(fields, str(self.path))
        return fields

    def _json_records(self, key: str | None) -> Iterator[Record]:
        owner = str(self.path)
        document = self._document()
        if isinstance(document, dict):
            # With the name of the ids among the keys it is a table by columns, as `DataFrame.to_json()` writes.
            if key is None or key in document or not all(isinstance(value, dict) for value in document.values()):
                raise ValueError(
                    f"{owner} holds one JSON object with the keys {first_names(document)}; expected is one object per "
                    'line, or one array of objects (`to_json(orient="records")` of a DataFrame).'
                )
            document = [{key: name, **value} for name, value in document.items()]
        if document is not None:
            for number, values in enumerate(document, start=1):
                yield Record(owner, number, unit="record").holding(values)
            return
        for line in self.lines():
            if line.error is None:
                if not line.text.strip():
                    continue
                try:
                    line = line.holding(self.parse(line.text))
                except ValueError as reason:
                    line = line._replace(error=str(reason))
            yield line

    def _document(self) -> list[Any] | dict[str, Any] | None:
        """The content of a file that is one array, or one object of objects or over several lines, in one piece."""
        first = next(line for line in self.lines() if line.error or line.text.strip())
        if first.text.lstrip()[:1] not in ("[", "{"):
            return None
        try:
            values = self.parse(first.text)
            if isinstance(values, dict) and not (values and all(isinstance(value, dict) for value in values.values())):
                return None
        except ValueError:
            pass  # an object over several lines, or a malformed line
        parts, size = [], 0
        for line in self.lines():
            size += len(line.text)
            if line.error is not None or (size > MAX_DOCUMENT and not self.allow_huge):
                return None
            parts.append(line.text)
        try:
            document = self.parse("\n".join(parts))
        except ValueError:
            return None
        return document if isinstance(document, list | dict) else None

    def _rows(self, delimiter: str) -> Iterator[tuple[Record, list[str] | None]]:
        """
        The rows of a delimited file: their first line and their fields, `None` where these cannot be separated.

        A quoted field may hold line ends. A quotation mark that nothing closes would take all lines up to the next one
        with it, and these are rows; then only its own line is malformed, and reading goes on with the line after it.
        """
        ahead: deque[Record] = deque()
        lines = self.lines()
        wasted = 0

        def following() -> Record | None:
            return ahead.popleft() if ahead else next(lines, None)

        while (line := following()) is not None:
            if line.error is not None:
                yield line, None
            elif not line.text.strip():
                continue
            elif delimiter == "\t" or '"' not in line.text:
                yield line, line.text.split(delimiter)
            else:
                taken = [line]
                fields, error = _quoted(taken, following, delimiter, _LOOK_AHEAD + line.number - wasted)
                is_row = fields is not None and len(fields) == len(self.header or fields)
                if fields is None or not (is_row or self._is_one_row(taken[1:], delimiter)):
                    wasted += len(taken) - 1
                    ahead.extendleft(reversed(taken[1:]))
                    yield line._replace(error=error or _OPEN_QUOTE), None
                else:
                    damaged = next((part for part in taken if part.error is not None), None)
                    yield (line, fields) if damaged is None else (damaged, None)

    def _is_one_row(self, lines: list[Record], delimiter: str) -> bool:
        """Whether lines go on inside a quoted field of a row of the wrong length: none of them is a row of its own."""
        even = (line for line in lines if line.text.count('"') % 2 == 0)
        rows = (_quoted([line], lambda: None, delimiter, 0)[0] for line in even)
        return all(len(row or []) != len(self.header) for row in rows)

    @contextmanager
    def _opened(self) -> Iterator[io.BufferedReader]:
        """The bytes, unpacked; they must be text."""
        try:
            with open(self.path, "rb") as plain:
                file = plain
                if plain.peek(2)[:2] == b"\x1f\x8b":
                    file = io.BufferedReader(cast(io.RawIOBase, _Unpacked(self, plain)), 2**17)
                start = file.peek(8)[:8]
                kind = next((kind for mark, kind in _NO_TEXT.items() if start.startswith(mark)), None)
                if kind is not None:
                    raise ValueError(f"{self.path} is {kind}, not text: unpack or export it, or correct its ending.")
                yield file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.path} is damaged or incomplete ({error}): fetch or pack it again.") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is no UTF-16 ({error.reason}): convert it to UTF-8.") from error

    @contextmanager
    def _decoded(self) -> Iterator[io.TextIOWrapper]:
        with self._opened() as file:
            is_wide = file.peek(8)[:8].startswith((b"\xff\xfe", b"\xfe\xff"))
            encoding, errors = ("utf-16", "surrogatepass") if is_wide else ("utf-8-sig", "surrogateescape")
            with io.TextIOWrapper(file, encoding=encoding, errors=errors) as text:
                yield text


class _Unpacked(gzip.GzipFile):
    """What a packed file holds; the packed bytes come in."""

    def __init__(self, file: TextFile, packed: io.BufferedReader) -> None:
        super().__init__(fileobj=packed)
        self._file, self._size = file, file.path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        check_expansion(self._file.path, self.tell(), self._size, allow_huge=self._file.allow_huge)
        return content


_OPEN_QUOTE = "a quotation mark opens a field and nothing closes it"


def format_of(path: Path, delimiter: str | None = None) -> str:
    """
    `"csv"`, `"tsv"`, `"parquet"` or `"jsonl"`, inferred from the extension of a file; a last `.gz` does not count.

    Args: the file, and the delimiter: where one is given, files with any other extension are delimited text.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in _FORMATS and delimiter is None:
        raise ValueError(f"{path}: the name must end in one of {', '.join(_FORMATS)} (text also followed by .gz).")
    return _FORMATS.get(suffix, "csv")


def check_expansion(path: str | os.PathLike[str], size: int, packed: int, *, allow_huge: bool) -> None:
    """Refuses a bomb. Args: the file, the bytes that it holds unpacked and packed, and whether they may be many."""
    if size > max(ALWAYS_ALLOWED, MAX_EXPANSION * packed) and not allow_huge:
        raise ValueError(
            f"{path} unpacks to {size:,} bytes, more than {MAX_EXPANSION} times its size. If that is right, pass "
            "`allow_huge=True`."
        )


def first_names(names: Iterable[Any]) -> str:
    """
    Names of a file for a message: the first five, and of each the beginning, since they may be anything. Args: names.
    """
    return first_five([str(name)[:_SHOWN_NAME] for name in names])


def check_distinct(names: Sequence[str], owner: str) -> None:
    """
    Refuses two columns of one name, of which one would be lost. Args: the columns, and whose they are, for the error.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"{owner} has several columns called {_first_repeated(names)!r}: give each its own name.")


def parse_json(text: str) -> Any:
    """
    The value of a JSON text. A `ValueError` has the reason only: no JSON, a key twice, or see [`writable`]. Args: any.
    """
    try:
        value = json.loads(text)
        if not isinstance(value, dict) or text.count(":") != len(value):  # else no key can be there twice
            value = json.loads(text, object_pairs_hook=_with_distinct_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON, {error}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError as error:
        reason = str(error)
        raise ValueError(_TOO_MANY_DIGITS if "digits" in reason else reason) from error
    if _SURROGATE.search(text) or text.count("[") + text.count("{") > MAX_DEPTH:
        value = writable(value)
    return value


def writable(value: Any) -> Any:
    """
    The value of a record as it can be written: half a character, as in a title cut inside an emoji, becomes U+FFFD. A
    `ValueError` says that it is nested too deeply or holds an integer of thousands of digits.

    Args: what JSON can hold, or objects that have a `str`.
    """
    if isinstance(value, dict) and all(type(x) is str and x.isascii() or x is None for x in (*value, *value.values())):
        return value  # the usual case, quick
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = (outer.values() if isinstance(outer, Mapping) else outer for outer in level)
        level = [inner for outer in nested if isinstance(outer, list | tuple | ValuesView) for inner in outer]
        if not level:
            break
    else:
        raise ValueError("nested too deeply")
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
        text.encode()
    except UnicodeEncodeError:
        return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except ValueError as error:
        raise ValueError(_TOO_MANY_DIGITS) from error
    return value


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"the key {_first_repeated([name for name, _ in pairs])!r} comes twice")
    return values


def _first_repeated(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))[:_SHOWN]  # type: ignore[func-returns-value]


def _quoted(
    taken: list[Record], following: Callable[[], Record | None], delimiter: str, allowance: int
) -> tuple[list[str] | None, str | None]:
    """
    The fields of a line with quotation marks, or the reason why there are none; the lines that a quoted field goes on
    in are added to `taken`, at most `allowance`.
    """

    def texts() -> Iterator[str]:
        size = 0
        while len(taken) <= max(allowance, 1) and size <= MAX_LINE:
            size += len(taken[-1].text)
            yield f"{taken[-1].text}\n"
            line = following() if len(taken) <= allowance else None
            if line is None:
                return
            taken.append(line)

    limit = csv.field_size_limit(2**31 - 1)
    try:
        return next(csv.reader(texts(), delimiter=delimiter, strict=True)), None
    except csv.Error as error:
        if len(taken) > 1 or "end of data" in str(error):
            return None, _OPEN_QUOTE
        return next(csv.reader([taken[0].text], delimiter=delimiter)), None  # a mark inside: `"5" pipe"`
    finally:
        csv.field_size_limit(limit)


def _undecoded(text: str) -> str | None:
    """What is wrong with a line some bytes of which could not be decoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        found = f"byte {code - 0xDC00:#04x}" if 0xDC80 <= code <= 0xDCFF else "half a character"
        return f"not UTF-8: {found} after {error.start} characters; convert the file first"
    return None
