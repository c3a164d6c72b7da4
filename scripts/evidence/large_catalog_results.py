"""
Figures of `benchmark_large_catalogs.py` in, a section of `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_genrec.evaluation.tables import markdown_table


def large_catalog_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Large catalogs".

    Args:
        figures (`dict` or `None`):
            The content of `large_catalogs.json`; `before` holds steps of an earlier version on the same machine.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> step = {"phase": "load", "step": "SASRec: loading", "cpu_seconds": 0.25, "peak_mb": 30.0}
    >>> steps = [step | {"num_items": 1_000}, step | {"num_items": 10_000, "cpu_seconds": 2.5, "peak_mb": 310.0}]
    >>> before = [step | {"num_items": 10_000, "cpu_seconds": 5.0}]
    >>> found = large_catalog_blocks({"steps": steps, "exponents": {"load: SASRec: loading": 1.0}, "before": before})
    >>> print(found[2].splitlines()[2])
    | load | SASRec: loading | 0.25 | 2.50 | 310 | 1.00 | 5.00 |

    ```
    """
    if not figures:
        return []
    steps, exponents = figures["steps"], figures["exponents"]
    sizes = sorted({row["num_items"] for row in steps})
    head = [f"{size:,} items" for size in sizes]
    rows = [["phase", "step", *head, "peak, MB", "exponent", "before"]]
    for phase, name in dict.fromkeys((row["phase"], row["step"]) for row in steps):
        own = _by_size(steps, phase, name)
        before = _by_size(figures.get("before", ()), phase, name)
        exponent = exponents.get(f"{phase}: {name}")
        users = {row["num_users"] for row in own.values() if "num_users" in row}
        label = f"{name}, {max(users):,} users" if len(users) == 1 else name
        cells = [_cell(own.get(size), with_users=len(users) > 1) for size in sizes]
        common = max(own.keys() & before.keys(), default=None)
        last = "-" if common is None else f"{before[common]['cpu_seconds']:.2f}"
        peak = f"{own[max(own)]['peak_mb']:,.0f}"
        rows.append([phase, label, *cells, peak, "-" if exponent is None else f"{exponent:.2f}", last])
    return [
        "## Large catalogs",
        "Seconds of computing (user and system, one thread) by number of items, and the most memory that a step held "
        "above what was there before it, at the largest size. The exponent `e` of `seconds ~ items ** e` lies between "
        "the two largest sizes that take a tenth of a second; where a sample of users was evaluated, their number is "
        "in brackets and the exponent that per user. The last column is the version before large catalogs were looked "
        "at, at the largest size that both were measured at. Loading checks all files: digests, ids, codes, "
        "vocabulary. Made by `scripts/evidence/benchmark_large_catalogs.py`.",
        markdown_table(rows, num_left=2),
    ]


def _cell(row: Mapping[str, Any] | None, *, with_users: bool) -> str:
    if row is None:
        return "-"
    return f"{row['cpu_seconds']:.2f}" + (f" ({row['num_users']:,})" if with_users else "")


def _by_size(steps: Sequence[Mapping[str, Any]], phase: str, name: str) -> dict[int, Mapping[str, Any]]:
    return {row["num_items"]: row for row in steps if (row["phase"], row["step"]) == (phase, name)}
