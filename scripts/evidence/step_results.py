"""
Figures of `step_shares.py` in, a section of the page `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_genrec.evaluation.tables import markdown_table


def step_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Where a training step's time goes".

    Args:
        figures (`dict` or `None`): The content of `step_shares.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> machine = {"device": "x86_64", "threads": 1, "torch": "2.13.0", "load_average": 0.5}
    >>> cell = {"precision": "fp32", "milliseconds": 250.0, "shares": {"matrix products": 0.63, "attention": 0.37}}
    >>> figures = {"machine": machine, "model": "Latte", "batch_size": 512, "num_items": 7, "cells": [cell]}
    >>> print(step_blocks(figures)[2].splitlines()[3])
    | matrix products | 63.0% |

    ```
    """
    if not figures:
        return []
    machine, cells = figures["machine"], figures["cells"]
    names = dict.fromkeys(name for cell in cells for name in cell["shares"])
    rows = [["part of a step", *(cell["precision"] for cell in cells)]]
    rows.append(["milliseconds of computing", *(f"{cell['milliseconds']:.0f}" for cell in cells)])
    rows += [[name, *(f"{cell['shares'][name]:.1%}" for cell in cells)] for name in names]
    return [
        "## Where a training step's time goes",
        f"A step of {figures['batch_size']} targets of what `hf-genrec train` makes by default, a {figures['model']} "
        f"with two heads, {figures['num_items']:,} items, on {machine['device']}, threads: {machine['threads']}, "
        f"torch {machine['torch']}, at a load average of {machine['load_average']:.0f}. Shares of the time that "
        "operators take themselves, medians over the steps; attention that is written out counts as its matrix "
        "products and the rest. Made by `scripts/evidence/step_shares.py`.",
        markdown_table(rows),
    ]


__all__ = ["step_blocks"]
