"""
Where the steps of a preparation run: SQL statements go in, Arrow record batches come out.

The statements of `steps.py` are standard SQL, so an engine is little more than a connection: it takes rows in, keeps
tables under a name, and gives rows out, in batches, so that no table has to fit in memory. `DuckDB`, the default, runs
inside this process and moves to the disk what exceeds its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import duckdb
import pyarrow as pa


ROWS_AT_ONCE = 2**20  # of a record batch that an engine gives out


class Engine(Protocol):
    """
    What the steps need of an engine. Tables are named; every statement is a `SELECT` over these names.

    The rows of a table have no order: an `ORDER BY` at the end of a statement is what [`batches`] and [`table`] obey.
    """

    def load(self, name: str, rows: pa.RecordBatchReader) -> None:
        """
        Makes (or replaces) a table of rows that come in batches. An error that they raise comes out as it is.

        Args: the table's name, and the rows.
        """

    def create(self, name: str, query: str) -> None:
        """Makes (or replaces) a table of what a statement selects, maybe of that very table. Args: name, statement."""

    def drop(self, *names: str) -> None:
        """Removes tables, those that do not exist too. Args: their names."""

    def columns(self, name: str) -> list[str]:
        """The columns of a table. Args: its name."""

    def table(self, query: str) -> pa.Table:
        """What a statement selects, whole: for few rows. Args: a `SELECT`."""

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """
        What a statement selects, batch by batch, in the order of its `ORDER BY`. Several may be read side by side, and
        tables be made meanwhile. Args: a `SELECT`.
        """

    def close(self) -> None:
        """Frees the memory and the files."""


class DuckDB:
    """
    The embedded engine.

    Args: a folder for what exceeds the memory, which nothing else uses; the memory that it may take, such as `"4GB"`
        (`None` is 80 % of the machine's), and the number of threads (`None` is one per core).
    """

    def __init__(self, folder: Path, *, memory_limit: str | None = None, threads: int | None = None) -> None:
        settings: dict[str, Any] = {"temp_directory": str(folder), "memory_limit": memory_limit, "threads": threads}
        settings["preserve_insertion_order"] = False  # no table has an order, and keeping it takes memory
        try:
            self._connection = duckdb.connect(
                config={name: value for name, value in settings.items() if value is not None}
            )
        except duckdb.Error as error:
            raise ValueError(
                f'`memory_limit` must be a size such as "4GB", got {memory_limit!r} ({_first_line(error)}).'
            ) from error

    def load(self, name: str, rows: pa.RecordBatchReader) -> None:
        """See [`Engine`]."""
        raised: list[Exception] = []

        def watched() -> Iterator[pa.RecordBatch]:
            try:
                yield from rows
            except Exception as error:
                raised.append(error)
                raise

        self._connection.register("loaded", pa.RecordBatchReader.from_batches(rows.schema, watched()))
        try:
            self.create(name, "SELECT * FROM loaded")
        except duckdb.Error:
            if raised:
                raise raised[0] from None
            raise
        finally:
            self._connection.unregister("loaded")

    def create(self, name: str, query: str) -> None:
        """See [`Engine`]."""
        with _in_words():
            self._connection.execute(f"CREATE OR REPLACE TABLE {name} AS {query}").fetchall()

    def drop(self, *names: str) -> None:
        """See [`Engine`]."""
        for name in names:
            self._connection.execute(f"DROP TABLE IF EXISTS {name}").fetchall()

    def columns(self, name: str) -> list[str]:
        """See [`Engine`]."""
        return self.table(f"SELECT * FROM {name} LIMIT 0").column_names

    def table(self, query: str) -> pa.Table:
        """See [`Engine`]."""
        with _in_words():
            return self._connection.sql(query).to_arrow_table()

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """See [`Engine`]."""
        with self._connection.cursor() as cursor, _in_words():
            yield from cursor.sql(query).to_arrow_reader(ROWS_AT_ONCE)

    def close(self) -> None:
        """Frees the memory and the files."""
        self._connection.close()


@contextmanager
def _in_words() -> Iterator[None]:
    """Says what to do where the memory is too small."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise MemoryError(f"`memory_limit` is too small for this log: pass more. {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
