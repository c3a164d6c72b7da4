"""
Dynamic micro-batching: requests that arrive one by one go in, batches of users for the model come out.

While the model computes one batch the next one fills. Requests wait in groups of equal options, of which only one can
be computed at a time; the group whose first request is the oldest comes next. What is put here runs on the event
loop, only `compute` in a thread of its own: nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """
    Too many users wait.

    Args: `seconds` until there should be room again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the queue is full, try again in {seconds:.1f} seconds")
        self.seconds = seconds


@dataclass(eq=False)
class Job:
    """A request that waits: `num_users` of it, `content` for `compute`, and where the answer goes."""

    content: Any
    num_users: int
    answer: asyncio.Future[Any]
    arrived: float = field(default_factory=time.monotonic)


class MicroBatcher:
    """
    Computes requests together.

    Args:
        compute (`Callable`):
            `compute(key, contents)` returns an answer for each content; it runs in one thread. If it raises for
            several, each is computed again alone, so that no request fails for another.
        size (`int`): The most users of a batch; a larger request is a batch of its own.
        window (`float`): Seconds that the first request of a batch waits for others while nothing is computed.
        max_waiting (`int`): Users that may wait.
        observe (`Callable`, *optional*): Is called with the users and the seconds of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Any, list[Any]], list[Any]],
        *,
        size: int,
        window: float,
        max_waiting: int,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self._compute = compute
        self.size, self.window, self.max_waiting = size, window, max_waiting
        self.num_waiting = 0
        self._observe = observe
        self._groups: dict[Hashable, deque[Job]] = {}
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._seconds_per_user = 0.01  # a running mean, for Retry-After

    async def ask(self, key: Hashable, content: Any, *, num_users: int, timeout: float) -> Any:
        """
        The answer to a request.

        Args:
            key (`Hashable`): Requests with equal keys may share a batch.
            content: What `compute` needs.
            num_users (`int`): Users of the request.
            timeout (`float`): Seconds to wait for the answer.

        Raises:
            QueueFullError: If too many users wait.
            TimeoutError: If the answer did not come in time.
        """
        if self.num_waiting + num_users > self.max_waiting:
            raise QueueFullError(self.num_waiting * self._seconds_per_user)
        job = Job(content, num_users, asyncio.get_running_loop().create_future())
        self._groups.setdefault(key, deque()).append(job)
        self.num_waiting += num_users
        self._changed.set()
        try:
            return await asyncio.wait_for(job.answer, timeout)
        finally:
            self._drop(key, job)

    def _drop(self, key: Hashable, job: Job) -> None:
        """Forget a request that gave up before its turn came; does nothing if it is not waiting."""
        group = self._groups.get(key, deque())
        with contextlib.suppress(ValueError):
            group.remove(job)
            self.num_waiting -= job.num_users
            if not group:
                del self._groups[key]

    async def run(self) -> None:
        """Compute batches until cancelled."""
        while True:
            while not self._groups:
                self._changed.clear()
                await self._changed.wait()
            await self._fill()
            if self._groups:
                await self._answer(*self._next())

    async def _fill(self) -> None:
        """Wait until the batch that comes next is full or its first request has waited for the window."""
        until = min(group[0].arrived for group in self._groups.values()) + self.window
        while (left := until - time.monotonic()) > 0 and self._groups:
            if any(sum(job.num_users for job in group) >= self.size for group in self._groups.values()):
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    def _next(self) -> tuple[Hashable, list[Job]]:
        key = min(self._groups, key=lambda key: self._groups[key][0].arrived)
        group, num_users = self._groups[key], 0
        jobs: list[Job] = []
        while group and (not jobs or num_users + group[0].num_users <= self.size):
            jobs.append(group.popleft())
            num_users += jobs[-1].num_users
        if not group:
            del self._groups[key]
        self.num_waiting -= num_users
        return key, jobs

    async def _answer(self, key: Hashable, jobs: list[Job]) -> None:
        start = time.monotonic()
        for job, answer in zip(jobs, await self._computed(key, jobs), strict=True):
            if job.answer.done():
                continue
            if isinstance(answer, Exception):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)
        seconds, num_users = time.monotonic() - start, sum(job.num_users for job in jobs)
        self._seconds_per_user += 0.1 * (seconds / max(1, num_users) - self._seconds_per_user)
        if self._observe is not None:
            self._observe(num_users, seconds)

    async def _computed(self, key: Hashable, jobs: list[Job]) -> list[Any]:
        """An answer or an exception for each request."""
        loop, contents = asyncio.get_running_loop(), [job.content for job in jobs]
        try:
            return await loop.run_in_executor(self._thread, self._compute, key, contents)
        except Exception as error:  # noqa: BLE001 (whatever it is, it goes to whoever asked)
            if len(jobs) == 1:
                return [error]
            logger.warning("A batch of %d requests failed and is computed one by one: %s", len(jobs), error)
            return [(await self._computed(key, [job]))[0] for job in jobs]

    def close(self) -> None:
        """Stop the thread once it is idle."""
        self._thread.shutdown(wait=True)
