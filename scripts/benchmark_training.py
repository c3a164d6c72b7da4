"""
Training targets per second, against a stock T5 that is fed one example per prefix, padded to the longest history.

    python scripts/benchmark_training.py PREPARED --output training_speed.json

All variants run in one process, in turns, on the lengths of a prepared data set with random semantic IDs, with
dropout and position bias on; a turn is a number of optimizer steps of about the same number of targets. The table
shows medians over the turns after a warm-up, and ratios to the stock model in float32 and in the same precision.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import T5ForConditionalGeneration

from hf_genrec import LatteConfig, LatteForConditionalGeneration, PreparedDataset
from hf_genrec.recipes import QUICK_SHAPE
from hf_genrec.sequences import SequenceCollator, training_dataset
from hf_genrec.training import TargetBatchSampler, has_bfloat16, keep_freed_memory


BASELINE = "stock T5, padded"
Step = Callable[[], int]


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    keep_freed_memory()
    prepared = PreparedDataset.load(arguments.prepared)
    precisions = ["fp32", *(["bf16"] if has_bfloat16() else [])]
    variants = {
        f"{name} {precision}": make(prepared, arguments.batch_size, precision, arguments.latents)
        for name, make in VARIANTS.items()
        for precision in precisions
    }
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in tqdm(range(-arguments.warmup, arguments.turns), desc="Turns"):
        for name, step in variants.items():
            start = time.perf_counter()
            targets = sum(step() for _ in range(arguments.steps))
            if turn >= 0:
                speeds[name].append(targets / (time.perf_counter() - start))
    report = summary(speeds) | {"settings": vars(arguments) | {"prepared": Path(arguments.prepared).name}}
    report["machine"] = {
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print_table(report)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", help="folder that `hf-genrec prepare` wrote")
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--batch-size", type=int, default=256, help="targets per step (default 256)")
    parser.add_argument("--latents", type=int, default=8, help="latent tokens (default 8)")
    parser.add_argument("--steps", type=int, default=4, help="steps per turn (default 4)")
    parser.add_argument("--turns", type=int, default=9, help="turns that count (default 9)")
    parser.add_argument("--warmup", type=int, default=4, help="turns that do not (default 4)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def build_model(prepared: PreparedDataset, latents: int, **options) -> LatteForConditionalGeneration:
    num_items = len(prepared.item_ids)
    model = LatteForConditionalGeneration(LatteConfig(num_items=num_items, num_latent_tokens=latents, **options))
    numbers = torch.randperm(256**3)[:num_items]
    model.set_catalog(torch.stack([numbers // 256**2, numbers // 256 % 256, numbers % 256], dim=1))
    return model.train()


def batches(prepared: PreparedDataset, model: LatteForConditionalGeneration, size: int) -> Iterator[dict]:
    """Batches of about `size` targets, epoch after epoch."""
    rows = training_dataset(
        prepared.split("train"),
        prepared.item_ids,
        first_item_token=model.config.first_item_token,
        history_attention=model.config.history_attention,
    )
    sampler = TargetBatchSampler(rows.lengths, rows.targets_per_row, targets_per_batch=size, seed=0)
    collate = SequenceCollator()
    while True:
        for batch in sampler:
            yield collate([rows[row] for row in batch])
        sampler.set_epoch(sampler.epoch + 1)


def training_step(model: torch.nn.Module, precision: str, next_batch: Callable[[], tuple[dict, int]]) -> Step:
    """One optimizer step; returns the number of targets it trained."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> int:
        batch, num_targets = next_batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return num_targets

    return step


def stock(prepared: PreparedDataset, size: int, precision: str, latents: int) -> Step:
    """transformers' own T5 of the paper's shape: `size` prefixes a step, padded to the longest history."""
    ours = build_model(prepared, latents)  # tokens and shape
    model = T5ForConditionalGeneration(ours.config.to_t5_config()).train()
    longest = 2 + ours.config.num_levels * ours.config.max_history_length
    source = batches(prepared, ours, size)

    def next_batch() -> tuple[dict, int]:
        batch = next(source)
        tokens, mask = ours.history_tokens(batch["input_ids"], batch["attention_mask"])
        missing = longest - tokens.shape[1]
        codes = ours.semantic_id_tokens(batch["labels"].amax(dim=1))
        if latents:
            drawn = torch.randint(latents, (len(codes), 1)) + ours.config.first_latent_token
            codes = torch.cat([drawn, codes], dim=1)
        padded = {
            "input_ids": torch.nn.functional.pad(tokens, (0, missing)),
            "attention_mask": torch.nn.functional.pad(mask.long(), (0, missing)),
        }
        return padded | {"labels": codes}, len(codes)

    return training_step(model, precision, next_batch)


def ours(**options) -> Callable[[PreparedDataset, int, str, int], Step]:
    """A variant of our model."""

    def make(prepared: PreparedDataset, size: int, precision: str, latents: int) -> Step:
        model = build_model(prepared, latents, **options)
        source = batches(prepared, model, size)

        def next_batch() -> tuple[dict, int]:
            batch = next(source)
            return batch, int((batch["labels"] != -100).sum())

        return training_step(model, precision, next_batch)

    return make


VARIANTS = {
    BASELINE: stock,
    "bidirectional, paper's shape": ours(history_attention="bidirectional"),
    "causal, paper's shape": ours(history_attention="causal"),
    "causal, default shape": ours(
        **{name: value for name, value in QUICK_SHAPE.items() if name != "num_latent_tokens"}
    ),
}


def summary(speeds: dict[str, list[float]]) -> dict:
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "targets_per_second": {name: round(value, 1) for name, value in medians.items()},
        "ratio_to_stock_fp32": {
            name: round(value / medians[f"{BASELINE} fp32"], 2) for name, value in medians.items()
        },
        "ratio_to_stock_same_precision": {
            name: round(value / medians[f"{BASELINE} {name.rsplit(' ', 1)[1]}"], 2) for name, value in medians.items()
        },
        "all_turns": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
    }


def print_table(report: dict) -> None:
    table = Table("variant", "targets/s", "x stock fp32", "x stock, same precision", title="Training speed")
    for name, value in report["targets_per_second"].items():
        ratios = [report[key][name] for key in ("ratio_to_stock_fp32", "ratio_to_stock_same_precision")]
        table.add_row(name, f"{value:,.0f}", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)


if __name__ == "__main__":
    main()
