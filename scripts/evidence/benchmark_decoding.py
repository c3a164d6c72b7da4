"""
Time and memory of decoding: stock T5 with a dictionary trie, our `generate()` and our `recommend()`, in one run.

    python scripts/evidence/benchmark_decoding.py
    python scripts/evidence/benchmark_decoding.py --parts grid --latents 0 8 --output decoding_speed.json
    python scripts/evidence/benchmark_decoding.py --quick

Random weights of the paper's shape, the same in all three; 25,000 random items, histories of 20 items, no end token
anywhere. The repetitions of a cell are interleaved, at least 3 and for about 10 seconds; figures are medians. The call
before them warms up and is checked: all three must return the same best items with the same scores.

    grid      users x beams: milliseconds per user and ratios to stock
    catalog   `recommend()` by the number of items
    history   `recommend()` by the length of the histories
    memory    growth of the peak memory during one call, each in a fresh process

A part replaces its own figures in the JSON file, cell by cell, and leaves those of the other parts; with `--resume` it
goes on behind the cells that a run which was stopped has left there. The plot stands beside it. What exact scores and
the item graph take is measured by `benchmark_parallel.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import T5ForConditionalGeneration

from hf_genrec import LatteConfig, LatteForConditionalGeneration
from hf_genrec.files import write_json
from line_plots import Panel, plot_lines


BASELINE = "stock"
TOLERANCE = 1e-4  # scores that differ by less are equal, items with such scores are ties
DEFAULT_OUTPUT = Path("scripts/evidence/records/decoding_speed.json")
MAX_TURNS = 30
Rows = Iterator[dict]  # one for each cell, as soon as it is measured


@dataclass(frozen=True)
class Sizes:
    """How much of everything is measured."""

    shape: dict[str, int] = field(default_factory=dict)  # fields of the config; none: the paper's
    num_items: int = 25_000
    history_length: int = 20
    users: tuple[int, ...] = (1, 16, 64)
    beams: tuple[int, ...] = (10, 50, 200, 500)
    max_stock_rows: int = 16 * 500
    catalog_sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    history_lengths: tuple[int, ...] = (5, 20, 50)
    usual: tuple[int, int] = (16, 50)  # users and beams where something else varies
    memory_cells: tuple[tuple[int, int], ...] = ((16, 50), (16, 500), (64, 50), (64, 500))
    seconds: float = 10.0
    min_turns: int = 3


QUICK = Sizes(
    shape={"codebook_size": 16, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2},
    num_items=700,
    history_length=5,
    users=(1, 3),
    beams=(10, 24),
    max_stock_rows=40,
    catalog_sizes=(500, 900),
    history_lengths=(2, 7),
    usual=(2, 10),
    memory_cells=((2, 10),),
    seconds=0.0,
    min_turns=1,
)


@dataclass(frozen=True)
class Lists:
    """Item tokens and scores of the best items, both `(num_users, top_k)`; `-inf` where a list is short."""

    items: torch.Tensor
    scores: torch.Tensor


def main() -> None:
    arguments = parse_arguments()
    sizes = QUICK if arguments.quick else Sizes()
    device = torch.device(arguments.device)
    if arguments.cell:
        variant, users, beams = arguments.cell[0], int(arguments.cell[1]), int(arguments.cell[2])
        print(json.dumps(peak_growth(variant, users, beams, sizes, device, arguments.latents[0], arguments.seed)))
        return
    output = arguments.output or (None if arguments.quick else DEFAULT_OUTPUT)
    report = json.loads(output.read_text(encoding="utf-8")) if output and output.exists() else {}
    console = Console()
    for part in arguments.parts:
        begin = machine(device)  # the load before the part: what else the machine was doing
        found = {"machine": begin, "sizes": json.loads(json.dumps(vars(sizes))), "seed": arguments.seed}
        found |= {"latents": arguments.latents, "rows": []}
        if arguments.resume and part in report and is_of_the_same_run(report[part], found):
            found = report[part]
        report[part] = found
        for row in PARTS[part](sizes, device, arguments.latents, arguments.seed, found["rows"]):
            found["rows"].append(row)
            if output:
                write_json(report, output)
        console.print(table_of(part, found["rows"]))
    if output and "grid" in report:
        draw(report["grid"]["rows"], output.with_suffix(".png"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="default: all")
    parser.add_argument(
        "--latents", type=int, nargs="+", default=[0], help="latent tokens (default 0); all for the grid, first else"
    )
    parser.add_argument("--resume", action="store_true", help="keep the cells that OUTPUT has of the same settings")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one turn: shows that everything runs")
    parser.add_argument("--output", type=Path, help=f"JSON file (default {DEFAULT_OUTPUT}; none with --quick)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cell", nargs=3, metavar=("VARIANT", "USERS", "BEAMS"), help=argparse.SUPPRESS)
    return parser.parse_args()


def machine(device: torch.device) -> dict:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def is_of_the_same_run(old: dict, new: dict) -> bool:
    """Whether two parts have the same settings and machine, whatever else that was doing."""
    machines = [part["machine"] | {"load_average": None} for part in (old, new)]
    return machines[0] == machines[1] and all(old.get(name) == new[name] for name in ("sizes", "seed", "latents"))


def has_cell(rows: list[dict], facts: dict) -> bool:
    return any(facts.items() <= row.items() for row in rows)


# --- what is compared ------------------------------------------------------------------------------------------------


def build_model(
    num_items: int, latents: int, sizes: Sizes, device: torch.device, seed: int
) -> LatteForConditionalGeneration:
    """Random weights over random distinct ids."""
    torch.manual_seed(seed)
    config = LatteConfig(num_items=num_items, num_latent_tokens=latents, **sizes.shape)
    model = LatteForConditionalGeneration(config)
    size = config.codebook_size
    numbers = torch.randperm(size**3)[:num_items]
    model.set_catalog(torch.stack([numbers // size**2, numbers // size % size, numbers % size], dim=1))
    return model.to(device).eval()


def random_histories(model: LatteForConditionalGeneration, num_users: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(model.config.num_items, (num_users, length), generator=generator)
    return (items + model.config.first_item_token).to(model.device)


def stock_model(model: LatteForConditionalGeneration) -> T5ForConditionalGeneration:
    """transformers' own T5 with the weights of our model; like ours it knows no end token."""
    stock = T5ForConditionalGeneration(model.config.to_t5_config())
    known = stock.state_dict()  # ours holds the catalog, too
    stock.load_state_dict({name: value for name, value in model.state_dict().items() if name in known})
    return stock.to(model.device).eval()


def dictionary_trie(model: LatteForConditionalGeneration) -> Callable[[int, torch.Tensor], list[int]]:
    """`prefix_allowed_tokens_fn` as it is usually written: a dictionary from prefixes to tokens that may follow."""
    config = model.config
    first_items = torch.arange(config.num_items, device=model.device) + config.first_item_token
    children: dict[tuple[int, ...], set[int]] = {}
    for tokens in model.semantic_id_tokens(first_items).tolist():
        for length, token in enumerate(tokens):
            children.setdefault(tuple(tokens[:length]), set()).add(token)
    allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}
    latents = list(range(config.first_latent_token, config.first_code_token))
    num_before = 2 if latents else 1  # the start token, and the latent

    def allowed_tokens(_: int, sentence: torch.Tensor) -> list[int]:
        written = sentence.tolist()
        if len(written) < num_before:
            return latents
        # a beam without a legal continuation is dead, but the processor does not take an empty list
        return allowed.get(tuple(written[num_before:]), [config.pad_token_id])

    return allowed_tokens


def make_variants(
    model: LatteForConditionalGeneration, histories: torch.Tensor, num_beams: int, names: Iterable[str]
) -> dict[str, Callable[[], Lists]]:
    """The three ways to decode the same histories. Stock gets its tokens ready made; ours start from item tokens."""
    config = model.config
    top_k = min(10, num_beams)
    options = {
        "num_beams": num_beams,
        # several latents may lead to one item, so all beams are looked at
        "num_return_sequences": num_beams if config.num_latent_tokens else top_k,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_scores": True,  # otherwise transformers does not tell the scores of the beams
    }
    tokens, mask = model.history_tokens(histories)

    def stock() -> Callable[[], Lists]:
        t5, allowed_tokens = stock_model(model), dictionary_trie(model)
        length = {"max_new_tokens": config.num_decoding_steps, "length_penalty": 0.0}

        def call() -> Lists:
            output = t5.generate(
                tokens, attention_mask=mask.long(), prefix_allowed_tokens_fn=allowed_tokens, **length, **options
            )
            return lists_of_sequences(model, output.sequences, output.sequences_scores, len(histories), top_k)

        return call

    def generate() -> Lists:
        output = model.generate(histories, **options)
        return lists_of_sequences(model, output.sequences, output.sequences_scores, len(histories), top_k)

    def recommend() -> Lists:
        output = model.recommend(histories, top_k=top_k, num_beams=num_beams)
        return Lists(output.item_tokens, output.scores)

    makers = {BASELINE: stock, "generate": lambda: generate, "recommend": lambda: recommend}
    return {name: makers[name]() for name in names}


def lists_of_sequences(
    model: LatteForConditionalGeneration, sequences: torch.Tensor, scores: torch.Tensor, num_users: int, top_k: int
) -> Lists:
    """Beams of `generate()` as distinct items, each with the score of its best beam."""
    config = model.config
    levels = torch.arange(config.num_levels, device=sequences.device) * config.codebook_size
    codes = sequences[:, -config.num_levels :] - config.first_code_token - levels
    items = model.catalog.item_of(codes).view(num_users, -1)
    scores = scores.view(num_users, -1).float()
    repeats = (items.unsqueeze(2) == items.unsqueeze(1)).tril(-1).any(2)
    best, order = scores.masked_fill(repeats | (items < 0), -float("inf")).topk(top_k)
    return Lists(items.gather(1, order) + config.first_item_token, best)


# --- how it is compared ----------------------------------------------------------------------------------------------


def same_lists(first: Lists, second: Lists, *, tolerance: float = TOLERANCE) -> tuple[bool, float]:
    """
    Whether two results are the same but for ties, over the users whose lists are full in both, and the largest
    difference of their scores. At a place where the items differ, the first one must stand among items of the second
    with the same score, or tie with the last score, where the second list may end before it.
    """
    full = (first.scores > -float("inf")).all(1) & (second.scores > -float("inf")).all(1)
    if not bool(full.any()):
        return False, float("inf")  # nothing to compare is no agreement
    items, scores = first.items[full], first.scores[full]
    other_items, other_scores = second.items[full], second.scores[full]
    difference = float((scores - other_scores).abs().max())
    is_close = (scores.unsqueeze(2) - other_scores.unsqueeze(1)).abs() <= tolerance
    is_found = ((items.unsqueeze(2) == other_items.unsqueeze(1)) & is_close).any(2)
    is_last_tie = (scores - scores[:, -1:]).abs() <= tolerance
    return difference <= tolerance and bool((is_found | is_last_tie).all()), difference


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """A GPU has ended what came before when the clock starts, and the call when it stops."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def time_in_turns(
    calls: dict[str, Callable[[], object]], sizes: Sizes, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call, turn after turn, until there are enough turns and enough seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    turns = 0
    while turns < sizes.min_turns or (turns < MAX_TURNS and sum(map(sum, seconds.values())) < sizes.seconds):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call, device))
        turns += 1
    return seconds


def timing(seconds: list[float], num_users: int) -> dict:
    """What the report says about one variant in one cell."""
    median = statistics.median(seconds)
    return {
        "milliseconds": round(1000 * median, 2),
        "milliseconds_per_user": round(1000 * median / num_users, 3),
        "turns": len(seconds),
        "fastest_and_slowest": [round(1000 * value, 2) for value in (min(seconds), max(seconds))],
    }


# --- the parts -------------------------------------------------------------------------------------------------------


def measure_grid(sizes: Sizes, device: torch.device, latents: list[int], seed: int, done: list[dict]) -> Rows:
    cells = [(number, users, beams) for number in latents for users in sizes.users for beams in sizes.beams]
    models = {number: build_model(sizes.num_items, number, sizes, device, seed) for number in latents}
    for number, num_users, num_beams in tqdm(cells, desc="Users x beams"):
        facts = {"num_latent_tokens": number, "num_users": num_users, "num_beams": num_beams}
        if has_cell(done, facts):
            continue
        model = models[number]
        histories = random_histories(model, num_users, sizes.history_length, seed)
        has_stock = num_users * num_beams <= sizes.max_stock_rows
        names = [*([BASELINE] if has_stock else []), "generate", "recommend"]
        calls = make_variants(model, histories, num_beams, names)
        lists = {name: call() for name, call in calls.items()}  # warms up, too
        checks = {name: same_lists(lists[names[0]], lists[name]) for name in names[1:]}
        seconds = time_in_turns(calls, sizes, device)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        row = facts | {
            "variants": {name: timing(values, num_users) for name, values in seconds.items()},
            "ratio_to_stock": {name: round(medians[BASELINE] / medians[name], 2) for name in names[1:] if has_stock},
            "compared_with": names[0],
            "same_items": {name: is_same for name, (is_same, _) in checks.items()},
            "largest_score_difference": {name: difference for name, (_, difference) in checks.items()},
        }
        if not has_stock:
            row["without_stock"] = why_without_stock(model, num_users * num_beams, sizes)
        yield row


def why_without_stock(model: LatteForConditionalGeneration, num_rows: int, sizes: Sizes) -> str:
    config = model.config
    num_tokens = 2 + config.num_levels * sizes.history_length
    values = num_rows * num_tokens * 2 * config.num_decoder_layers * config.num_heads * config.d_kv
    return (
        f"{num_rows} rows are more than {sizes.max_stock_rows}: the cross-attention cache of stock, with a copy of "
        f"the history per beam, would take {4 * values / 1e9:.1f} GB"
    )


def measure_catalogs(sizes: Sizes, device: torch.device, latents: list[int], seed: int, done: list[dict]) -> Rows:
    users, beams = sizes.usual
    calls, missing = {}, [size for size in sizes.catalog_sizes if not has_cell(done, {"num_items": size})]
    for num_items in tqdm(missing, desc="Catalogs"):
        model = build_model(num_items, latents[0], sizes, device, seed)
        histories = random_histories(model, users, sizes.history_length, seed)
        calls[str(num_items)] = make_variants(model, histories, beams, ["recommend"])["recommend"]
        calls[str(num_items)]()
    seconds = time_in_turns(calls, sizes, device) if calls else {}
    for num_items in missing:
        facts = {
            "num_items": num_items,
            "num_users": users,
            "num_beams": beams,
            "history_length": sizes.history_length,
        }
        yield facts | {"variants": {"recommend": timing(seconds[str(num_items)], users)}}


def measure_histories(sizes: Sizes, device: torch.device, latents: list[int], seed: int, done: list[dict]) -> Rows:
    users, beams = sizes.usual
    model = build_model(sizes.num_items, latents[0], sizes, device, seed)
    for length in tqdm(sizes.history_lengths, desc="Histories"):
        facts = {"num_items": sizes.num_items, "num_users": users, "num_beams": beams, "history_length": length}
        if has_cell(done, facts):
            continue
        calls = make_variants(model, random_histories(model, users, length, seed), beams, VARIANTS)
        for call in calls.values():
            call()
        seconds = time_in_turns(calls, sizes, device)
        yield facts | {"variants": {name: timing(values, users) for name, values in seconds.items()}}


def measure_memory(sizes: Sizes, device: torch.device, latents: list[int], seed: int, done: list[dict]) -> Rows:
    """Each cell in a process of its own: freed memory of an earlier call would hide what a later one needs."""
    cells = [(name, users, beams) for users, beams in sizes.memory_cells for name in VARIANTS]
    for name, users, beams in tqdm(cells, desc="Memory"):
        facts = {"variant": name, "num_users": users, "num_beams": beams}
        if has_cell(done, facts) or (name == BASELINE and users * beams > sizes.max_stock_rows):
            continue
        command = [sys.executable, __file__, "--cell", name, str(users), str(beams), "--device", str(device)]
        command += ["--latents", str(latents[0]), "--seed", str(seed), *(["--quick"] if sizes == QUICK else [])]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        yield facts | json.loads(output.splitlines()[-1])


def peak_growth(
    variant: str, num_users: int, num_beams: int, sizes: Sizes, device: torch.device, latents: int, seed: int
) -> dict:
    """How far one call raises the peak of this process above what it held before, in MB."""
    model = build_model(sizes.num_items, latents, sizes, device, seed)
    smallest = random_histories(model, 1, sizes.history_length, seed)
    make_variants(model, smallest, 2, [variant])[variant]()  # what is loaded once is not the call's
    histories = random_histories(model, num_users, sizes.history_length, seed)
    call = make_variants(model, histories, num_beams, [variant])[variant]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        peak = torch.cuda.max_memory_allocated(device)
    else:
        before = forget_peak()
        call()
        peak = memory_status()["VmHWM"]
    return {"peak_growth_mb": round((peak - before) / 1e6, 1)}


def memory_status() -> dict[str, int]:
    """Bytes that Linux reports for this process: `VmRSS`, now, and `VmHWM`, the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = [line.split() for line in lines if line.startswith(("VmRSS", "VmHWM"))]
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in fields}


def forget_peak() -> int:
    """Start a new peak from the memory in use, and return that."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return memory_status()["VmRSS"]


PARTS: dict[str, Callable[[Sizes, torch.device, list[int], int, list[dict]], Rows]] = {
    "grid": measure_grid,
    "catalog": measure_catalogs,
    "history": measure_histories,
    "memory": measure_memory,
}
VARIANTS = (BASELINE, "generate", "recommend")


# --- what is shown ---------------------------------------------------------------------------------------------------


def table_of(part: str, rows: list[dict]) -> Table:
    if part == "memory":
        table = Table("variant", "users", "beams", "peak growth, MB", title="Memory of one call")
        for row in rows:
            table.add_row(row["variant"], *(f"{row[name]:,}" for name in ("num_users", "num_beams", "peak_growth_mb")))
        return table
    facts = [name for name in FACTS if name in rows[0]]
    names = [name for name in VARIANTS if any(name in row["variants"] for row in rows)]
    ratios = names[1:] if part == "grid" else []
    checked = ["same"] if part == "grid" else []
    columns = [FACTS[name] for name in facts] + [f"{name}, ms" for name in names] + [f"{name}, x" for name in ratios]
    table = Table(
        *columns, *checked, title=f"Decoding, {part}: milliseconds per user" + ", times stock" * bool(ratios)
    )
    for row in rows:
        times = [row["variants"].get(name, {}).get("milliseconds_per_user") for name in names]
        cells = [*(f"{row[name]:,}" for name in facts), *("" if time is None else f"{time:.2f}" for time in times)]
        cells += [f"{row['ratio_to_stock'][name]:.1f}" if row["ratio_to_stock"] else "" for name in ratios]
        cells += ["yes" if all(row["same_items"].values()) else "NO" for _ in checked]
        table.add_row(*cells)
    return table


FACTS = {
    "num_latent_tokens": "latents", "num_items": "items", "history_length": "history", "num_users": "users",
    "num_beams": "beams",
}  # fmt: skip


def draw(rows: list[dict], path: Path) -> None:
    """Milliseconds per user by beams: a panel per number of users, a line per variant (without latents, if both)."""
    latents = min(row["num_latent_tokens"] for row in rows)
    panels = []
    for users in dict.fromkeys(row["num_users"] for row in rows):
        lines = {
            name: [
                (row["num_beams"], row["variants"][name]["milliseconds_per_user"])
                for row in rows
                if row["num_users"] == users and row["num_latent_tokens"] == latents and name in row["variants"]
            ]
            for name in VARIANTS
        }
        panels.append(Panel(f"{users} user{'s' if users > 1 else ''}", lines))
    plot_lines(panels, path, x_label="beams", y_label="milliseconds per user", log_x=True, log_y=True)


if __name__ == "__main__":
    main()
