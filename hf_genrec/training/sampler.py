"""
Lengths and numbers of targets of training rows in, batches of equal numbers of targets out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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

    Processes share the rows of each step: a step has `targets_per_batch` targets for each process and each batch it
    accumulates, and which rows these are depends on that product alone. So two processes train in a step what one
    process trains with twice the targets, and every row comes exactly once in an epoch. A step of fewer rows than
    batches has empty ones.

    Args: items in each row, targets in each row, targets wanted in a batch (it holds at least one row), the seed of
        the order, the number of processes and which of them this is, and the batches that a step accumulates.

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
        num_processes: int = 1,
        process_index: int = 0,
        num_accumulated: int = 1,
    ) -> None:
        if not len(lengths):
            raise ValueError("There are no training rows: no user has two items in the training part.")
        if targets_per_batch < 1:
            raise ValueError(f"`targets_per_batch` must be at least 1, got {targets_per_batch}.")
        self.lengths = np.asarray(lengths)
        self.targets_per_row = np.asarray(targets_per_row)
        self.seed = seed
        self.epoch = 0
        self.parts = StepParts(num_processes, process_index, num_accumulated)
        order = np.lexsort((self.targets_per_row, self.lengths))
        shares = np.maximum(self.targets_per_row, self.lengths / ITEMS_PER_TARGET)
        wanted = targets_per_batch * self.parts.number
        batch_of = np.maximum(np.ceil(np.cumsum(shares[order])).astype(int) - 1, 0) // wanted
        self._cuts = np.flatnonzero(np.diff(batch_of)) + 1

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (len(self._cuts) + 1) * self.parts.num_accumulated

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = np.lexsort((random.random(len(self.lengths)), self.targets_per_row, self.lengths))
        steps = np.split(order, self._cuts)
        for number in random.permutation(len(steps)):
            for rows in self.parts.mine(steps[number]):
                yield rows.tolist()


@dataclass(frozen=True)
class StepParts:
    """
    How the rows of a step are divided into batches: every so many-th row, so that batches are alike in size.

    Args: the number of processes and which of them this is, and the batches that each of them accumulates in a step.

    >>> [part.tolist() for part in StepParts(2, 1, 2).mine(np.arange(9))]
    [[1, 5], [3, 7]]
    """

    num_processes: int = 1
    process_index: int = 0
    num_accumulated: int = 1

    @property
    def number(self) -> int:
        """Batches in a step, of all processes."""
        return self.num_processes * self.num_accumulated

    def mine(self, rows: Any) -> Iterator[Any]:
        """The batches of this process. Args: the rows of a step; of fewer than `number`, some are empty."""
        for first in range(self.process_index, self.number, self.num_processes):
            yield rows[first :: self.number]
