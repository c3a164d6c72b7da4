"""
What a list costs as the catalog grows: models that write codes by beams, that score codes, and that score items.

    OMP_NUM_THREADS=1 python scripts/evidence/benchmark_pools.py
    OMP_NUM_THREADS=1 python scripts/evidence/benchmark_pools.py --items 20000 500000 --models SASRec VQ-Rec
    python scripts/evidence/benchmark_pools.py --quick

Weights and codes are random, shapes are those that `hf-genrec train` takes for each architecture. Each cell has a
process of its own. Milliseconds are CPU time per user, the median of `--turns` calls for one batch of users after a
first call; `weights` are parameters and codes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from benchmark_decoding import machine
from hf_genrec import (
    LatteConfig,
    LatteForConditionalGeneration,
    RPGConfig,
    RPGForItemGeneration,
    SASRecConfig,
    SASRecForItemGeneration,
    VQRecConfig,
    VQRecForItemGeneration,
)
from hf_genrec.files import write_json
from line_plots import Panel, plot_lines


OUTPUT = Path("scripts/evidence/records/pool_speed.json")
TOP_K, HISTORY, CODEBOOK = 10, 20, 256
TITLES = {"milliseconds_per_user": "CPU milliseconds per user", "weights_mb": "MB of weights and codes"}


def psid(num_items: int) -> Any:
    config = LatteConfig(
        num_items=num_items, num_levels=4, codebook_size=CODEBOOK, num_latent_tokens=0, history_attention="causal"
    )
    return LatteForConditionalGeneration(config)


def rpg(num_items: int) -> Any:
    return RPGForItemGeneration(RPGConfig(num_items=num_items, num_levels=32, codebook_size=CODEBOOK))


def vqrec(num_items: int) -> Any:
    shape = VQRecConfig.default_shape
    return VQRecForItemGeneration(VQRecConfig(num_items=num_items, num_levels=32, codebook_size=CODEBOOK, **shape))


def sasrec(num_items: int) -> Any:
    return SASRecForItemGeneration(SASRecConfig(num_items=num_items, **SASRecConfig.default_shape))


MODELS: dict[str, Callable[[int], Any]] = {
    "PSID, 50 beams": psid,
    "RPG, exact": rpg,
    "VQ-Rec": vqrec,
    "SASRec": sasrec,
}


def main() -> None:
    arguments = parse_arguments()
    cells = [(name, number) for name in arguments.models for number in arguments.items]
    # a process that is not forked begins without the memory of others
    alone = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=alone, max_tasks_per_child=1) as pool:
        running = (pool.submit(measure, *cell, arguments.users, arguments.turns).result() for cell in cells)
        rows = list(tqdm(running, total=len(cells), desc="Models x items"))
    Console().print(table_of(rows))
    if arguments.output:
        write_json({"machine": machine(torch.device("cpu")), "users": arguments.users, "rows": rows}, arguments.output)
        draw(rows, arguments.output.with_suffix(".png"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000]
    parser.add_argument("--items", type=int, nargs="+", default=sizes, help="sizes of the catalog (default six)")
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS], help="default: all")
    parser.add_argument("--users", type=int, default=64, help="users of a batch (default 64)")
    parser.add_argument("--turns", type=int, default=5, help="timed calls (default 5)")
    parser.add_argument("--output", type=Path, help=f"JSON file (default {OUTPUT}; none with --quick)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.items, arguments.users, arguments.turns = [150, 300], 3, 1
    else:
        arguments.output = arguments.output or OUTPUT
    return arguments


def measure(name: str, num_items: int, num_users: int, turns: int) -> dict[str, Any]:
    """One model with a catalog of random ids that differ."""
    torch.manual_seed(0)
    model = MODELS[name](num_items).eval()
    if model.config.has_codes:
        model.set_catalog(distinct_codes(num_items, model.config.num_levels))
    first = model.config.first_item_token
    histories = torch.randint(first, first + num_items, (num_users, HISTORY))
    options = {"num_beams": 50} if "num_beams" in model.recommend_options else {}

    def call() -> float:
        begin = time.process_time()
        model.recommend(histories, top_k=TOP_K, **options)
        return time.process_time() - begin

    call()
    seconds = [call() for _ in range(turns)]
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    return {
        "model": name,
        "num_items": num_items,
        "milliseconds_per_user": round(1000 * statistics.median(seconds) / num_users, 3),
        "weights_mb": round(weights / 1e6, 1),
    }


def distinct_codes(num_items: int, num_levels: int) -> torch.Tensor:
    """Codes `(num_items, num_levels)`: the digits of numbers that differ, the first and last levels scattered."""
    numbers = torch.arange(num_items, dtype=torch.int64) * 2_654_435_761 % CODEBOOK**4  # odd: one to one
    digits = [numbers // CODEBOOK**level % CODEBOOK for level in range(4)]
    more = torch.randint(CODEBOOK, (num_items, num_levels - 4))
    return torch.cat([torch.stack(digits, 1), more], 1)


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table("model", "items", "CPU ms per user", "weights, MB", title="Lists as the catalog grows")
    for row in rows:
        numbers = (f"{row[name]:,}" for name in ("milliseconds_per_user", "weights_mb"))
        table.add_row(row["model"], f"{row['num_items']:,}", *numbers)
    return table


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time of a list and size of the weights by the number of items."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    panels = [
        Panel(title, {name: [(row["num_items"], row[key]) for row in rows if row["model"] == name] for name in names})
        for key, title in TITLES.items()
    ]
    plot_lines(panels, path, x_label="items", y_label="", log_x=True, log_y=True)


if __name__ == "__main__":
    main()
