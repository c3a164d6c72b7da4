"""
Times of histories in, mask values for a model out: 1 for an item whose time is unknown, else 1 more than the bucket of
the time since the item before, see [`hf_genrec.data.gaps`].
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import cache

from hf_genrec.data.gaps import gap_buckets


logger = logging.getLogger(__name__)

Times = Sequence[Sequence[int] | None] | Sequence[int]


def mask_values(
    histories: list[list[str]], times: Times | None, *, is_one: bool, known: Collection[str]
) -> list[list[int]] | None:
    """
    A value for each known item of the histories; `None` without times.

    Args: item ids per user; as many times, in milliseconds, `None` for a user without; whether they are those of one
        user in a flat list; the catalog.

    >>> mask_values([["tea", "cup", "pot"], ["tea"]], [[0, 0, 5000], None], is_one=False, known={"tea", "pot"})
    [[1, 5], [1]]
    """
    if times is None:
        _say_that_times_are_unknown()
        return None
    rows: list = [times] if is_one else list(times)
    if len(rows) != len(histories):
        raise ValueError(f"`times` must have a list per history ({len(histories)}), got {len(rows)}.")
    values = []
    for number, (row, history) in enumerate(zip(rows, histories, strict=True)):
        if row is not None and len(row) != len(history):
            raise ValueError(
                f"`times` must have a time per item: the history of user {number} has {len(history)}, its times "
                f"{len(row)}."
            )
        if row is None or not history:
            values.append([1] * sum(item_id in known for item_id in history))
        else:
            buckets = (1 + gap_buckets(row, [0])).tolist()
            values.append([bucket for item_id, bucket in zip(history, buckets, strict=True) if item_id in known])
    return values


@cache
def _say_that_times_are_unknown() -> None:
    """Once in a process."""
    logger.warning("The model reads the times between items, and none are given: they count as unknown.")


def has_times(config: object) -> bool:
    """Whether a model reads the times of a history. Args: its config."""
    return bool(getattr(config, "history_gap_buckets", 0))
