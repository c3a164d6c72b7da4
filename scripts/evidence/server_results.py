"""
Figures of `benchmark_server.py` and `benchmark_onnx.py` in, sections of the page `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_genrec.evaluation.tables import markdown_table


_COLUMNS = ("requests_per_second", "p50_ms", "p95_ms", "p99_ms", "users_per_batch")


def server_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "The HTTP server".

    Args:
        figures (`dict` or `None`): The content of `server_speed.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> cell = {"mode": "one by one", "clients": 8, "requests_per_second": 51.5, "p50_ms": 150.2, "p95_ms": 180.0}
    >>> cell |= {"p99_ms": 201.3, "users_per_batch": 1.0, "outcomes": {"200": 515}}
    >>> load = {"cells": [cell], "seconds": 10, "turns": 3, "machine": {"device": "x86_64", "threads": 2}}
    >>> print(server_blocks({"num_items": 12101, "model": "latte", "load": load})[2].splitlines()[2])
    | 8 | one by one | 51.5 | 150.2 | 180.0 | 201.3 | 1.0 |

    ```
    """
    if not figures:
        return []
    blocks = ["## The HTTP server"]
    if "load" in figures:
        load = figures["load"]
        blocks.append(
            f"`hf-genrec serve` with a `{figures['model']}` model of {figures['num_items']:,} items on "
            f"{load['machine']['device']}, {load['machine']['threads']} threads, its clients on the same machine. "
            "Each client sends its next request, one history, when it has the answer to the last one; medians of "
            f"{load['turns']} turns of {load['seconds']:g} seconds (load average "
            f"{load['machine'].get('load_average', 0):.0f}). Made by `scripts/evidence/benchmark_server.py`."
        )
        rows = [["clients", "computed", "requests per second", "p50 ms", "p95 ms", "p99 ms", "users per batch"]]
        for cell in sorted(load["cells"], key=lambda cell: (cell["clients"], cell["mode"])):
            rows.append([str(cell["clients"]), cell["mode"], *(f"{cell[name]:.1f}" for name in _COLUMNS)])
        blocks.append(markdown_table(rows, num_left=2))
    blocks += [_TEXTS[name](figures[name]) for name in _TEXTS if name in figures]
    return blocks


def _swaps(found: Mapping[str, Any]) -> str:
    return (
        f"**Changes under load.** {found['swaps']} changes of {found['items']} items, {found['answers']:,} answers "
        f"meanwhile: {found['failed']} requests and {found['failed changes']} changes failed, {found['wrong']} "
        "answers were not those of the catalog whose version they name. A change took "
        f"{found['swap_ms']['p50']:.0f} ms (median; p99 {found['swap_ms']['p99']:.0f} ms)."
    )


def _sigterm(found: Mapping[str, Any]) -> str:
    return (
        f"**SIGTERM under load.** Of {found['answered'] + found['lost']:,} requests of {found['clients']} clients, "
        f"sent until no connection was accepted any more, {found['lost']} got no answer."
    )


def _soak(found: Mapping[str, Any]) -> str:
    rss, others = found["rss_mb"], {name: count for name, count in found["outcomes"].items() if name != "200"}
    note = "".join(f", {count:,} of them answered {name}" for name, count in sorted(others.items()))
    return (
        f"**Soak.** {found['seconds'] / 60:.0f} minutes, {found['requests']:,} requests{note}: resident memory went "
        f"from {rss['first']:,.0f} to {rss['last']:,.0f} MB (at most {rss['most']:,.0f}; {found['mb_per_hour']:+.1f} "
        "MB per hour by a straight line)."
    )


_TEXTS = {"swaps": _swaps, "sigterm": _sigterm, "soak": _soak}


def onnx_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Exported to ONNX".

    Args:
        figures (`dict` or `None`): The content of `onnx_speed.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.
    """
    if not figures:
        return []
    note = (
        f"Graphs that `hf-genrec export --to onnx --int8` writes, {figures['num_items']:,} items, on "
        f"{figures['machine']['device']}, threads: {figures['machine']['threads']}, torch and onnxruntime in turns, "
        f"at a load average of {figures['machine'].get('load_average', 0):.0f}: "
        f"lists of {figures['users']:,} validation users that are equal item by item, milliseconds of a call with one "
        f"user and with 64, ndcg@10 of {figures['ndcg_users']:,} validation users, and the share of the ten items "
        "that the 8-bit graphs list too. Latte, PSID and TIGER are two graphs with the search between them in NumPy. "
        f"{figures.get('note', 'Models without ndcg@10 have random weights.')} Made by "
        "`scripts/evidence/benchmark_onnx.py`."
    )
    header = ["model", "equal lists", "ms for 1: torch", "onnx", "int8", "ms for 64: torch", "onnx", "int8"]
    rows = [[*header, "ndcg@10", "of int8", "shared", "MB", "int8"]]
    for cell in figures["cells"]:
        times = [f"{cell[size][name]:.1f}" for size in ("ms_1", "ms_64") for name in ("torch", "onnx", "int8")]
        quality = [f"{cell['ndcg@10'][name]:.4f}" if "ndcg@10" in cell else "–" for name in ("onnx", "int8")]
        sizes = [f"{cell['megabytes'][name]:.1f}" for name in ("model", "model_int8")]
        shared = f"{cell['overlap_int8']:.3f}"
        rows.append([cell["name"], f"{cell['equal_onnx']:,}", *times, *quality, shared, *sizes])
    return ["## Exported to ONNX", note, markdown_table(rows)]


__all__ = ["onnx_blocks", "server_blocks"]
