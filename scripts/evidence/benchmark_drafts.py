"""
Lists by both heads of a trained run: drafted by the dense head and verified, against beams, in one run.

    python scripts/evidence/benchmark_drafts.py RUN PREPARED --dataset "Amazon 2014 Beauty"

Users of the validation split, seen items allowed, ten items, 50 beams. For each weight of the dense head: milliseconds
per user of both ways and of the generator's beams alone (medians of repetitions in turns), items that were verified,
and the share of users whose ten items are the same both ways. Where they differ the drafted list is the better one by
the sum of the scores, since it is the best of the whole catalog; this is checked.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmark_decoding import machine
from hf_genrec import PreparedDataset, Recommender
from hf_genrec.files import write_json
from sweep_beams import Users


OUTPUT = Path("scripts/evidence/records/draft_speed.json")
BEAMS, TOP_K = 50, 10


def main() -> None:
    arguments = parse_arguments()
    recommender = Recommender.from_pretrained(arguments.run)
    model = recommender.model
    users = Users(model, PreparedDataset.load(arguments.prepared), "validation")
    record: dict[str, Any] = {
        "dataset": arguments.dataset,
        "num_items": model.config.num_items,
        "own_weight": model.recommend_config.dense_weight,
        "num_users": arguments.users,
        "num_beams": BEAMS,
        "machine": machine(model.device),
        "rows": [],
    }
    who = users.sample(arguments.users)
    for size in arguments.sizes:
        batches = [users.tokens(who[start : start + size]) for start in range(0, len(who), size)]
        record["rows"] += [measure(model, batches, weight, arguments.turns) for weight in arguments.weights]
    write_json(record, arguments.output)
    Console().print(table_of(record))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with two heads")
    parser.add_argument("prepared", help="folder that `hf-genrec prepare` wrote")
    parser.add_argument("--dataset", required=True, help="name of the data set on the page")
    parser.add_argument("--weights", type=float, nargs="+", default=[1, 2, 4, 8], help="of the dense head")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16], help="users at a time")
    parser.add_argument("--users", type=int, default=64, help="a fixed sample (default 64)")
    parser.add_argument("--turns", type=int, default=5, help="repetitions (default 5)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file (default {OUTPUT})")
    return parser.parse_args()


def measure(model: Any, batches: list[torch.Tensor], weight: float, turns: int) -> dict[str, Any]:
    """One row: all batches by each way, in turns."""

    def way(**options: Any) -> Callable[[], list[Any]]:
        return lambda: [model.recommend(batch, top_k=TOP_K, num_beams=BEAMS, **options) for batch in batches]

    ways = {
        "drafted": way(dense_weight=weight, decoding="exact"),
        "beams": way(dense_weight=weight, decoding="beam"),
        "generator": way(dense_weight=0.0, decoding="beam"),
    }
    found = {name: call() for name, call in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, call in ways.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    num_users = sum(map(len, batches))
    scores = {name: torch.cat([output.scores for output in found[name]]) for name in ("drafted", "beams")}
    if not bool((scores["drafted"] >= scores["beams"] - 1e-3).all()):
        raise SystemExit(f"With the weight {weight:g} beams found a better item than the draft.")
    items = {name: torch.cat([output.item_tokens for output in found[name]]) for name in ("drafted", "beams")}
    return {
        "weight": weight,
        "users_at_a_time": len(batches[0]),
        "milliseconds_per_user": {
            name: 1000 * statistics.median(values) / num_users for name, values in seconds.items()
        },
        "num_verified": torch.cat([output.num_visited for output in found["drafted"]]).float().mean().item(),
        "same_lists": (items["drafted"] == items["beams"]).all(1).float().mean().item(),
    }


def table_of(record: dict[str, Any]) -> Table:
    table = Table(title=f"{record['dataset']}: milliseconds per user")
    for name in ("users", "weight", "drafted", "beams", "generator alone", "ratio", "verified", "same lists"):
        table.add_column(name, justify="right")
    for row in record["rows"]:
        times = row["milliseconds_per_user"]
        figures = [f"{times[name]:.2f}" for name in ("drafted", "beams", "generator")]
        ratio = f"{times['beams'] / times['drafted']:.1f}x"
        rest = (ratio, f"{row['num_verified']:.0f}", f"{100 * row['same_lists']:.0f} %")
        table.add_row(str(row["users_at_a_time"]), f"{row['weight']:g}", *figures, *rest)
    return table


if __name__ == "__main__":
    main()
