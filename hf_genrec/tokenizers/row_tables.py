"""
Tables of vectors that need not fit into memory twice: rows that are computed when they are taken, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


BLOCK_ROWS = 2**16  # computed at once; a smaller table is computed whole


class LazyRows:
    """
    A function of rows of a table, computed for the slices and row numbers that are asked for.

    Args: the table, an array (of memory or mapped from a file) or another one of these; what maps `(n, ...)` rows to
    `(n, dim)`; that `dim`; and which rows of the table, in which order, `None` for all.
    """

    def __init__(
        self,
        table: RowTable,
        function: Callable[[np.ndarray], np.ndarray],
        *,
        dim: int,
        rows: np.ndarray | None = None,
    ) -> None:
        self._table, self._function, self._rows = table, function, rows
        self.shape = (len(table) if rows is None else len(rows), dim)
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._function(self._table[rows if self._rows is None else self._rows[rows]])


RowTable = np.ndarray | LazyRows


def mapped(table: RowTable, function: Callable[[np.ndarray], np.ndarray], *, dim: int) -> RowTable:
    """The function of all rows: at once of a small table, else when they are taken. Args: see [`LazyRows`]."""
    return LazyRows(table, function, dim=dim) if len(table) > BLOCK_ROWS else function(table[:])


def blocks(num_rows: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Slices that cover a table. Args: its rows; the most of a slice."""
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))
