"""
Figures of `scripts/evidence/benchmark_space.py` in, a section of the page `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_genrec.evaluation.tables import markdown_table


_ROWS = {
    "open_ms": "page opened, until its first list is there",
    "click_ms": "an item added, until the new list is there",
    "recommend_ms": "`recommend()` alone, for the same histories",
}


def space_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "The page of the Space".

    Args:
        figures (`dict` or `None`): The content of `space_speed.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> figures = {"num_items": 12101, "num_beams": 50, "model": "latte", "visits": 5, "clicks": 39}
    >>> figures |= {"seconds_to_start": 6.5, "open_ms": {"median": 727.2, "max": 760.6}}
    >>> figures |= {"click_ms": {"median": 60.7, "max": 73.5}, "recommend_ms": {"median": 9.4, "max": 10.0}}
    >>> figures |= {"machine": {"device": "x86_64", "threads": 2, "gradio": "6.31.0"}}
    >>> print(space_blocks(figures)[2].splitlines()[3])
    | an item added, until the new list is there | 61 | 74 |

    ```
    """
    if not figures:
        return []
    machine = figures["machine"]
    where = f"{machine['device']}, {machine['threads']} threads, gradio {machine['gradio']}"
    note = (
        f"A `{figures['model']}` model of {figures['num_items']:,} items at {figures['num_beams']} beams, in a "
        f"browser on the machine that serves it ({where}): {figures['visits']} visits, {figures['clicks']} clicks. "
        f"The Space took {figures['seconds_to_start']:.0f} seconds to start. Made by "
        "`scripts/evidence/benchmark_space.py`."
    )
    rows = [["milliseconds", "median", "slowest"]]
    for name, title in _ROWS.items():
        rows.append([title, *(f"{figures[name][column]:,.0f}" for column in ("median", "max"))])
    return ["## The page of the Space", note, markdown_table(rows)]


__all__ = ["space_blocks"]
