"""
A global split in time: what came before a moment is for training, what came first after it is the target.

Leave-last-out trains on what other users did after a target was taken, which nothing that serves can know. Here every
target lies behind everything that was trained on: the state of a shop on one day, and what each customer took next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np


SplitTime: TypeAlias = str | datetime | Sequence[str | datetime]
SUFFIX = "-temporal"  # of the protocol's name: numbers of the two kinds of splits must not be compared


@dataclass(frozen=True)
class SplitTimes:
    """
    When the test begins and when, before that, the validation does; milliseconds since the epoch.

    - training: a user's items before `validation`;
    - validation: the first item from `validation` on, if it came before `test`; the history is the training part;
    - test: the first item from `test` on; the history is everything before `test`.

    Without a time of its own the validation target is a user's last item before `test`. Later items are of no split,
    and neither is a target without a history.

    Source: Gusak et al. 2025 (https://huggingface.co/papers/2507.16289) compare such splits with leave-one-out and
    with each other by what they take for the target; the first item after the time is the one for which a list made at
    that time needs to know nothing that came later.
    """

    test: int
    validation: int | None = None

    @classmethod
    def of(cls, times: SplitTime) -> SplitTimes:
        """
        Args: the time of the test, or that of the validation and that of the test: ISO 8601 or `datetime`, UTC where
        there is no zone.

        >>> SplitTimes.of("1970-01-01T00:00:02").test
        2000
        """
        given = [times] if isinstance(times, str | datetime) else list(times)
        if not 1 <= len(given) <= 2:
            raise ValueError(f"`split_time` must be one time or two, got {len(given)}.")
        moments = [_milliseconds(time) for time in given]
        if moments != sorted(set(moments)):
            raise ValueError(f"`split_time` must be the time of the validation, then a later one, got {given}.")
        return cls(moments[-1], moments[0] if len(moments) == 2 else None)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SplitTimes:
        """Args: what `record` returned."""
        return cls.of([record[name] for name in ("validation", "test") if record[name] is not None])

    def record(self) -> dict[str, str | None]:
        """Both times in ISO 8601, for `dataset.json`."""
        moments = {"validation": self.validation, "test": self.test}
        return {name: None if time is None else _text(time) for name, time in moments.items()}

    def numbers(self, times: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        How many items of each sequence are for training, and how many came before the test.

        Args: times of all items, in order within each sequence, and where sequences begin.
        """
        known = np.add.reduceat((times < self.test).astype(np.int64), starts)
        if self.validation is None:
            return np.where(known > 1, known - 1, known), known
        return np.add.reduceat((times < self.validation).astype(np.int64), starts), known


def _milliseconds(time: str | datetime) -> int:
    try:
        moment = time if isinstance(time, datetime) else datetime.fromisoformat(time)
    except ValueError as error:
        raise ValueError(f"`split_time` must be in ISO 8601, such as 2011-10-01, got {time!r}.") from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return round(moment.timestamp() * 1000)


def _text(time: int) -> str:
    return datetime.fromtimestamp(time / 1000, UTC).isoformat(timespec="milliseconds" if time % 1000 else "seconds")
