"""
Rows of a text file on their way: written once, read in batches as often as needed, on the disk where they are many.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

import pyarrow as pa


_IN_MEMORY = 2**28  # bytes; more of them lie in a temporary file, which the system removes


class Spool:
    """Tables of one schema, one after the other; all are written before the first is read."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 (closed with the object)
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
        self.num_rows = 0

    def add(self, table: pa.Table) -> None:
        """Appends the rows of a table. Args: the table."""
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._file, table.schema)
        self._writer.write_table(table)
        self.num_rows += table.num_rows

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Some columns of the rows. Args: their names, and a number of rows, which batches do not obey."""
        if self._writer is not None:
            self._writer.close()
            self._file.seek(0)
            for batch in pa.ipc.open_stream(self._file):
                yield batch.select(columns)
