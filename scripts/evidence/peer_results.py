"""
Figures of `benchmark_peers.py` in, a section of the page `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_genrec.evaluation.tables import markdown_table


def peer_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Against other libraries".

    Args:
        figures (`dict` or `None`): The content of `peer_speed.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> cell = {"name": "STATIC", "num_items": 10_000, "build_seconds": 0.2, "peak_growth_mb": 3.0, "held_mb": 1.5}
    >>> cell |= {"search_ms": 2.5, "is_equal": True}
    >>> tries = {"cells": [cell], "users": 16, "beams": 50, "searches": 25}
    >>> versions = {"cornac": "3.0.1", "rectokens": "0.2.2", "transformers": "5.23.0"}
    >>> machine = {"device": "x86_64", "threads": 1, "torch": "2.13.0"}
    >>> print(peer_blocks({"tries": tries, "versions": versions, "machine": machine})[-1].splitlines()[2])
    | 10,000 | STATIC | 0.20 | 3 | 1.5 | 2.50 | yes |

    ```
    """
    if not figures:
        return []
    machine, versions = figures["machine"], figures["versions"]
    blocks = [
        "## Against other libraries",
        f"All sides of a table in one run, on {machine['device']}, threads: {machine['threads']}, torch "
        f"{machine['torch']}, transformers {versions['transformers']}, float32; per second of computing (user and "
        "system), since the machine had other work. Made by `scripts/evidence/benchmark_peers.py`.",
    ]
    if "tiger" in figures:
        blocks += _tiger(figures["tiger"], versions["cornac"])
    if "rpg" in figures:
        blocks += _rpg(figures["rpg"], versions["cornac"])
    if "tries" in figures:
        blocks += _tries(figures["tries"], versions["rectokens"])
    return blocks


def _tiger(part: Mapping[str, Any], version: str) -> list[str]:
    beams = sorted({cell["beams"] for cell in part["lists"]})
    ids, load = part["ids"], part["load_average"]
    return [
        f"### TIGER, cornac {version}",
        f"{part['num_items']:,} items, a T5 of 4 + 4 layers of width 128 (6 heads of 64, inner width 1,024), "
        f"histories of 20 items, {part['settings']['batch_size']} targets per step; load average {load:.1f} before "
        f"it. Tuples are the same, {ids['levels']} codes of {ids['codebook_size']} by {ids['quantizer']} and a number "
        "among the items that share them. cornac pads every history to 20 items, has an output matrix "
        "for each level and searches with the whole prefix at each level, user by user; ours has one matrix of tokens "
        "for input and output, a user token, rows of similar length beside each other. With a causal history all "
        "targets of a row are trained in one pass, which cornac has not. Users per second are for 10 items.",
        markdown_table(_training_rows(part["training"])),
        markdown_table(_list_rows(part, "beams", beams, "beams")),
    ]


def _rpg(part: Mapping[str, Any], version: str) -> list[str]:
    graph = part["graph_cpu_seconds"]
    return [
        f"### RPG, cornac {version}",
        f"{part['num_items']:,} items, ids of 32 codes, two GPT-2 layers of width 448, histories of 50 items, "
        f"{part['settings']['batch_size']} sequences per step and as many targets in ours. cornac pads every sequence "
        "to 50 items. With the same weights the exact lists of 10 items are the same for "
        f"{part['exact']['equal_lists']:,} of {part['exact']['users']:,} users. The graph takes cornac "
        f"{graph['cornac']:.1f} seconds of computing, ours {graph['hf_genrec']:.1f}; its searches start from random "
        "items in both, so their lists are not the same.",
        markdown_table(_training_rows(part["training"])),
        markdown_table(_list_rows(part, "decoding", ("exact", "graph"), "")),
    ]


def _training_rows(training: list[Mapping[str, Any]]) -> list[list[str]]:
    base = training[0]["targets_per_cpu_second"]
    rows = [["training", "targets per step", "targets per second", "ratio"]]
    for cell in training:
        speed = cell["targets_per_cpu_second"]
        rows.append([cell["name"], str(cell["targets_per_step"]), f"{speed:,.1f}", f"{speed / base:.1f}"])
    return rows


def _list_rows(part: Mapping[str, Any], key: str, values: Any, unit: str) -> list[list[str]]:
    together = part["settings"]["together"]
    ends = (", one by one", f", {together} at a time")
    head = [f"{value} {unit}".strip() + end for value in values for end in ends]
    rows = [["users per second", *head]]
    for name in dict.fromkeys(cell["name"] for cell in part["lists"]):
        row = [name]
        for value in values:
            base, cell = (_cell(part["lists"], one, key, value) for one in (part["lists"][0]["name"], name))
            for kind in ("users_per_second", "together"):
                speed = cell.get(kind)
                ratio = "" if speed is None or cell is base else f" ({speed / base['users_per_second']:.1f}×)"
                row.append("–" if speed is None else f"{speed:,.1f}{ratio}")
        rows.append(row)
    return rows


def _cell(cells: list[Mapping[str, Any]], name: str, key: str, value: Any) -> Mapping[str, Any]:
    return next(cell for cell in cells if (cell["name"], cell[key]) == (name, value))


def _tries(part: Mapping[str, Any], version: str) -> list[str]:
    rows = [["items", "trie", "build, seconds", "peak growth, MB", "held, MB", "search, ms", "same ids"]]
    for cell in part["cells"]:
        build, peak = f"{cell['build_seconds']:.2f}", f"{cell['peak_growth_mb']:,.0f}"
        held, search = f"{cell['held_mb']:,.1f}", f"{cell['search_ms']:.2f}"
        equal = "yes" if cell["is_equal"] else "no"
        rows.append([f"{cell['num_items']:,}", cell["name"], build, peak, held, search, equal])
    return [
        f"### Tries: rectokens {version} and STATIC",
        f"Random distinct ids of 4 levels of 256 codes. A search of {part['users']} users and {part['beams']} beams "
        "through all levels, over given log-probabilities and without a model: the loop is the same, the legal codes "
        "and the nodes behind them are found by each trie. Both others want sorted ids: sorting counts as building. "
        "rectokens' functions but for `vtnk_pytorch` need CUDA; its table is padded here, since it reads beyond its "
        "end on a CPU. `hf_genrec` masks rows of the codebook, `lists` takes the children of a node where they are "
        f"few, as STATIC does; `recommend()` chooses between these. Medians of {part['searches']} searches. "
        f"{part.get('note', '')}".strip(),
        markdown_table(rows, num_left=2),
    ]


__all__ = ["peer_blocks"]
