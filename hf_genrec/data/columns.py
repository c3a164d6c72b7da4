"""
Columns of any Arrow type in; ids, numbers and times out.

Whatever wrote a table (pandas 2 or 3, polars, Spark, `datasets`), one column of strings may come as `string`,
`large_string`, `string_view`, `binary` or a dictionary, one of times as any `timestamp`, a date, a number or a text.
Only this file knows the difference. What is no id, number or time comes out as null (NaN), never as a guess.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from decimal import Decimal
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc


logger = logging.getLogger(__name__)

SPECIAL_TOKENS = "<pad>, <unk>, <eos>, <user>, <latent_0>, <code_0_0> and so on"  # a vocabulary has them besides items
ID_RULE = f"is empty, holds whitespace or a broken character, or is a special token ({SPECIAL_TOKENS})"
_TOKEN = re.compile(r"<(pad|unk|eos|user|latent_[0-9]+|code_[0-9]+_[0-9]+)>")
_BROKEN = re.compile("[\x00-\x1f\x7f-\x9f\ufffd]")
_BAD_ID = rf"[\p{{Cc}}\x{{FFFD}}\p{{Z}}]|^({_TOKEN.pattern})?$"
_NUMBER = r"^\s*[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,3})?\s*$"

# Units of times, each in milliseconds. That of a column is the first whose bound its median is below.
UNITS = {
    "seconds": (1e3, 1e11),
    "milliseconds": (1.0, 1e14),
    "microseconds": (1e-3, 1e17),
    "nanoseconds": (1e-6, 1e20),
}
_COMPACT = {"yyyymmdd": 8, "yyyymmddHHMM": 12, "yyyymmddHHMMSS": 14}
_MOST = 0.9  # of the numbers (or texts) of a column must be dates of a form for the column to have it
_COMMON_FORMATS = [
    date + time
    for date in ("%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y", "%Y.%m.%d")
    for time in ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
]
_LATEST = 1e14  # milliseconds; an interaction after the year 5138 (or 3,168 years before 1970) is no interaction
_NOW = (6.3e11, 4.1e12)  # milliseconds, the years 1990 to 2099: a number that means a date in another unit


class Times(NamedTuple):
    """Milliseconds since the epoch (int64, null where there is no time), and what is wrong with which rows."""

    values: pa.Array
    problems: list[tuple[np.ndarray, str]]


def text_of(value: Any) -> str | None:
    """
    One value of a record as text: whole numbers without a fraction (pandas makes 7 to 7.0 where a column has gaps);
    `None` for what is missing, a list or a mapping. Args: any value.
    """
    if isinstance(value, str):
        return value
    if type(value) is int and abs(value) < 2**63:  # the usual case, quick
        return str(value)
    if value is None or isinstance(value, Mapping | Sequence | Set | np.ndarray) or pd.isna(value):
        return None
    if isinstance(value, float | np.floating | Decimal) and abs(float(value)) < 2**53 and value == int(value):
        return str(int(value))
    try:
        return str(value)
    except ValueError:  # an integer of more than 4,300 digits
        return None


def id_string(value: Any) -> str | None:
    """A string or whole number as a string; `None` for what is no id (missing, 1.5, true, a list). Args: any value."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, Real | Decimal) and not isinstance(value, bool | np.bool_)
    text = text_of(value) if is_number else None
    return text if text is not None and text.lstrip("-").isdecimal() else None


def is_bad_id(value: str) -> bool:
    """Whether an id is empty, holds whitespace or a broken character, or names a special token. Args: the id."""
    return value.split() != [value] or _BROKEN.search(value) is not None or _TOKEN.fullmatch(value) is not None


def id_column(column: pa.ChunkedArray | pa.Array) -> pa.LargeStringArray:
    """Ids as strings; null where the column holds no string and no whole number. Args: any column."""
    column = _plain(column)
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        numbers = column.cast(pa.float64(), safe=False)
        whole = pc.and_(pc.less(pc.abs(numbers), 2.0**53), pc.equal(numbers, pc.floor(numbers)))
        column = pc.if_else(whole, numbers, None).cast(pa.int64())
    if pa.types.is_boolean(column.type):
        raise ValueError("holds true and false; ids must be strings or whole numbers")
    # Large strings: a log of 100 million rows has more than 2 GiB of ids.
    return pa.concat_arrays([pa.array([], pa.large_string()), *column.cast(pa.large_string()).chunks])


def bad_ids(ids: pa.LargeStringArray) -> np.ndarray:
    """
    Which ids are null or bad after [`is_bad_id`]; patterns look at distinct values only, and only where the bytes are
    not all ASCII letters, digits and marks. Args: what [`id_column`] returned.
    """
    if _are_plain(ids):
        return np.zeros(len(ids), dtype=bool)
    encoded = ids.dictionary_encode()
    bad = pc.match_substring_regex(encoded.dictionary, _BAD_ID).to_numpy(zero_copy_only=False).astype(bool)
    codes = encoded.indices.fill_null(len(bad)).to_numpy(zero_copy_only=False)
    return np.append(bad, True)[codes]  # null reads the entry appended


def _are_plain(ids: pa.LargeStringArray) -> bool:
    """Whether no id is null or empty, and none has a character besides `!` to `~`, or the `<` of a special token."""
    codes, lengths = _bytes_of(ids)
    return len(codes) > 0 and bool(
        lengths.min() > 0 and codes.min() > 32 and codes.max() < 127 and not (codes == ord("<")).any()
    )


def _bytes_of(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all texts, which stand in a row, and how many each has; nothing if one is null."""
    _, places, content = texts.buffers()
    if texts.null_count or not len(texts) or content is None:
        return np.array([], np.uint8), np.array([], np.int64)
    ends = np.frombuffer(places, np.int64)[texts.offset :][: len(texts) + 1]
    return np.frombuffer(content, np.uint8)[ends[0] : ends[-1]], np.diff(ends)


def _whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of which all texts are some digits as integers, any other as it is."""
    if not pa.types.is_large_string(column.type):
        return column
    for chunk in column.chunks:
        codes, lengths = _bytes_of(chunk)
        is_whole = len(codes) and lengths.min() > 0 and lengths.max() < 19 and codes.min() > 47 and codes.max() < 58
        if not is_whole:
            return column
    return column.cast(pa.int64())


def number_column(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The column as float64; what is no finite number becomes NaN. Args: numbers or texts."""
    column = _whole_numbers(_plain(column))
    if pa.types.is_integer(column.type) and not column.null_count:
        return column.to_numpy().astype(np.float64)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        texts = column.cast(pa.large_string())
        is_number = pc.match_substring_regex(texts, _NUMBER)
        column = pc.utf8_trim_whitespace(pc.if_else(is_number, texts, None))
        column = pc.replace_substring_regex(column, r"^\+", "")
    numbers = column.cast(pa.float64(), safe=False).to_pandas().to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(numbers), numbers, np.nan)


class TimeForm(NamedTuple):
    """How a whole column of times is written: as `"numbers"` of a unit, as numbers that spell dates, or as texts."""

    kind: str  # "numbers", "compact" or "texts"
    detail: str  # the unit, the compact form, or the format of the texts
    is_given: bool = False  # the caller named it
    hint: str = ""  # for texts that do not have the form


class TimeSurvey:
    """
    What decides the form of a column that comes in parts, such as the unit that its median has.

    Only counts and extremes are kept, so the column may have any length, and surveys of parts may be merged.

    Args: the format of the texts, where it is known.
    """

    def __init__(self, date_format: str | None = None) -> None:
        if date_format is not None and "%" not in date_format:
            raise ValueError(f"needs a `date_format` with directives such as %Y, got {date_format!r}")
        self.date_format = date_format
        self.counts: Counter[str] = Counter()  # of rows, numbers, texts, and those that have a form
        self.largest: dict[str, float] = {}  # of all numbers, and of those below the bound of a unit
        self.smallest: dict[str, float] = {}  # of the others, with its sign turned

    def add(self, column: pa.ChunkedArray | pa.Array) -> None:
        """Looks at a part. Args: timestamps, dates, numbers or texts; other types are a `ValueError`."""
        column = _plain(column) if self.date_format else _whole_numbers(_plain(column))
        if _is_time(column, self.date_format) or self._add_extremes(column):
            return
        numbers = number_column(column)
        found = numbers[~np.isnan(numbers)]
        self.counts.update(rows=len(numbers), numbers=len(found))
        if len(found):
            self._keep(self.largest, "all", found.max())
        for form, digits in _COMPACT.items():
            self.counts[form] += int((~np.isnan(_compact_dates(found, digits))).sum())
        sizes = np.abs(found)
        for unit, (_, bound) in UNITS.items():
            below = sizes < bound
            self.counts[unit] += int(below.sum())
            if below.any():
                self._keep(self.largest, unit, sizes[below].max())
            if not below.all():
                self._keep(self.smallest, unit, -sizes[~below].min())
        if pa.types.is_large_string(column.type) and len(found) <= len(numbers) / 2 and not self.date_format:
            self._add_texts(column)

    def _add_extremes(self, column: pa.ChunkedArray) -> bool:
        """Adds whole numbers of which the least and the largest say all, quickly; whether they do."""
        low, high = _extremes(column)
        borders = [bound for _, bound in UNITS.values()]
        borders += [year * 10 ** (digits - 4) for digits in _COMPACT.values() for year in (1980, 2101)]
        if low <= 0 or any(low < border <= high for border in borders):
            return False
        if any(1980 <= low // 10 ** (digits - 4) < 2101 for digits in _COMPACT.values()):
            return False
        self.counts.update(rows=len(column), numbers=len(column))
        self._keep(self.largest, "all", high)
        for unit, (_, bound) in UNITS.items():
            self.counts[unit] += len(column) if high < bound else 0
            self._keep(*((self.largest, unit, high) if high < bound else (self.smallest, unit, -low)))
        return True

    @property
    def found(self) -> dict[str, dict[str, float]]:
        """Counts and extremes so far, which JSON holds."""
        return {"counts": dict(self.counts), "largest": self.largest, "smallest": self.smallest}

    def merge(self, found: Mapping[str, Mapping[str, float]]) -> None:
        """Adds what a survey of other parts of the same column found. Args: its `found`."""
        for name, number in found["counts"].items():
            self.counts[name] += int(number)
        for kept, extremes in ((self.largest, found["largest"]), (self.smallest, found["smallest"])):
            for name, value in extremes.items():
                self._keep(kept, name, value)

    def form(self) -> TimeForm:
        """The form of the column."""
        counts = self.counts
        if self.date_format is not None:
            return TimeForm("texts", self.date_format, is_given=True)
        if counts["texts"] and counts["numbers"] < counts["rows"] / 2:  # a few broken lines make no column of dates
            return self._form_of_texts()
        for form in _COMPACT:
            if counts[form] >= max(1, _MOST * counts["numbers"]):
                logger.warning("Times such as %d are read as dates (%s), not as seconds.", self.largest["all"], form)
                return TimeForm("compact", form)
        return TimeForm("numbers", next((unit for unit in UNITS if self._median_is_below(unit)), "nanoseconds"))

    def _median_is_below(self, unit: str) -> bool:
        """Whether the median of the absolute numbers is below the bound of a unit; of no number it is 0."""
        number, below = self.counts["numbers"], self.counts[unit]
        if 2 * below == number and number:  # it is the mean of the two numbers beside the bound
            return (self.largest[unit] - self.smallest[unit]) / 2 < UNITS[unit][1]
        return 2 * below >= number

    def _add_texts(self, column: pa.ChunkedArray) -> None:
        """Counts the texts that have a form; what is not ISO 8601 is tried in every common way."""
        self.counts["texts"] += len(column) - column.null_count
        num_iso = int((~np.isnan(_dates(column, "ISO8601"))).sum())
        self.counts["ISO8601"] += num_iso
        if 2 * num_iso < len(column):
            for date_format in _COMMON_FORMATS:
                self.counts[date_format] += int((~np.isnan(_dates(column, date_format))).sum())

    def _form_of_texts(self) -> TimeForm:
        """ISO 8601, or the one common format that reads (nearly) all; two that read as many leave it open."""
        best = max(_COMMON_FORMATS, key=self.counts.__getitem__)
        number = self.counts[best]
        if number <= self.counts["ISO8601"] or number < _MOST * self.counts["texts"]:
            return TimeForm("texts", "ISO8601")
        others = [name for name in _COMMON_FORMATS if name != best and self.counts[name] == number]
        if others:
            return TimeForm("texts", "ISO8601", hint=f", and {best!r} and {others[0]!r} fit alike")
        logger.warning("Times are read as dates of the form %r.", best)
        return TimeForm("texts", best)

    def _keep(self, kept: dict[str, float], name: str, value: float) -> None:
        kept[name] = max(kept.get(name, -np.inf), float(value))


def time_column(column: pa.ChunkedArray | pa.Array, date_format: str | None = None) -> Times:
    """
    Times of any form as milliseconds. The unit of numbers is that of their median; 20191001 is a date where (nearly)
    all numbers of the column are such dates.

    Args: timestamps, dates, numbers, or texts with numbers or dates; `date_format` is that of
    [`~readers.open_interactions`].
    """
    survey = TimeSurvey(date_format)
    survey.add(column)
    return times_of(column, survey.form())


def times_of(column: pa.ChunkedArray | pa.Array, form: TimeForm) -> Times:
    """A part of a column of times as milliseconds. Args: the part, and the form of the whole column."""
    column = _plain(column) if form.kind == "texts" else _whole_numbers(_plain(column))
    problems: list[tuple[np.ndarray, str]] = []
    unreadable = (
        "is neither a number nor an ISO 8601 time such as 2020-12-24 18:30:00; for another form pass `date_format`, "
        f"such as '%d.%m.%Y %H:%M'{form.hint}"
    )
    if _is_time(column, form.detail if form.is_given else None):
        numbers = _milliseconds_of(column)
    elif form.kind == "texts":
        if form.detail != "ISO8601":
            unreadable = f"does not have the form `date_format={form.detail!r}`"
        numbers = _dates(column, form.detail)
    else:
        numbers, problems = _in_milliseconds(number_column(column), form, _extremes(column))
    if pa.types.is_integer(column.type) and form.kind == "numbers" and not problems and not column.null_count:
        if np.abs(numbers).max(initial=0) < _LATEST:
            return Times(pa.array(np.round(numbers).astype(np.int64)), [])
    missing = np.isnan(numbers)
    too_far = np.abs(np.where(missing, 0, numbers)) >= _LATEST
    problems = [(missing, unreadable), *problems, (too_far, "lies beyond the year 5138")]
    usable = ~(missing | too_far)
    milliseconds = np.round(np.where(usable, numbers, 0)).astype(np.int64)
    return Times(pa.array(milliseconds, mask=~usable), problems)


def _is_time(column: pa.ChunkedArray, date_format: str | None) -> bool:
    """Whether a column holds points in time as such; a `ValueError` for types that hold none."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        if date_format is not None:
            raise ValueError(f"holds {column.type}; `date_format` is for times written as text")
        return True
    if pa.types.is_temporal(column.type) or pa.types.is_boolean(column.type):
        raise ValueError(f"holds {column.type}, which is no point in time")
    return False


def _extremes(column: pa.ChunkedArray) -> tuple[float, float]:
    """The least and the largest of whole numbers without gaps; of other columns no bounds."""
    if not pa.types.is_integer(column.type) or column.null_count or not len(column):
        return -np.inf, np.inf
    found = pc.min_max(column).as_py()
    return found["min"], found["max"]


def _in_milliseconds(
    numbers: np.ndarray, form: TimeForm, extremes: tuple[float, float]
) -> tuple[np.ndarray, list[tuple[np.ndarray, str]]]:
    """Numbers of one form and their extremes, and which of them are dates of our days in another unit."""
    if form.kind == "compact":
        milliseconds = _compact_dates(numbers, _COMPACT[form.detail])
        is_other = np.isnan(milliseconds) & ~np.isnan(numbers)
        return milliseconds, [(is_other, f"is no date in the form {form.detail}, as the others of the column are")]
    problems = []
    for name, (factor, _) in UNITS.items():
        if name != form.detail and extremes[0] * factor < _NOW[1] and extremes[1] * factor > _NOW[0]:
            scaled = np.nan_to_num(numbers) * factor
            reason = f"looks like {name} where the column holds {form.detail}: write all times in one unit"
            problems.append(((scaled > _NOW[0]) & (scaled < _NOW[1]), reason))
    return numbers * UNITS[form.detail][0], problems


def _compact_dates(numbers: np.ndarray, num_digits: int) -> np.ndarray:
    """Numbers such as 20191001 or 20191001183000 as float64 milliseconds, NaN for others; the years 1980 to 2100."""
    places = 10 ** (num_digits - 4)
    is_date = (numbers >= 1980 * places) & (numbers < 2101 * places) & (numbers == np.floor(numbers))
    if not is_date.any():
        return np.full(len(numbers), np.nan)
    whole = np.where(is_date, numbers, 1980 * places + places // 100 + places // 10_000).astype(np.int64)
    date, time = np.divmod(whole, 10 ** (num_digits - 8))
    year, month, day = date // 10_000, date // 100 % 100, date % 100
    time *= 10 ** (14 - num_digits)
    hour, minute, second = time // 10_000, time // 100 % 100, time % 100
    first = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = first.astype("datetime64[D]") + (day - 1)
    is_date &= (month >= 1) & (month <= 12) & (day >= 1) & (days.astype("datetime64[M]") == first)
    is_date &= (hour < 24) & (minute < 60) & (second < 60)
    return np.where(is_date, days.astype(np.int64) * 86_400e3 + (hour * 3600 + minute * 60 + second) * 1e3, np.nan)


def _milliseconds_of(column: pa.ChunkedArray) -> np.ndarray:
    """Timestamps and dates as float64 milliseconds, NaN for null; far beyond what a date can be, nothing overflows."""
    if pa.types.is_date32(column.type):
        factor, column = 86_400_000.0, column.cast(pa.int32())
    else:
        ticks = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
        factor, column = ticks[getattr(column.type, "unit", "ms")], column.cast(pa.int64())  # a date64 has no unit
    return column.to_pandas().to_numpy(dtype=np.float64, na_value=np.nan) * factor


def _dates(column: pa.ChunkedArray, date_format: str) -> np.ndarray:
    """Texts as float64 milliseconds, NaN for what has another form. Times without a zone count as UTC."""
    texts = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    if date_format == "ISO8601":
        texts = pc.replace_substring_regex(texts, r"^(\d{4})/(\d{1,2})/(\d{1,2})", r"\1-\2-\3")
        texts = pc.replace_substring_regex(texts, r"([+-]\d{2}:?\d{2})\s*(UTC|GMT)$", r"\1")
        texts = pc.replace_substring_regex(texts, r"\s*(UTC|GMT|utc|gmt)$", "Z")
        texts = pc.if_else(pc.match_substring_regex(texts, r"^\d{4}"), texts, None)  # no "now", no "today"
    times = pd.to_datetime(texts.to_pandas(), format=date_format, utc=True, errors="coerce")
    return _milliseconds_of(pa.array(times.dt.tz_localize(None).astype("datetime64[ms]"), from_pandas=True))


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    """Without dictionaries, run ends, extension types and the several types of strings."""
    column = pa.chunked_array([column]) if isinstance(column, pa.Array) else column
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    if pa.types.is_dictionary(column.type):  # Arrow cannot cast all of them, such as a Categorical of polars
        empty = pa.DictionaryArray.from_arrays(pa.array([], pa.int8()), pa.nulls(0, column.type.value_type))
        chunks = column.chunks or [empty]
        return pa.chunked_array([_plain(part.dictionary).combine_chunks().take(part.indices) for part in chunks])
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_nested(column.type):
        raise ValueError(f"holds {column.type}, one value for each row is needed")
    if pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    return column.cast(pa.large_string()) if column.type in _TEXTS else column


_TEXTS = {pa.string(), pa.string_view(), pa.null(), pa.binary(), pa.large_binary(), pa.binary_view()}
