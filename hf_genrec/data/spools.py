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
        self._is_closed = False
        self.num_rows = 0

    def add(self, table: pa.Table) -> None:
        """Appends the rows of a table. Args: the table."""
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._file, table.schema)
        self._writer.write_table(table)
        self.num_rows += table.num_rows

    def scan(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows, in batches of any size: some columns, and the line numbers where there are any. Args: names."""
        if self._writer is None:
            return
        self._writer.close()
        self._file.seek(0)
        for batch in pa.ipc.open_stream(self._file):
            kept = [name for name in batch.schema.names if name in columns or name == "line"]
            yield pa.Table.from_batches([batch]).select(kept)
