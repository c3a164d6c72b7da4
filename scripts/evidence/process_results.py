"""
Figures of `benchmark_processes.py` in, a section of the page `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_genrec.evaluation.tables import markdown_table


def process_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Several processes against one".

    Args:
        figures (`dict` or `None`): The content of `processes.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> run = {"architecture": "sasrec", "what": "no dropout", "processes": "2", "metrics": 0.03065, "steps": 60}
    >>> run |= {"loss": 6.556, "apart": 1.2e-07, "weights_apart": 0.0, "cpu_minutes": 0.057}
    >>> evaluation = {"architecture": "sasrec", "what": "evaluation", "processes": "2", "metrics": 0.02, "equal": True}
    >>> figures = {"rows": [run, evaluation], "data": "data", "settings": {"batch_size": 512}}
    >>> print(process_blocks(figures | {"machine": {"torch": "2.13"}})[2].splitlines()[2])
    | sasrec, no dropout | 2 | 6.5560 | 1e-07 | 0 | 0.0307 | 0.06 |

    ```
    """
    if not figures:
        return []
    runs = [row for row in figures["rows"] if row["what"] != "evaluation"]
    rows = [["training", "processes", "last loss", "losses apart", "weights apart", "ndcg@10", "CPU minutes"]]
    for row in runs:
        apart = (f"{row[name]:.0e}" if row[name] else "0" for name in ("apart", "weights_apart"))
        metric, minutes = f"{row['metrics']:.4f}", f"{row['cpu_minutes']:.2f}"
        name = f"{row['architecture']}, {row['what']}"
        rows.append([name, row["processes"], f"{row['loss']:.4f}", *apart, metric, minutes])
    text = (
        f"{runs[0]['steps']} steps of {figures['settings']['batch_size']} targets of {figures['data']}, by the "
        "processes that `torchrun` starts on a CPU: how far a loss (as a share of it) and a weight are at most from "
        'those of the first run of the pair, and the ndcg@10 of the last validation. "1 x 2" is one process that '
        "accumulates two batches: it has the dropout masks of two processes."
    )
    evaluations = [row for row in figures["rows"] if row["what"] == "evaluation"]
    if evaluations and all(row["equal"] for row in evaluations):
        text += f" Each run evaluated by 1 and by {evaluations[0]['processes']} processes gives the same record."
    text += f" torch {figures['machine']['torch']}. Made by `scripts/evidence/benchmark_processes.py`."
    plot = "![training loss by step](scripts/evidence/records/processes.png)"
    return ["## Several processes against one", text, markdown_table(rows, num_left=2), plot]
