"""
Figures of `scripts/evidence/benchmark_live_catalog.py` in, a section of the page `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_genrec.evaluation.tables import markdown_table


def live_catalog_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "A catalog that changes".

    Args:
        figures (`dict` or `None`): The content of `live_catalog.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> added = {"model": "RPG", "seconds_to_add": 0.41, "cpu_seconds_to_add": 0.2, "seconds_to_first": 0.05}
    >>> steps = {"model": "RPG", "num_steps": 5000, "num_lists": 750, "seconds": 300.0}
    >>> blocks = live_catalog_blocks({"num_items": 9, "num_added": 2, "additions": [added], "steps": [steps]})
    >>> print(blocks[2].splitlines()[2])
    | RPG | 0.41 | 0.20 | 0.05 | - |

    ```
    """
    if not figures:
        return []
    rows = [["model", "seconds", "of these computing", "first list, seconds", "texts, seconds each"]]
    for each in figures["additions"]:
        texts = "-"
        if "num_texts" in each:
            texts = f"{each['seconds_to_add_texts'] / each['num_texts']:.2f}"
        cells = (each["seconds_to_add"], each["cpu_seconds_to_add"], each["seconds_to_first"])
        rows.append([each["model"], *(f"{cell:.2f}" for cell in cells), texts])
    num_steps = sum(each["num_steps"] for each in figures["steps"])
    num_lists = sum(each["num_lists"] for each in figures["steps"])
    return [
        "## A catalog that changes",
        f"{figures['num_added']:,} items are added to {figures['num_items']:,} in a folder on disk, from vectors of "
        "384 columns; then the first list that holds one of them. Medians on one of two cores that other programs "
        "used too, hence the column of computing alone. The last column is a short text with its encoder "
        "(all-MiniLM-L6-v2), loading it included. Made by `scripts/evidence/benchmark_live_catalog.py`.",
        markdown_table(rows, num_left=1),
        f"**Against rebuilds.** {num_steps:,} random steps (add, remove, bring back, roll back): after each the trie "
        f"equalled that of a model made anew of the items that were left, and so did {num_lists:,} lists.",
    ]
