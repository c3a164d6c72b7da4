"""
The steps of a preparation on Spark: SQL statements go in, Arrow record batches come out.

The same statements as on DuckDB (see `engines.py`), run by the executors of a session. Every table is a checkpoint, so
a plan never grows with the rounds of a k-core; the driver holds no more than one partition of a table at a time.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa


if TYPE_CHECKING:
    from pyspark.sql import DataFrame, DataFrameReader, SparkSession

ROWS_AT_ONCE = 2**20  # that the driver hands over to the executors
LOCAL_MEMORY = "4g"  # of a session on this machine; Spark's own 1 GB is for a driver that leaves rows to executors


class Spark:
    """
    A session of Spark, with tables and settings of its own.

    The attribute `callers` is the session of the caller. Args: the master's URL, such as `"local[4]"` or
    `"spark://host:7077"`; `None` is the session that is there, that of `spark-submit`, or else all cores of
    this machine.
    """

    def __init__(self, master: str | None = None) -> None:
        with without_warnings():
            self.callers = session = _session(master)
        self._session = session.newSession()  # views and settings of its own: the caller's stay as they are
        if str(session.sparkContext.master).startswith("local"):
            self._session.conf.set("spark.sql.shuffle.partitions", 2 * session.sparkContext.defaultParallelism)
            # Within one process a table that is broadcast is a copy of 8 to 32 MB, even of a few rows, which stays
            # until Java collects its garbage: after a few dozen joins no memory is left for anything else.
            self._session.conf.set("spark.sql.autoBroadcastJoinThreshold", -1)
        self._session.conf.set("spark.sql.execution.arrow.localRelationThreshold", 0)  # else rows become Java objects
        self._session.conf.set("spark.sql.caseSensitive", "true")
        self._session.conf.set("spark.sql.legacy.parquet.nanosAsLong", "true")  # else Spark reads no nanoseconds
        self._tables: dict[str, list[DataFrame]] = {}

    def load(self, name: str, rows: pa.RecordBatchReader) -> None:
        """See [`Engine`]. The rows go to the executors a million at a time."""
        schema = pa.schema([(field.name, _plain_type(field.type)) for field in rows.schema])
        self._name(name, [self._kept(self._session.createDataFrame(chunk.cast(schema))) for chunk in _chunks(rows)])

    def create(self, name: str, query: str) -> None:
        """See [`Engine`]."""
        self.keep(name, self._session.sql(query))

    def keep(self, name: str, frame: DataFrame) -> None:
        """Makes (or replaces) a table of a frame. Args: the table's name, and a frame of this session."""
        self._name(name, [self._kept(frame)])

    def session_table(self, name: str) -> DataFrame:
        """A table or view, for this session. Args: its name."""
        return self._session.table(name)

    @property
    def reader(self) -> DataFrameReader:
        """What reads files for this session."""
        return self._session.read

    def drop(self, *names: str) -> None:
        """See [`Engine`]."""
        for name in names:
            self._session.catalog.dropTempView(name)
            _free(self._tables.pop(name, []))

    def columns(self, name: str) -> list[str]:
        """See [`Engine`]."""
        return self._session.table(name).columns

    def table(self, query: str) -> pa.Table:
        """See [`Engine`]."""
        return self._session.sql(query).toArrow()

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """See [`Engine`]. They come over the network as bytes, partition by partition."""

        def packed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            import pyarrow as pa  # this function runs on executors, which may not have this package

            for batch in batches:
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                yield pa.RecordBatch.from_arrays([pa.array([sink.getvalue().to_pybytes()], pa.binary())], ["batch"])

        with without_warnings():
            frame = self._session.sql(query).mapInArrow(packed, "batch binary")
        for row in frame.toLocalIterator(prefetchPartitions=True):
            yield from pa.ipc.open_stream(row.batch)

    def close(self) -> None:
        """Frees what the tables took; the session goes on."""
        self.drop(*list(self._tables))

    def _kept(self, frame: DataFrame) -> DataFrame:
        """The rows, computed, without the plan that made them: in reliable storage where the session has some."""
        is_reliable = self._session.sparkContext.getCheckpointDir() is not None
        return frame.checkpoint() if is_reliable else frame.localCheckpoint()

    def _name(self, name: str, parts: list[DataFrame]) -> None:
        replaced = self._tables.get(name, [])
        self._tables[name] = parts
        reduce(lambda whole, part: whole.union(part), parts).createOrReplaceTempView(name)
        _free(replaced)


def _free(parts: list[DataFrame]) -> None:
    """Frees checkpoints at once: Spark itself waits until Java collects its garbage."""
    for part in parts:
        part._jdf.queryExecution().logical().rdd().unpersist(False)


def _chunks(rows: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The rows about a million at a time; at least one table, maybe without rows."""
    batches: list[pa.RecordBatch] = []
    for batch in rows:
        batches.append(batch)
        if sum(map(len, batches)) >= ROWS_AT_ONCE:
            yield pa.Table.from_batches(batches)
            batches = []
    yield pa.Table.from_batches(batches, rows.schema)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keeps PySpark quiet about pandas 3, of which nothing is used here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
        yield


def _plain_type(kind: pa.DataType) -> pa.DataType:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_large_string(kind) else kind


def _session(master: str | None) -> SparkSession:
    """The session that runs in this process, or a new one that is quiet."""
    try:
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError as error:
        install = 'pip install "hf-genrec[spark]", and Java 17 or newer'
        raise ImportError(f'The engine "spark" needs PySpark: {install} ({error}).') from error
    logging.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL)  # it repeats what an exception says
    active = SparkSession.getActiveSession()
    if active is not None:
        if master not in (None, active.sparkContext.master):
            raise ValueError(
                f"`master` is {master!r}, and this process has a session on {active.sparkContext.master!r} already: "
                "stop that one, or pass no `master`."
            )
        return active
    builder = SparkSession.builder.appName("hf-genrec prepare").config("spark.ui.showConsoleProgress", "false")
    builder = builder.config("spark.log.level", "ERROR")
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # else `spark-submit` has decided
        home = os.environ.get("JAVA_HOME")
        java = Path(home, "bin", "java") if home else shutil.which("java")
        if java is None or not Path(java).is_file():
            raise OSError(f'The engine "spark" needs Java 17 or newer: {java or "java"} is not there. Set JAVA_HOME.')
        master = master or "local[*]"
        builder = builder.master(master)
        if master.startswith("local"):
            if "SPARK_DRIVER_MEMORY" not in os.environ:
                builder = builder.config("spark.driver.memory", LOCAL_MEMORY)
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else the first `python3` of the path
    elif master is not None:
        builder = builder.master(master)
    try:
        return builder.getOrCreate()
    except PySparkRuntimeError as error:  # says that Java ended, and Java has said why
        raise OSError(f"Spark did not start: it needs Java 17 or newer ({error}).") from error
