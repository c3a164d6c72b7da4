"""Figures of `benchmark_one_thread.py` in, a section of the page `RESULTS.md` out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_genrec.evaluation.tables import NONE, markdown_table


_INTRODUCTION = """## Lists on one thread

Random weights of the paper's shape against stock T5 as above, then validation users of a trained run, beams alone, ten
items. `bfloat16` is `recommend()` with `Recommender.from_pretrained(..., dtype=torch.bfloat16)`, whose scores differ
in the third digit; otherwise all lists of a table are the same. `whole search` computes every beam of the last step;
`recommend` leaves out those that no listed item can come from: no continuation is better than its beam, and where the
softmax runs over legal codes an only child is as good as its parent. Made by
`scripts/evidence/benchmark_one_thread.py`."""
_TRIED = """Tried, each once on a busy machine, and not built: autocast around the encoder alone (0 to 3 %);
`torch.compile` of each block of the encoder (about 70 seconds per shape of a batch; 73 to 67 ms at 16 users, slower at
one), of the decoder's attention (one user: no change, but the limit of recompilations was reached, so it ran partly as
before), and of encoder and decoder as a whole (not compiled after eight minutes). Parts of 128 to 512 decoder rows
instead of 2,048 were slower at 500 beams and in bfloat16, no different at 50 beams in float32. Products of matrices
are most of what is left: 0.8 GFLOP a user at 50 beams, 8.4 ms at the 97 GFLOP/s that a core reached in float32."""


def one_thread_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Lists on one thread".

    Args: the content of `one_thread.json`, or `None`. Returns blocks of Markdown; none without figures.
    """
    if figures is None:
        return []
    machine, bound = figures["machine"], figures["bound"]
    stock = [["users", "beams", "memory", "stock, CPU ms per user", "recommend, ms", "bfloat16, ms", *_RATIOS]]
    for row in figures["stock"]:
        times = row["milliseconds_per_user"]
        ratios = [f"{times['stock'] / times[name]:.1f}" for name in ("recommend", "bfloat16")]
        memory = "kept" if row["kept_memory"] else "as usual"
        stock.append([str(row["num_users"]), str(row["num_beams"]), memory, *_cells(times, "stock"), *ratios])
    wide = [["users", "beams", "whole search, CPU ms per user", "recommend, ms", "bfloat16, ms"]]
    for row in figures["wide"]:
        times = row["milliseconds_per_user"]
        wide.append([str(row["num_users"]), str(row["num_beams"]), *_cells(times, "whole")])
    needed = " and ".join(
        f"{mean:.0f} of {most_of:,} prefixes of length {level}"
        for level, (mean, most_of) in enumerate(zip(bound["mean"], bound["all"], strict=True), start=1)
    )
    return [
        _INTRODUCTION,
        f"CPU milliseconds; {machine['device']}, {machine['capability']}, torch {machine['torch']}, load average "
        f"{machine['load_average']:.1f} at the start.",
        markdown_table(stock, num_left=0),
        f"{figures['dataset']}, {figures['num_items']:,} items:",
        markdown_table(wide, num_left=0),
        "**Drafts without a dense head do not pay.** What lists the ten best of the whole catalog for certain must "
        f"compute what follows every prefix that is no worse than the tenth item: {needed} (mean of "
        f"{figures['num_users']} users), more than 50 beams do. Drafts, however good, only make that threshold known "
        "earlier; a dense head helps because its score, known for all items, is part of what is ranked.",
        _TRIED,
    ]


_RATIOS = ("recommend, times stock", "bfloat16, times stock")


def _cells(times: Mapping[str, float], first: str) -> list[str]:
    return [f"{times[name]:.2f}" if name in times else NONE for name in (first, "recommend", "bfloat16")]
