"""
A model and the size of its steps in, the number of threads of a training on a CPU out: the rule stands here only.

A thread that waits for the others burns its core. Where the largest product of a step takes milliseconds, two threads
therefore save little, and beside other work they take many times as long as one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


WORK_PER_THREAD = 2**28  # multiplications of the largest product, about ten milliseconds of a core


def num_threads_for(config: Any, *, targets_per_step: int, available: int) -> int:
    """
    One thread for each 268 million multiplications of the largest product in a step: that of feed-forward layers or,
    where all items are scored, that of the states with the items.

    Args: the model's config, the targets in a batch, and the most threads there may be.
    """
    is_written = config.has_codes and getattr(config, "num_decoder_layers", 0)  # a row of the decoder for each code
    rows = targets_per_step * (config.num_levels if is_written else 1)
    work = rows * config.d_model * max(4 * config.d_model, getattr(config, "d_ff", 0) or 0)
    if not config.has_codes or getattr(config, "dense_head", False):
        work = max(work, targets_per_step * config.d_model * config.num_items)
    return max(1, min(available, work // WORK_PER_THREAD))


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Torch computes with this many threads inside, and as before afterwards. Args: the number, at least 1."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
