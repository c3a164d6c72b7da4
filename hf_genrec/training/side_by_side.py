"""
Two trainings at the same time: each small network keeps one core busy (`threads.py`), and a machine has several.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

import torch


MANY_TARGETS = 300_000  # of all epochs: below that, starting a second Python takes longer than it saves


def pays_off(num_targets: int) -> bool:
    """
    Whether a second process would shorten a training: a core is free, and no device or launcher has its own plan.

    Args: the targets of all epochs of the training that would run beside another one.
    """
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return num_targets >= MANY_TARGETS and num_cores > 1 and "RANK" not in os.environ and not torch.cuda.is_available()


@contextlib.contextmanager
def side_by_side(function: Callable[..., Any], *args: Any) -> Iterator[None]:
    """
    A second process calls a function while the block runs; the end of the block waits for it.

    An error in the block ends the process. What goes wrong in the process ends only that: whoever needs its files
    looks whether they are complete. It prints nothing, since two progress bars cannot share a terminal.

    Args: an importable function and its arguments, which are pickled.
    """
    process = multiprocessing.get_context("spawn").Process(target=_call, args=(function, *args))
    process.start()
    try:
        yield
        process.join()
    finally:
        process.terminate()
        process.join()


def _call(function: Callable[..., Any], *args: Any) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:  # killed, it must not leave a process that writes into a folder that is continued
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        contextlib.suppress(KeyboardInterrupt),  # of the terminal, which the first process gets as well
    ):
        function(*args)
