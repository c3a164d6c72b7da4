"""
Training targets per second and seconds per epoch, against a baseline that does the same without our care.

    python scripts/evidence/benchmark_training.py PREPARED --output training_speed.json
    python scripts/evidence/benchmark_training.py PREPARED --models parallel --output parallel_training_speed.json

The baseline of Latte is a stock T5 that is fed one example per prefix, padded to the longest history. That of RPG and
ACERec is RPG in separate operations on transformers' GPT-2, fed padded batches of rows in random order. All variants
run in one process, in turns, on the lengths of a prepared data set with random semantic IDs, with dropout and position
bias on; a turn is a number of optimizer steps of about the same number of targets. The table shows medians over the
turns after a warm-up, and ratios to the baseline in float32 and in the same precision. The file also holds a profile
of one step of each: the share of its time that every operation takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2Model, T5ForConditionalGeneration
from transformers.utils import ModelOutput

from hf_genrec import LatteConfig, LatteForConditionalGeneration, PreparedDataset
from hf_genrec.data.sequences import SequenceCollator, WindowDataset, training_dataset
from hf_genrec.modeling.configuration_acerec import ACERecConfig
from hf_genrec.modeling.configuration_genrec import GenRecConfig
from hf_genrec.modeling.configuration_rpg import RPGConfig
from hf_genrec.modeling.modeling_acerec import ACERecForItemGeneration
from hf_genrec.modeling.modeling_rpg import ParallelPreTrainedModel, RPGForItemGeneration
from hf_genrec.training.arguments import has_bfloat16
from hf_genrec.training.sampler import TargetBatchSampler
from hf_genrec.training.trainer import keep_freed_memory


BASELINE = "stock T5, padded"
PARALLEL_BASELINE = "plain RPG, padded"
Step = Callable[[], int]
Make = Callable[[PreparedDataset, int, str, int], Step]  # from targets per step, precision and number of latents


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(words)
    baseline, makers, batch_size = MODELS[arguments.models]
    arguments.batch_size = arguments.batch_size or batch_size
    torch.manual_seed(arguments.seed)
    keep_freed_memory()
    prepared = PreparedDataset.load(arguments.prepared)
    precisions = ["fp32", *(["bf16"] if has_bfloat16() else [])]
    variants = {
        f"{name} {precision}": make(prepared, arguments.batch_size, precision, arguments.latents)
        for name, make in makers.items()
        for precision in precisions
    }
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in tqdm(range(-arguments.warmup, arguments.turns), desc="Turns"):
        for name, step in variants.items():
            start = time.perf_counter()
            targets = sum(step() for _ in range(arguments.steps))
            if turn >= 0:
                speeds[name].append(targets / (time.perf_counter() - start))
    targets = sum(map(len, prepared.split("train")["history"]))  # of a row's items, each but the first is one
    report = summary(speeds, baseline, targets)
    report["profile"] = {name: profile_of(step) for name, step in tqdm(variants.items(), desc="Profiles")}
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    report["settings"] = settings | {"prepared": Path(arguments.prepared).name}
    report["machine"] = {
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print_table(report)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", help="folder that `hf-genrec prepare` wrote")
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--models", choices=MODELS, default="latte", help="which models (default latte)")
    parser.add_argument("--batch-size", type=int, help="targets per step (default 256; parallel 1536)")
    parser.add_argument("--latents", type=int, default=8, help="latent tokens (default 8)")
    parser.add_argument("--steps", type=int, default=4, help="steps per turn (default 4)")
    parser.add_argument("--turns", type=int, default=9, help="turns that count (default 9)")
    parser.add_argument("--warmup", type=int, default=4, help="turns that do not (default 4)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def build_model(prepared: PreparedDataset, latents: int, **options) -> LatteForConditionalGeneration:
    num_items = len(prepared.item_ids)
    model = LatteForConditionalGeneration(LatteConfig(num_items=num_items, num_latent_tokens=latents, **options))
    numbers = torch.randperm(256**3)[:num_items]
    model.set_catalog(torch.stack([numbers // 256**2, numbers // 256 % 256, numbers % 256], dim=1))
    return model.train()


def training_rows(prepared: PreparedDataset, config: GenRecConfig) -> WindowDataset:
    return training_dataset(
        prepared.split("train"),
        prepared.item_ids,
        first_item_token=config.first_item_token,
        history_attention=config.history_attention,
        max_history_length=config.max_history_length,
        stride=max(1, config.max_history_length // 2),
    )


def batches(prepared: PreparedDataset, model: torch.nn.Module, size: int) -> Iterator[dict]:
    """Batches of about `size` targets, epoch after epoch."""
    rows = training_rows(prepared, model.config)
    sampler = TargetBatchSampler(rows.lengths, rows.targets_per_row, targets_per_batch=size, seed=0)
    collate = SequenceCollator()
    while True:
        for batch in sampler:
            yield collate([rows[row] for row in batch])
        sampler.set_epoch(sampler.epoch + 1)


def counted(source: Iterator[dict]) -> Callable[[], tuple[dict, int]]:
    """What gives the next batch with the number of its targets."""

    def next_batch() -> tuple[dict, int]:
        batch = next(source)
        return batch, int((batch["labels"] != -100).sum())

    return next_batch


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


def ours(**options) -> Make:
    """A variant of Latte."""

    def make(prepared: PreparedDataset, size: int, precision: str, latents: int) -> Step:
        model = build_model(prepared, latents, **options)
        return training_step(model, precision, counted(batches(prepared, model, size)))

    return make


def build_parallel(
    prepared: PreparedDataset, model_class: type[ParallelPreTrainedModel], config_class: type[RPGConfig]
) -> ParallelPreTrainedModel:
    config = config_class(num_items=len(prepared.item_ids))
    model = model_class(config)
    model.set_catalog(torch.randint(config.codebook_size, (config.num_items, config.num_levels)))
    if isinstance(model, ACERecForItemGeneration):
        model.set_item_counts(torch.randint(1, 100, (config.num_items,)))
    return model.train()


def our_parallel(model_class: type[ParallelPreTrainedModel], config_class: type[RPGConfig]) -> Make:
    """RPG or ACERec; they have no latents."""

    def make(prepared: PreparedDataset, size: int, precision: str, latents: int) -> Step:
        model = build_parallel(prepared, model_class, config_class)
        return training_step(model, precision, counted(batches(prepared, model, size)))

    return make


class PlainRPG(torch.nn.Module):
    """RPG as one would write it down: padded rows, transformers' GPT-2, and a tensor for each step of the loss."""

    def __init__(self, ours: RPGForItemGeneration):
        super().__init__()
        self.config = config = ours.config
        items = torch.arange(config.num_items) + config.first_item_token
        self.register_buffer("item_tokens", ours.semantic_id_tokens(items))
        self.table, self.heads = ours.token_embeddings, ours.heads
        shape = {"n_positions": config.max_history_length, "n_embd": config.d_model, "n_layer": config.num_layers}
        shape |= {"n_head": config.num_heads, "n_inner": config.d_ff, "layer_norm_epsilon": config.layer_norm_epsilon}
        dropout = {"embd_pdrop": config.embedding_dropout, "attn_pdrop": config.attention_dropout, "resid_pdrop": 0.0}
        self.encoder = GPT2Model(GPT2Config(vocab_size=1, bos_token_id=None, eos_token_id=None, **shape, **dropout))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> ModelOutput:
        config = self.config
        items = (input_ids - config.first_item_token).clamp_min(0)
        vectors = self.table(self.item_tokens[items]).mean(2)
        states = self.encoder(inputs_embeds=vectors, attention_mask=attention_mask).last_hidden_state
        is_target = labels != -100
        states = states[is_target]
        inner = torch.einsum("nd,led->nle", states, self.heads.weight) + self.heads.bias
        outputs = states.unsqueeze(1) + torch.nn.functional.silu(inner)
        rows = self.table.weight[config.first_code_token :].view(config.num_levels, config.codebook_size, -1)
        units, rows = (torch.nn.functional.normalize(vectors, dim=-1) for vectors in (outputs, rows))
        logits = torch.einsum("nld,lkd->nlk", units, rows) / config.temperature
        first_tokens = config.first_code_token + config.codebook_size * torch.arange(config.num_levels)
        codes = self.item_tokens[labels[is_target] - config.first_item_token] - first_tokens
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), codes.flatten())
        return ModelOutput(loss=loss)


def plain_parallel(prepared: PreparedDataset, size: int, precision: str, latents: int) -> Step:
    """[`PlainRPG`] on padded batches of rows in random order, of `size` targets on average."""
    model = PlainRPG(build_parallel(prepared, RPGForItemGeneration, RPGConfig)).train()
    rows = training_rows(prepared, model.config)
    rows_per_batch = max(1, round(size * len(rows) / sum(rows.targets_per_row)))
    loader = DataLoader(rows, rows_per_batch, shuffle=True, collate_fn=SequenceCollator())
    return training_step(model, precision, counted(itertools.chain.from_iterable(itertools.repeat(loader))))


VARIANTS = {
    BASELINE: stock,
    "bidirectional, paper's shape": ours(history_attention="bidirectional"),
    "causal, paper's shape": ours(history_attention="causal"),
    "causal, default shape": ours(
        **{name: value for name, value in LatteConfig.default_shape.items() if name != "num_latent_tokens"}
    ),
}


PARALLEL_VARIANTS = {
    PARALLEL_BASELINE: plain_parallel,
    "RPG": our_parallel(RPGForItemGeneration, RPGConfig),
    "ACERec": our_parallel(ACERecForItemGeneration, ACERecConfig),
}
MODELS = {  # the baseline, the variants with it, and targets per step
    "latte": (BASELINE, VARIANTS, 256),
    "parallel": (PARALLEL_BASELINE, PARALLEL_VARIANTS, 1536),
}


def summary(speeds: dict[str, list[float]], baseline: str, targets_per_epoch: int) -> dict:
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "targets_per_second": {name: round(value, 1) for name, value in medians.items()},
        "targets_per_epoch": targets_per_epoch,
        "seconds_per_epoch": {name: round(targets_per_epoch / value, 1) for name, value in medians.items()},
        "ratio_to_stock_fp32": {
            name: round(value / medians[f"{baseline} fp32"], 2) for name, value in medians.items()
        },
        "ratio_to_stock_same_precision": {
            name: round(value / medians[f"{baseline} {name.rsplit(' ', 1)[1]}"], 2) for name, value in medians.items()
        },
        "all_turns": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
    }


def profile_of(step: Step) -> dict[str, float]:
    """Share of the time of one step that each operation takes itself, largest first, down to one percent."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(times.values())
    shares = {name: round(value / max(total, 1), 3) for name, value in times.items()}
    return {name: share for name, share in sorted(shares.items(), key=lambda item: -item[1]) if share >= 0.01}


def print_table(report: dict) -> None:
    columns = ("variant", "targets/s", "s per epoch", "x baseline fp32", "x baseline, same precision")
    table = Table(*columns, title="Training speed")
    for name, value in report["targets_per_second"].items():
        ratios = [report[key][name] for key in ("ratio_to_stock_fp32", "ratio_to_stock_same_precision")]
        seconds = report["seconds_per_epoch"][name]
        table.add_row(name, f"{value:,.0f}", f"{seconds:,.1f}", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)


if __name__ == "__main__":
    main()
