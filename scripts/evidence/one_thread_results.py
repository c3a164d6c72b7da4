"""Figures of `benchmark_one_thread.py` in, a section of the page `RESULTS.md` out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_genrec.evaluation.tables import NONE, markdown_table


_INTRODUCTION = """## Lists on one thread

Random weights of the paper's shape against stock T5 as above, then validation users of a trained run, beams alone, ten
items. `bfloat16` is `recommend()` with `Recommender.from_pretrained(..., dtype=torch.bfloat16)`, whose scores differ
in the third digit; otherwise all lists of a table are the same. `compiled` is what `Recommender.compile()` gives,
one to three minutes before the first list. `products alone` is the time of the matrix products of `recommend()` at
the rate of large ones (1,024 x 1,024), so `at most` is what this search would reach if all but its products were free.
`whole search` computes every beam of the last step; `recommend` leaves out those that no listed item can come from: no
continuation is better than its beam, and where the softmax runs over legal codes an only child is as good as its
parent. Made by
`scripts/evidence/benchmark_one_thread.py`."""
_TRIED = """Tried, each once on a busy machine, and not built: autocast around the encoder alone (0 to 3 %);
`torch.compile` of each block of the encoder (about 70 seconds per shape of a batch; 73 to 67 ms at 16 users, slower at
one), and of the decoder-only network (a break at every cache of transformers: 17.7 and 18.5 ms, one user by 50 beams);
the C++ wrapper of torch's compiler for what `compile()` compiles (one user by 50 beams 28.4 ms, uncompiled 33.5: no
more than without the wrapper, and nearly six minutes at the start). Parts of 128 to 512 decoder rows instead of 2,048
were slower at 500 beams and in bfloat16, no different at 50 beams in float32; torch's own `rms_norm` in the layers of
the search changed nothing that could be told from noise."""


def one_thread_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Lists on one thread".

    Args: the content of `one_thread.json`, or `None`. Returns blocks of Markdown; none without figures.
    """
    if figures is None:
        return []
    machine, bound = figures["machine"], figures["bound"]
    rates = figures["gflops"]
    stock = [["users", "beams", "memory", "stock, CPU ms per user", *(f"{name}, ms" for name in _OURS), *_RATIOS]]
    for row in figures["stock"]:
        times = row["milliseconds_per_user"]
        times = times | {"products alone": 1000 * row["gflop_per_user"] / rates["float32"]}
        ratios = [f"{times['stock'] / times[name]:.1f}" if name in times else NONE for name in _OURS]
        memory = "kept" if row["kept_memory"] else "as usual"
        stock.append([str(row["num_users"]), str(row["num_beams"]), memory, *_cells(times, "stock", *_OURS), *ratios])
    wide = [["users", "beams", "whole search, CPU ms per user", "recommend, ms", "bfloat16, ms"]]
    for row in figures["wide"]:
        times = row["milliseconds_per_user"]
        wide.append([str(row["num_users"]), str(row["num_beams"]), *_cells(times, "whole", "recommend", "bfloat16")])
    needed = " and ".join(
        f"{mean:.0f} of {most_of:,} prefixes of length {level}"
        for level, (mean, most_of) in enumerate(zip(bound["mean"], bound["all"], strict=True), start=1)
    )
    return [
        _INTRODUCTION,
        f"CPU milliseconds; {machine['device']}, {machine['capability']}, torch {machine['torch']}, load average "
        f"{machine['load_average']:.1f} at the start; large products at {rates['float32']:.0f} GFLOP/s in float32 and "
        f"{rates['bfloat16']:.0f} in bfloat16.",
        markdown_table(stock, num_left=0),
        f"{figures['dataset']}, {figures['num_items']:,} items:",
        markdown_table(wide, num_left=0),
        "**Drafts without a dense head do not pay.** What lists the ten best of the whole catalog for certain must "
        f"compute what follows every prefix that is no worse than the tenth item: {needed} (mean of "
        f"{figures['num_users']} users), more than 50 beams do. Drafts, however good, only make that threshold known "
        "earlier; a dense head helps because its score, known for all items, is part of what is ranked.",
        _TRIED,
    ]


_OURS = ("recommend", "compiled", "bfloat16", "products alone")
_RATIOS = (*(f"{name}, times stock" for name in _OURS[:-1]), "at most")


def _cells(times: Mapping[str, float], *names: str) -> list[str]:
    return [f"{times[name]:.2f}" if name in times else NONE for name in names]
