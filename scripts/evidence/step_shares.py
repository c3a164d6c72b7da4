"""
Where the time of a training step goes: the share of matrix products and of everything else.

    OMP_NUM_THREADS=1 python scripts/evidence/step_shares.py RUN PREPARED
    OMP_NUM_THREADS=1 python scripts/evidence/step_shares.py RUN PREPARED --batch-size 256 --precisions fp32

RUN is a folder that `hf-genrec train` wrote; its model is trained for some steps on batches of PREPARED, as
`GenRecTrainer` does: packed rows, autocast, clipped gradients, fused AdamW. Operators are put into groups by their
names, each with the time it takes itself; what no operator takes is Python between them, batches included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmark_decoding import machine
from benchmark_training import Step, batches, counted, training_step
from hf_genrec import PreparedDataset, Recommender
from hf_genrec.files import write_json
from hf_genrec.training.trainer import keep_freed_memory
from step_results import step_blocks


# The first group whose words a name contains, after a space; names are those of the dispatcher, without `aten::`.
GROUPS: dict[str, tuple[str, ...]] = {
    "optimizer and clipping": ("fused_adam", "_foreach", "vector_norm", "linalg"),
    "fused attention": ("scaled_dot_product", "flash_attention", "flash_attn"),
    "matrix products": ("mm", "linear", "matmul", "einsum", "onednn"),
    "softmax and loss": ("softmax", "nll_loss", "cross_entropy", "logsumexp"),
    "rows taken and written": ("embedding", "index", "gather", "scatter", "take", "nonzero", "masked_select"),
    "dropout": ("dropout", "bernoulli", "rand"),
    "copies and casts": ("copy", "cat", "clone", "contiguous", "_to_copy", "stack"),
    "new memory": (" fill", "zero", "empty", "full", "ones", "resize"),
    "element by element": ("",),
}
PYTHON = "Python between operators"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder that `hf-genrec train` wrote")
    parser.add_argument("prepared", help="folder that `hf-genrec prepare` wrote")
    parser.add_argument("--batch-size", type=int, default=512, help="targets per step (default 512)")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=8, help="steps that count, after as many that do not (default 8)")
    parser.add_argument("--output", type=Path, default=Path("scripts/evidence/records/step_shares.json"))
    options = parser.parse_args(words)
    keep_freed_memory()
    prepared = PreparedDataset.load(options.prepared)
    report = {"machine": machine(torch.device("cpu")), "batch_size": options.batch_size, "cells": []}
    for precision in options.precisions:
        torch.manual_seed(0)
        model = Recommender.from_pretrained(options.run, device="cpu").model.train()
        step = training_step(model, precision, counted(batches(prepared, model, options.batch_size)))
        milliseconds, shares = shares_of(step, options.steps)
        shares = {name: round(share, 4) for name, share in shares.items()}
        report["cells"].append({"precision": precision, "milliseconds": round(milliseconds, 1), "shares": shares})
    report |= {"model": model.config.display_name, "num_items": model.config.num_items}
    write_json(report, options.output)
    Console().print("\n\n".join(step_blocks(report)))


def shares_of(step: Step, num_steps: int) -> tuple[float, dict[str, float]]:
    """
    Milliseconds of computing of a step without the profiler, and shares of its time with it, largest first: medians
    over the steps, since a profile goes by the clock and other processes may take the core in the middle of a step.

    Args:
        step (`Callable`): Does one step.
        num_steps (`int`): How many count, each time, after as many that do not.
    """
    for _ in range(num_steps):
        step()
    start = time.process_time()
    for _ in range(num_steps):
        step()
    milliseconds = 1000 * (time.process_time() - start) / num_steps
    profiles = []
    for _ in range(num_steps):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            with torch.profiler.record_function(PYTHON):
                step()
        profiles.append(grouped({event.key: event.self_cpu_time_total for event in profiler.key_averages()}))
    times = {name: statistics.median(profile[name] for profile in profiles) for name in profiles[0]}
    total = sum(times.values())
    return milliseconds, {name: times[name] / total for name in sorted(times, key=times.__getitem__, reverse=True)}


def grouped(times: Mapping[str, float]) -> Counter[str]:
    """Times of the groups. Args: time that each operator takes itself, by name."""
    sums: Counter[str] = Counter(dict.fromkeys((*GROUPS, PYTHON), 0))
    for name, value in times.items():
        sums[group_of(name)] += value
    return sums


def group_of(name: str) -> str:
    """The group of an operator. Args: its name in a profile."""
    if not name.startswith("aten::"):  # this block itself, nodes of autograd, hooks: what they do is an operator's
        return PYTHON
    name = " " + name.removeprefix("aten::")
    return next(group for group, words in GROUPS.items() if any(word in name for word in words))


if __name__ == "__main__":
    main()
