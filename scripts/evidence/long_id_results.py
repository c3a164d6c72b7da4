"""
Records of RPG with ids of several lengths, results per user and costs by catalog in; three sections of the page out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from hf_genrec.evaluation.systems import user_values
from hf_genrec.evaluation.tables import markdown_table


LENGTHS_PLOT = "scripts/evidence/records/curves/id_lengths.png"
RARE_PLOT = "scripts/evidence/records/curves/rare_targets.png"
# ndcg@10 on Beauty by the number of codes: read off figure 4 of the paper, about 0.0005 wide, and a reproduction
PUBLISHED = {4: 0.029, 8: 0.037, 16: 0.0453, 32: 0.0464, 64: 0.0443}
REPRODUCED = {4: 0.0266, 8: 0.0383, 16: 0.0463, 32: 0.0469, 64: 0.0439}
BUCKETS = {"0-5": (0, 5), "6-10": (6, 10), "11-15": (11, 15), "16-20": (16, 20), "21+": (21, None)}
RARE_SYSTEMS = {
    "SASRec": "beauty_sasrec_seed1",
    "VQ-Rec": "beauty_vqrec_seed1",
    "TIGER": "beauty_tiger_own_seed1",
    "RPG": "beauty_rpg_opq32_long_seed1",
    "ACERec": "beauty_acerec_opq32_seed1",
    "train without options": "beauty_default_seed1",
}
_RARE_BASELINES = {"item-kNN": "rank_item_knn", "ridge": "rank_ridge"}
_LENGTH = re.compile(r"beauty_rpg_length(\d+)_seed\d+")

_LENGTHS_INTRODUCTION = f"""## How long an id should be

RPG on Amazon 2014 Beauty with product codes (OPQ) of the same MiniLM vectors, 256 codes each, 15 epochs at a rate of
5e-4, one seed; seen items may be listed. `published` is read off figure 4 of
[Hou et al. 2025](https://arxiv.org/abs/2506.05781), `reproduced` is of RPG-uva (2026); both use larger text encoders
and up to 150 epochs. A head for each code learns slowly, so that few epochs are hardest on long ids.

![ndcg@10 by codes per item]({LENGTHS_PLOT})"""
_RARE_INTRODUCTION = f"""## Rare targets

ndcg@10 on the test users of Amazon 2014 Beauty by how often the target was taken in the training part, seen items
allowed: the groups of the papers, and all others. One seed of each.

![ndcg@10 by training occurrences of the target]({RARE_PLOT})"""
_POOL_INTRODUCTION = """## What a list costs as the catalog grows

Models with random weights in the shapes that `train` takes, and catalogs of random ids. PSID writes 4 codes by 50
beams, whose cost depends on the codes and not on the items; RPG adds up 32 looked-up scores for each item, SASRec and
VQ-Rec one product. `weights` are parameters and codes; VQ-Rec keeps the vectors of all items beside them. Made by
`scripts/evidence/benchmark_pools.py`.

![time and weights by items](scripts/evidence/records/pool_speed.png)"""


def lengths_of(records: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The records of RPG by the number of codes. Args: all records."""
    found = {_LENGTH.fullmatch(record["run"]["name"]): record for record in records}
    return {int(match[1]): found[match] for match in sorted(filter(None, found), key=lambda match: int(match[1]))}


def length_blocks(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section on the length of ids; none without such runs. Args: all records."""
    rows = [
        (
            str(number),
            *(f"{record['model'][name]:.4f}" for name in ("recall@10", "ndcg@10")),
            f"{record['run']['best_validation_ndcg@10']:.4f}",
            f"{PUBLISHED.get(number, float('nan')):.4f}",
            f"{REPRODUCED.get(number, float('nan')):.4f}",
            f"{record['run']['num_parameters'] / 1e6:.1f}",
            f"{record['run']['cpu_minutes']:.1f}",
        )
        for number, record in lengths_of(records).items()
    ]
    header = ("codes", "recall@10", "ndcg@10", "validation ndcg@10", "published", "reproduced", "million parameters")
    return [_LENGTHS_INTRODUCTION, markdown_table([(*header, "CPU minutes"), *rows], num_left=1)] if rows else []


def rare_values(users: Mapping[str, pd.DataFrame | None]) -> dict[str, dict[str, float]]:
    """ndcg@10 by bucket for each system that has results per user. Args: those, by the name of the run."""
    found: dict[str, dict[str, float]] = {}
    for title, name in RARE_SYSTEMS.items():
        table = users.get(name)
        if table is None:
            continue
        ranks = {title: "rank"} | (_RARE_BASELINES if not found else {})
        for system, column in ranks.items():
            values = pd.Series(user_values(table[column], "ndcg@10"))
            inside = {
                bucket: table["num_train"].between(low, high or float("inf"))
                for bucket, (low, high) in BUCKETS.items()
            }
            found[system] = {bucket: float(values[mask].mean()) for bucket, mask in inside.items() if mask.any()}
    return found


def rare_blocks(users: Mapping[str, pd.DataFrame | None]) -> list[str]:
    """The section on rare targets; none without results per user. Args: those, by the name of the run."""
    found = rare_values(users)
    if not found:
        return []
    table = next(table for name in RARE_SYSTEMS.values() if (table := users.get(name)) is not None)
    counts = [table["num_train"].between(low, high or float("inf")).sum() for low, high in BUCKETS.values()]
    header = ("system", *(f"{bucket} ({count:,})" for bucket, count in zip(BUCKETS, counts, strict=True)))
    rows = [(system, *(f"{values.get(bucket, 0):.4f}" for bucket in BUCKETS)) for system, values in found.items()]
    return [_RARE_INTRODUCTION, markdown_table([header, *rows], num_left=1)]


def pool_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section on the cost of a list.

    Args:
        figures (`dict` or `None`): What `scripts/evidence/benchmark_pools.py` wrote.

    Returns:
        `list[str]`: blocks of Markdown; none without figures.

    >>> row = {"model": "SASRec", "num_items": 1000, "milliseconds_per_user": 0.25, "weights_mb": 1.0}
    >>> print(pool_blocks({"users": 64, "machine": {"torch": "2.13.0"}, "rows": [row]})[-1].splitlines()[-1])
    | SASRec | 1,000 | 0.25 | 1 |

    """
    if figures is None:
        return []
    rows = [
        (
            row["model"],
            f"{row['num_items']:,}",
            f"{row['milliseconds_per_user']:.2f}",
            f"{row['weights_mb']:,.0f}",
        )
        for row in figures["rows"]
    ]
    header = ("model", "items", "CPU ms per user", "weights, MB")
    note = f"Batches of {figures['users']} users, one thread, torch {figures['machine']['torch']}."
    return [_POOL_INTRODUCTION, note, markdown_table([header, *rows], num_left=1)]
