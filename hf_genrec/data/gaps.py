"""
Times of a history's items in, buckets of the times between them out: what a model with `history_gap_buckets` reads.

Bucket 0 is an unknown time, as that of a first item; 1 is less than a second after the item before, and each further
one begins at twice the seconds of the one before. Only times within the history count: when the next item comes
is not known when a list is made.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def gap_buckets(times: ArrayLike, first: ArrayLike = ()) -> NDArray[np.uint8]:
    """
    The bucket of each item of histories that stand one after the other.

    Args: times in milliseconds, and the places at which a history begins.

    >>> gap_buckets([0, 999, 2_000, 5_000, 90_000_000, 7], first=[0, 5]).tolist()
    [0, 1, 2, 3, 18, 0]
    """
    seconds = np.diff(np.asarray(times, dtype=np.int64), prepend=0) // 1000
    buckets = 1 + np.frexp(np.maximum(seconds, 0).astype(np.float64))[1]  # 1 + number of binary digits
    buckets[np.asarray(first, dtype=np.int64)] = 0
    return buckets.astype(np.uint8)
