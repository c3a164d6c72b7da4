"""
Figures of `benchmark_catalog_shapes.py` in, a section of the page `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean
from typing import Any

from hf_genrec.evaluation.tables import markdown_table


def shape_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    Steps by the number of items, for several shapes of ids.

    Args:
        figures (`dict` or `None`):
            The content of `catalog_shapes.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.
    """
    if not figures:
        return []
    cells = figures["cells"]
    rows_of_steps = sorted({step["rows"] for cell in cells for step in cell["steps"]})
    columns = [f"{rows:,} rows, {what}" for rows in rows_of_steps for what in ("ms", "again")]
    table = [["ids", "items", "children of a prefix", "build, seconds", "peak growth, MB", "held, MB", *columns]]
    for cell in cells:
        nodes = cell["num_nodes"]
        fan_out = " · ".join(f"{below / above:,.1f}" for above, below in pairwise(nodes))
        sizes = [f"{cell['cpu_seconds']:.2f}", *(f"{cell[name]:,.0f}" for name in ("peak_growth_mb", "held_mb"))]
        means = [
            f"{fmean(step[name] for step in cell['steps'] if step['rows'] == rows):.3f}"
            for rows in rows_of_steps
            for name in ("milliseconds", "again")
        ]
        table.append([cell["shape"].replace("-", " "), f"{cell['num_items']:,}", fan_out, *sizes, *means])
    loads = sorted(cell["machine"]["load_average"] for cell in cells)
    return [
        "### The number of items and the shape of their ids",
        "Random ids have more children per prefix where there are more of them, so their steps do more. `fixed` ids "
        "have the same number of children behind every prefix but the root: only the number of items grows. A step is "
        "the mean over the depths below the root of what a search asks of the trie there, in milliseconds of "
        "computing; `again` is the same step once more, whose memory the caches then hold as far as it fits: what the "
        "first time takes beyond it are reads from memory. One thread, seconds of computing, "
        f"the fastest tenth of the turns; load average {loads[0]:.1f} to {loads[-1]:.1f}. Made by "
        "`scripts/evidence/benchmark_catalog_shapes.py`.",
        markdown_table(table),
    ]


__all__ = ["shape_blocks"]
