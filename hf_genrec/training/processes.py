"""
One training in several processes: the batches, random numbers, users of a validation and gradients of each of them.

What a step trains depends on the product of processes, accumulated batches and targets per batch alone (see
[`TargetBatchSampler`]). In one process nothing here does anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.data_loader import DataLoaderShard
from transformers import TrainingArguments

from hf_genrec.data.sequences import IGNORED_LABEL
from hf_genrec.training.sampler import StepParts


@contextlib.contextmanager
def main_process_first() -> Iterator[bool]:
    """
    A block that the main process runs while others wait, who run it then. Yields whether this is the main process,
    the one that writes files.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield True
        return
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        yield state.is_main_process


def step_parts(args: TrainingArguments, accelerator: Accelerator) -> StepParts:
    """How a step is divided. Args: the training arguments, and the trainer's accelerator."""
    return StepParts(accelerator.num_processes, accelerator.process_index, args.gradient_accumulation_steps)


def train_loader(
    rows: Any, batches: Any, collate: Any, args: TrainingArguments, accelerator: Accelerator
) -> DataLoaderShard:
    """
    The batches of this process, on its device. `Accelerator.prepare` would divide them once more, by another rule, and
    forget the epoch of a resumed run.

    Args: the rows, a sampler of lists of their numbers, what makes a batch of a list, training arguments, accelerator.
    """
    return DataLoaderShard(
        rows,
        device=accelerator.device if accelerator.device_placement else None,
        batch_sampler=batches,
        collate_fn=_Collate(collate, rows),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
    )


def keep_buffers(model: Any) -> None:
    """
    Have `DistributedDataParallel` leave the buffers of a model alone: they are equal in all processes and not trained,
    and neither gloo nor NCCL sends the 16-bit integers of a catalog. Args: the model, before it is wrapped.
    """
    names = [name for name, _ in model.named_buffers()]
    torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)


@dataclass(frozen=True)
class _Collate:
    """Makes a batch of some rows; of none a row without labels, whose loss is 0, since processes step together."""

    collate: Any
    rows: Any

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Any:
        if rows:
            return self.collate(rows)
        row = self.rows[0]
        return self.collate([row | {"labels": np.full_like(row["labels"], IGNORED_LABEL)}])


class StepSeeds:
    """
    Random numbers of each batch of a step: dropout masks, latents and draws from a teacher's lists.

    By default all processes would draw the same ones. Here they follow from the seed, the step and the number of the
    batch in it, so it does not matter which process trains a batch, and a resumed run needs no states of generators.
    Where a step is one batch, the generator goes on as in any other training.

    Args: the seed, and how a step is divided.
    """

    def __init__(self, seed: int, parts: StepParts) -> None:
        self._seed, self._parts = seed, parts
        self._step, self._turn = -1, 0

    def begin_batch(self, step: int) -> int:
        """Seed what torch draws next; the number of the batch in its step, 0 for the first. Args: the step."""
        self._turn = self._turn + 1 if step == self._step else 0
        self._step = step
        part = self._turn * self._parts.num_processes + self._parts.process_index
        if self._parts.number > 1:
            torch.manual_seed(seed_of(self._seed, step, part))
        return part


def seed_of(*numbers: int) -> int:
    """A seed in [0, 2**63) made from several numbers, so that sums of them do not meet. Args: the numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little") >> 1


def batches_in_turn(num_rows: int, batch_size: int, accelerator: Accelerator) -> list[range]:
    """
    This process's batches of rows. They are whole batches of one process, so that every row is padded and computed as
    it would be there, to the last digit.

    Args: rows in all, rows of a batch, and the accelerator.
    """
    batches = [range(start, min(start + batch_size, num_rows)) for start in range(0, num_rows, batch_size)]
    return batches[accelerator.process_index :: accelerator.num_processes]


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up the gradients of all processes, where the loss went past the wrapper that does. Args: the parameters."""
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
