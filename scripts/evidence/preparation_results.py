"""
Figures of `benchmark_preparation.py` in, a section of the page `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_genrec.evaluation.tables import markdown_table


def preparation_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Preparing long logs".

    Args:
        figures (`dict` or `None`): The content of `preparation_speed.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> run = {"num_rows": 1000, "form": "csv", "code": "this", "seconds": 1.0, "cpu_seconds": 1.5, "peak_mb": 300}
    >>> later = run | {"num_rows": 10000, "seconds": 2.0, "cpu_seconds": 3.0}
    >>> exponent = {"form": "csv", "code": "this", "from": 1000, "to": 10000, "exponent": 0.3}
    >>> figures = {"cores": 2, "memory_limit": "2GB", "runs": [run, later], "exponents": [exponent]}
    >>> print(preparation_blocks(figures)[2].splitlines()[3])
    | CSV | this | 10,000 | 2.0 | 3.0 | 0.30 | 300 |

    ```
    """
    if not figures:
        return []
    exponents = {(each["form"], each["code"], each["to"]): f"{each['exponent']:.2f}" for each in figures["exponents"]}
    rows = [["form", "code", "rows", "seconds", "CPU seconds", "growth exponent", "peak memory, MB"]]
    for run in sorted(figures["runs"], key=lambda run: (run["form"], run["code"], run["num_rows"])):
        form = {"csv": "CSV", "jsonl": "JSON Lines", "parquet": "Parquet"}[run["form"]]
        exponent = exponents.get((run["form"], run["code"], run["num_rows"]), "-")
        times = (f"{run['seconds']:.1f}", f"{run['cpu_seconds']:.1f}")
        rows.append([form, run["code"], f"{run['num_rows']:,}", *times, exponent, f"{run['peak_mb']:,}"])
    return [
        "## Preparing long logs",
        "`hf-genrec prepare` with a 5-core on invented logs of a power law, a user for 10 rows and an item for 200, "
        f"each in a process of its own; DuckDB may take {figures['memory_limit']}. CPU seconds are those of all "
        f"threads on {figures['cores']} cores that other programs used too, so compare these; the exponent is their "
        'growth since the size before (1 is in proportion), and memory is the peak of the whole process. "before" '
        "is the code that held the whole log in memory. Made by "
        "`scripts/evidence/benchmark_preparation.py`.",
        markdown_table(rows, num_left=2),
    ]
