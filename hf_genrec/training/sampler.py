"""
Lengths and numbers of targets of training rows in, batches of equal numbers of targets out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


ITEMS_PER_TARGET = 20  # a batch holds at most so many items for each target wanted


class TargetBatchSampler(Sampler[list[int]]):
    """
    Batches of rows of similar length that together hold about `targets_per_batch` targets.

    A window of 20 items trains up to 20 targets and a short one a single target, so batches of equal numbers of rows
    would differ twentyfold in what they teach. Where rows are long and have few targets, as windows that move by one
    item, a batch ends after 20 items for each target wanted, so its memory stays bounded. Batches are cut from the
    rows sorted by length (rows of equal length in random order) and come in random order. The order depends on `seed`
    and the epoch alone, so a resumed run sees the batches that an uninterrupted one sees; the number of batches is the
    same in every epoch.

    Args: items in each row, targets in each row, targets wanted in a batch (it holds at least one row), the seed of
        the order, and the processes that share the batches, of which the last are repeated until all get equally many.

    Raises:
        ValueError: If there are no rows or `targets_per_batch` is below 1.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        targets_per_row: Sequence[int],
        *,
        targets_per_batch: int,
        seed: int,
        num_replicas: int = 1,
    ) -> None:
        if not len(lengths):
            raise ValueError("There are no training rows: no user has two items in the training part.")
        if targets_per_batch < 1:
            raise ValueError(f"`targets_per_batch` must be at least 1, got {targets_per_batch}.")
        self.lengths = np.asarray(lengths)
        self.targets_per_row = np.asarray(targets_per_row)
        self.seed = seed
        self.epoch = 0
        order = np.lexsort((self.targets_per_row, self.lengths))
        shares = np.maximum(self.targets_per_row, self.lengths / ITEMS_PER_TARGET)
        batch_of = np.maximum(np.ceil(np.cumsum(shares[order])).astype(int) - 1, 0) // targets_per_batch
        self._cuts = np.flatnonzero(np.diff(batch_of)) + 1
        self._num_batches = -(-(len(self._cuts) + 1) // num_replicas) * num_replicas

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = np.lexsort((random.random(len(self.lengths)), self.targets_per_row, self.lengths))
        batches = np.split(order, self._cuts)
        shuffled = random.permutation(len(batches))
        for number in np.resize(shuffled, self._num_batches):
            yield batches[number].tolist()
