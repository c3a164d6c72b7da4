"""
Figures of `benchmark_llm_decoding.py` in, a section of the page `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_genrec.evaluation.tables import markdown_table


def llm_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Decoding with a language model".

    Args:
        figures (`dict` or `None`): The content of `llm_decoding_speed.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> seconds = {"prefix_function": 60.0, "processor": 50.0, "recommend": 2.5, "recommend_in_catalog": 1.25}
    >>> row = {"prompt_length": 100, "seconds": seconds, "to_prefix_function": 24.0, "to_processor": 20.0}
    >>> sizes = {"num_users": 16, "num_beams": 50, "num_items": 25000, "codebook_size": 256}
    >>> figures = {"model": {"layers": 6, "width": 576}, "sizes": sizes, "rows": [row]}
    >>> print(llm_blocks(figures | {"machine": {"device": "x86_64", "threads": 1}})[2].splitlines()[2])
    | 100 | 60.0 | 50.0 | 2.50 | 24 and 20 times | 1.25 |

    ```
    """
    if not figures:
        return []
    model, sizes, machine = figures["model"], figures["sizes"], figures["machine"]
    header = ["prompt tokens", "`generate()`, prefix function", "`generate()`, our processor", "`recommend()`"]
    rows = [[*header, "faster", "`recommend()`, codes of the catalog alone"]]
    for row in figures["rows"]:
        seconds = row["seconds"]
        rows.append(
            [
                str(row["prompt_length"]),
                *(f"{seconds[name]:.1f}" for name in ("prefix_function", "processor")),
                f"{seconds['recommend']:.2f}",
                f"{row['to_prefix_function']:.0f} and {row['to_processor']:.0f} times",
                f"{seconds['recommend_in_catalog']:.2f}",
            ]
        )
    return [
        "## Decoding with a language model",
        f"SmolLM2-135M cut to {model['layers']} layers of width {model['width']}, {sizes['num_users']} users, "
        f"{sizes['num_beams']} beams, {sizes['num_items']:,} items; CPU seconds on {machine['device']}, "
        f"{machine['threads']} thread. The first three compare with the whole vocabulary and have the same items and "
        "scores; the last one, the default, compares with the codes of the catalog alone. Made by "
        "`scripts/evidence/benchmark_llm_decoding.py`.",
        markdown_table(rows),
    ]
