"""
A log that Spark reads: a DataFrame, a table of the catalog, Parquet files; its rows never pass through the driver.

The executors check every row with the functions of `columns.py`, as the embedded engine does: they need this package.
The position of a row is that of its file and its place in the file. A DataFrame that does not read files, or a view,
has the order of its partitions.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from hf_genrec.data.columns import TimeForm, TimeSurvey
from hf_genrec.data.readers import Log, converted, in_words, naming_the_column, require_columns
from hf_genrec.data.spark import Spark, without_warnings
from hf_genrec.data.tables import Source, owner_of, parquet_files
from hf_genrec.data.text_files import OnError, Skips


if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_TABLE = re.compile(r"\w+(\.\w+){0,2}")  # a name in the catalog; a file has a folder or an ending
_FILE_BITS, _PARTITION_BITS = 40, 33  # of a position: the row of a file; Spark's own numbers have a partition above 33


@dataclass
class _Source:
    """A source of rows: the frame, what messages call it, and the files that were asked for by name."""

    frame: DataFrame
    owner: str
    files: Sequence[str] | None = None
    has_files: bool = True


def load_frame(
    engine: Spark, source: Source, columns: Mapping[str, str], *, date_format: str | None, on_error: OnError
) -> Log | None:
    """
    Makes the table `source_rows` of a log that Spark itself can read; `None` for other sources.

    Args: the engine; a `pyspark.sql.DataFrame`, the name of a table, or Parquet files (one, a list, a pattern, a
        folder that Spark wrote, an address such as `s3a://...`); its columns by our names; for the others see
        [`~readers.open_interactions`].
    """
    found = _source_of(engine, source)
    if found is None:
        return None
    require_columns(found.frame.columns, dict(columns), found.owner)
    skips, keys = Skips(on_error), tuple(columns)
    with _placed(engine, found, columns) as frame, _naming(found.owner):
        order = _files_in_order(frame, found.files) if found.has_files else {}
        form = _form_of(frame, found.owner, keys, date_format)
        converted(_nothing_of(frame, keys), keys, found.owner, form)  # a type that holds no ids is named here
        engine.keep("source_rows", _checked(frame, keys, found.owner, form, order))
    counts = "SELECT count(*) AS number, min(position) AS first FROM source_rows WHERE NOT is_good"
    bad = engine.table(counts).to_pylist()[0]
    if bad["number"]:
        why = engine.table(f"SELECT reason FROM source_rows WHERE position = {bad['first']}").to_pylist()[0]
        names = {number: name for name, number in order.items()}
        skips.add(_place_of(bad["first"], names, found), why["reason"], number=bad["number"])
    if not engine.table("SELECT 1 AS one FROM source_rows WHERE is_good LIMIT 1").num_rows:
        raise skips.nothing_left(found.owner, "interactions")
    return Log(iter(()), skips)


def _source_of(engine: Spark, source: Source) -> _Source | None:
    from pyspark.sql import DataFrame

    if isinstance(source, DataFrame):
        return _Source(source, "the DataFrame", has_files=False)
    if isinstance(source, str) and _TABLE.fullmatch(source) and not Path(source).exists():
        if not engine.callers.catalog.tableExists(source):
            return None
        return _Source(engine.callers.table(source), f"the table {source}")
    is_path = isinstance(source, str | os.PathLike)
    is_hub = str(source).startswith("hf://")  # which Spark does not know
    if is_path and not is_hub and (os.path.isdir(source) or "://" in str(source)):
        return _Source(engine.reader.parquet(str(source)), str(source))
    files = None if is_hub else parquet_files(source)
    if files is None and is_path and str(source).endswith(".parquet") and os.path.isfile(source):
        files = [str(source)]
    if files is None or any("://" in file for file in files):
        return None
    with _naming(owner_of(source)):
        literal = (re.sub(r"([]*?\[{}\\])", r"\\\1", os.path.abspath(file)) for file in files)  # each is one file
        owner = files[0] if len(files) == 1 else f"{files[0]} (the first of {len(files)} files)"
        return _Source(engine.reader.parquet(*(f"file://{path}" for path in literal)), owner, files)


@contextmanager
def _placed(engine: Spark, source: _Source, columns: Mapping[str, str]) -> Iterator[DataFrame]:
    """The columns under our names with the file and the row of each, in the session of the engine."""
    from pyspark.errors import AnalysisException
    from pyspark.sql import functions as F
    from pyspark.sql.types import DecimalType

    wanted = []
    for key, name in columns.items():
        column = F.col("`" + name.replace("`", "``") + "`")
        is_unsigned = source.frame.schema[name].dataType == DecimalType(20, 0)  # how Spark reads 64 bits without sign
        wanted.append((column.cast("string") if is_unsigned else column).alias(key))
    numbered = source.frame.select(*wanted, F.lit("").alias("file"), F.monotonically_increasing_id().alias("row"))
    if source.has_files:
        try:
            numbered = source.frame.select(
                *wanted, F.col("_metadata.file_path").alias("file"), F.col("_metadata.row_index").alias("row")
            )
        except AnalysisException:  # a view
            source.has_files = False
    name = f"hf_genrec_{uuid.uuid4().hex}"  # the view is the only way from one session to another
    numbered.createGlobalTempView(name)
    try:
        yield engine.session_table(f"global_temp.{name}")
    finally:
        numbered.sparkSession.catalog.dropGlobalTempView(name)


def _files_in_order(frame: DataFrame, files: Sequence[str] | None) -> dict[str, int]:
    """The number of each file by the name that Spark has for it: in the order given, or else by name."""
    found = [row.file for row in frame.select("file").distinct().collect()]
    if files is None:
        return {name: number for number, name in enumerate(sorted(found, key=_path_of))}
    given = {os.path.abspath(file): number for number, file in enumerate(files)}
    return {name: given[_path_of(name)] for name in found}


def _path_of(name: str) -> str:
    return re.sub("^file:/+", "/", unquote(name))


def _form_of(frame: DataFrame, owner: str, keys: Sequence[str], date_format: str | None) -> TimeForm:
    """The form of the times, as counts of all partitions say."""
    if "timestamp" not in keys:
        return TimeForm("numbers", "seconds")
    with naming_the_column(owner, "timestamp"):
        survey = TimeSurvey(date_format)
        survey.add(_nothing_of(frame, ["timestamp"])["timestamp"])

    def surveyed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        part = TimeSurvey(date_format)
        for batch in batches:
            part.add(batch.column(0))
        yield pa.record_batch({"survey": pa.array([json.dumps(part.found)])})

    with without_warnings():
        parts = frame.select("timestamp").mapInArrow(surveyed, "survey string")
    for row in parts.toLocalIterator():
        survey.merge(json.loads(row.survey))
    return survey.form()


def _nothing_of(frame: DataFrame, keys: Sequence[str]) -> pa.Table:
    """A table without rows, which has the types."""
    return frame.select(*keys).limit(0).toArrow()


def _checked(frame: DataFrame, keys: Sequence[str], owner: str, form: TimeForm, order: Mapping[str, int]) -> DataFrame:
    """The rows in the types of a [`Log`], with positions; the first bad row of a batch says what is wrong with it."""

    def checked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            table = pa.Table.from_batches([batch])
            table.validate(full=True)
            columns, problems = converted(table, keys, owner, form)
            bad = np.logical_or.reduce([mask for _, mask, _ in problems])
            files = np.array([order.get(name, 0) for name in table["file"].to_pylist()], dtype=np.int64)
            positions = (files << _FILE_BITS) + table["row"].to_numpy()
            reasons: list[str | None] = [None] * len(bad)
            if bad.any():
                at = int(np.where(bad, positions, np.iinfo(np.int64).max).argmin())
                key, reason = next((key, reason) for key, mask, reason in problems if mask[at])
                reasons[at] = f"{in_words(key)} {table[key][at].as_py()!r} {reason}"
            columns |= {"position": positions, "is_good": ~bad, "reason": pa.array(reasons, pa.string())}
            yield pa.record_batch([_plain(columns[name]) for name in names], names)

    kinds = {"user_id": "string", "item_id": "string", "timestamp": "bigint", "rating": "double"}
    kinds = {key: kind for key, kind in kinds.items() if key in keys or key == "timestamp"}
    kinds |= {"is_good": "boolean", "position": "bigint", "reason": "string"}
    names = list(kinds)
    with without_warnings():
        return frame.mapInArrow(checked, ", ".join(f"{name} {kind}" for name, kind in kinds.items()))


def _plain(column: Any) -> pa.Array:
    return column.cast(pa.string()) if isinstance(column, pa.LargeStringArray) else pa.array(column)


def _place_of(position: int, names: Mapping[int, str], source: _Source) -> str:
    if source.has_files:
        number, row = position >> _FILE_BITS, position & (2**_FILE_BITS - 1)
        file = source.files[number] if source.files is not None else _path_of(names[number])
        return f"{file}: row {row + 1}"
    partition, row = position >> _PARTITION_BITS, position & (2**_PARTITION_BITS - 1)
    return f"{source.owner}: row {row + 1} of partition {partition + 1}"


@contextmanager
def _naming(owner: str) -> Iterator[None]:
    """Errors of Spark, hundreds of lines long, as one that names the source."""
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JJavaError) as error:
        lines = [line.strip(" :").removeprefix("Caused by: ") for line in str(error).splitlines()]
        said = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception)\b", line)]  # of Python, of Java
        raise ValueError(f"{owner} cannot be read by Spark: {(said or lines)[-1 if said else 0]}") from error
