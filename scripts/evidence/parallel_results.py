"""
Figures of `benchmark_parallel.py` and of the training speed in, sections of the page `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_genrec.evaluation.tables import markdown_table


_INTRODUCTION = """## Exact decoding and the item graph

Models that predict all codes at once score the whole catalog by table look-up (`exact`) or walk along a graph of
similar items: `beams x neighbours x steps`, from random items or from some similar to the last of the history. Dummy
items, whose codes are drawn level by level from those of the real ones, fill larger catalogs up; they are recommended
where they score well, and they stand between the real items in the graph: a real catalog of that size may be kinder to
walks. Times are those of a whole call in a batch, with the history; memory is how far one call raises the peak of its
process. `visited` is the mean number of items scored, `overlap` the share of the exact top 10 that is found. Made by
`scripts/evidence/benchmark_parallel.py`."""

_DRAFT_INTRODUCTION = """## Lists drafted by the dense head

Lists of both heads without beams (`decoding="exact"`): the dense head and the codes of the first level bound the score
of every item; items are drafted in that order, and the decoder verifies a draft in one pass until nothing that is left
can come into the list. So a list is the best of the whole catalog for certain, which a list by beams need not be;
`same lists` is the share of users for whom it is. `verified` items pass through the decoder, the fewer the heavier the
dense head weighs. Milliseconds per user, `generator's beams` without the dense head. Made by
`scripts/evidence/benchmark_drafts.py`."""
_COLUMNS = {
    "num_items": ("items", ","),
    "variant": ("decoding", ""),
    "milliseconds_per_user": ("ms per user", ".2f"),
    "milliseconds_per_user_history": ("of it history", ".2f"),
    "peak_growth_mb": ("memory, MB", ",.0f"),
    "visited": ("visited", ",.0f"),
    "overlap": ("overlap", ".3f"),
    "ndcg@10": ("ndcg@10", ".4f"),
}
_GRAPH_COLUMNS = {
    "num_items": ("items", ","),
    "num_neighbors": ("neighbours", ","),
    "seconds": ("seconds to build", ",.0f"),
    "peak_growth_mb": ("memory, MB", ",.0f"),
    "neighbor_overlap": ("of the exact neighbours", ".3f"),
}


def draft_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Lists drafted by the dense head".

    Args: the content of `draft_speed.json`, or `None`. Returns blocks of Markdown; none without figures.
    """
    if figures is None:
        return []
    machine, names = figures["machine"], ("drafted", "beams", "generator")
    header = ["users at a time", "weight", "drafted, ms", "beams, ms", "generator's beams, ms", "beams / drafted"]
    rows: list[Sequence[str]] = [[*header, "verified", "same lists"]]
    for row in figures["rows"]:
        times = row["milliseconds_per_user"]
        ratio = f"{times['beams'] / times['drafted']:.1f}"
        counts = [f"{row['num_verified']:.0f}", f"{100 * row['same_lists']:.0f} %"]
        shown = [f"{times[name]:.1f}" for name in names]
        rows.append([str(row["users_at_a_time"]), f"{row['weight']:g}", *shown, ratio, *counts])
    measured = (
        f"{figures['dataset']}, {figures['num_items']:,} items, PSID with two heads (weight chosen on validation: "
        f"{figures['own_weight']:g}), {figures['num_users']} users, {figures['num_beams']} beams, threads: "
        f"{machine['threads']} ({machine['device']}), load {machine['load_average']} before."
    )
    return [_DRAFT_INTRODUCTION, measured, markdown_table(rows, num_left=0)]


def parallel_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Exact decoding and the item graph".

    Args:
        figures (`dict` or `None`): The content of `parallel_speed.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> cell = {"num_items": 12101, "variant": "exact", "milliseconds_per_user": 0.9, "visited": 12101.0}
    >>> cell |= {"milliseconds_per_user_history": 0.8, "peak_growth_mb": 16.0, "overlap": 1.0, "num_users": 256}
    >>> cell |= {"machine": {"device": "x86_64", "threads": 2, "torch": "2.13"}}
    >>> print(parallel_blocks({"cells": [cell], "graphs": []})[2].splitlines()[2])
    | 12,101 | exact | 0.90 | 0.80 | 16 | 12,101 | 1.000 | – |

    ```
    """
    if not figures or not figures["cells"]:
        return []
    cells = sorted(figures["cells"], key=lambda cell: cell["num_items"])
    machine = cells[0]["machine"]
    conditions = f"Batches of {cells[0]['num_users']} users; {machine['device']}, {machine['threads']} threads, "
    conditions += f"torch {machine['torch']}."
    users = {cell["ndcg_users"] for cell in cells if "ndcg_users" in cell}
    if users:
        conditions += f" ndcg@10 of {' or '.join(f'{size:,}' for size in sorted(users))} validation users."
    blocks = [_INTRODUCTION, conditions, _table(_COLUMNS, cells, num_left=2)]
    if figures["graphs"]:
        graphs = sorted(figures["graphs"], key=lambda graph: graph["num_items"])
        blocks += ["The graphs, built once after training:", _table(_GRAPH_COLUMNS, graphs, num_left=1)]
    return [
        *blocks,
        "![milliseconds per user and share of the exact list by the number of items]"
        "(scripts/evidence/records/parallel_speed.png)",
    ]


def _table(columns: Mapping[str, tuple[str, str]], rows: Sequence[Mapping[str, Any]], *, num_left: int) -> str:
    header = [title for title, _ in columns.values()]
    cells = [[format(row[name], form) if name in row else "–" for name, (_, form) in columns.items()] for row in rows]
    return markdown_table([header, *cells], num_left=num_left)


def training_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Training speed of the parallel models".

    Args:
        figures (`dict` or `None`): What `scripts/evidence/benchmark_training.py --models parallel` wrote.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> figures = {"seconds_per_epoch": {"RPG bf16": 41.5}, "targets_per_second": {"RPG bf16": 3167.0}}
    >>> figures |= {"ratio_to_stock_same_precision": {"RPG bf16": 4.0}, "targets_per_epoch": 131413}
    >>> figures["settings"] = {"batch_size": 1536, "turns": 5, "steps": 4}
    >>> figures |= {"machine": {"threads": 2, "torch": "2.13"}}
    >>> figures["profile"] = {"RPG bf16": {"aten::mm": 0.5, "aten::copy_": 0.125}}
    >>> blocks = training_blocks(figures)
    >>> print(blocks[2].splitlines()[2])
    | RPG bf16 | 41.5 | 3,167 | 4.0 |
    >>> print(blocks[4])
    | operation | RPG bf16 |
    | --- | ---: |
    | mm | 50 % |
    | copy_ | 12 % |

    ```
    """
    if not figures:
        return []
    settings, machine = figures["settings"], figures["machine"]
    note = (
        f"One epoch of {figures['targets_per_epoch']:,} targets, ids of 32 codes. The plain model has the same layers "
        "in separate operations and reads padded batches in random order; the ratio is to it in the same precision. "
        f"Medians of {settings['turns']} turns of {settings['steps']} steps of {settings['batch_size']:,} targets, "
        f"{machine['threads']} threads, torch {machine['torch']}. "
        "Made by `scripts/evidence/benchmark_training.py --models parallel`."
    )
    rows = ["| model | seconds per epoch | targets per second | ratio |", "| --- | ---: | ---: | ---: |"]
    for name, seconds in figures["seconds_per_epoch"].items():
        ratio = figures["ratio_to_stock_same_precision"][name]
        rows.append(f"| {name} | {seconds:.1f} | {figures['targets_per_second'][name]:,.0f} | {ratio:.1f} |")
    blocks = ["## Training speed of the parallel models", note, "\n".join(rows)]
    if "profile" in figures:
        blocks.append("Where the time of a step goes: the operations that take at least 3 % of one, themselves.")
        blocks.append(_profile_table(figures["profile"]))
    return blocks


def _profile_table(profiles: Mapping[str, Mapping[str, float]]) -> str:
    """Operations by their largest share, a column per model."""
    largest: dict[str, float] = {}
    for shares in profiles.values():
        for name, share in shares.items():
            largest[name] = max(share, largest.get(name, 0.0))
    names = [name for name in sorted(largest, key=lambda name: -largest[name]) if largest[name] >= 0.03]
    rows = [
        [
            name.removeprefix("aten::"),
            *(f"{shares[name]:.0%}".replace("%", " %") if name in shares else "–" for shares in profiles.values()),
        ]
        for name in names
    ]
    return markdown_table([["operation", *profiles], *rows], num_left=1)


__all__ = ["draft_blocks", "parallel_blocks", "training_blocks"]
