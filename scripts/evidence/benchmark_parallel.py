"""
Where the item graph pays: exact decoding against walks along the graph, by the number of items.

    python scripts/evidence/benchmark_parallel.py RUN PREPARED
    python scripts/evidence/benchmark_parallel.py RUN PREPARED --items 100000 --walks 20x200x3
    python scripts/evidence/benchmark_parallel.py --quick

The catalog of a trained run is filled up with dummy items whose codes are drawn, level by level, from those of the
real items; they are recommended where they score well. Without a run the weights and all codes are random. Walks are
called `num_beams x num_neighbors x num_propagations`; they begin at random items (committed rows with `similar` in the
name are of an option that the library had once). Each cell has a process of its own. Times are medians of repeated
calls on one batch of users, at least 3 and for about 10 seconds, with the encoding of their histories; memory is how
far one call raises the peak of the process. `visited` is the mean number of items that are scored, `overlap` the
share of the exact top 10 that is found, and ndcg@10 is that of some fixed validation users. Finished cells are
skipped the next time; the graph of each size is kept in `--graphs`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from benchmark_decoding import Sizes, forget_peak, machine, memory_status, time_in_turns, timing
from hf_genrec import PreparedDataset, Recommender
from hf_genrec.evaluation.metrics import ndcg_per_user, ranks_of_targets
from hf_genrec.files import write_json
from hf_genrec.modeling.configuration_rpg import RPGConfig
from hf_genrec.modeling.genrec_item_graph import GRAPH_FILE
from hf_genrec.modeling.modeling_rpg import RPGForItemGeneration
from hf_genrec.serving.item_graph import ItemGraph, build_item_graph
from hf_genrec.training.initial import check_same_catalog
from line_plots import Panel, plot_lines
from sweep_beams import Users


TOP_K = 10
EXACT = "exact"
DEFAULT_OUTPUT = Path("scripts/evidence/records/parallel_speed.json")
QUICK = {"codebook_size": 16, "num_levels": 6, "d_model": 16, "d_ff": 24, "num_layers": 1}


def main() -> None:
    arguments = parse_arguments()
    if arguments.cell:
        print(json.dumps(measure(arguments)))
        return
    if arguments.build:
        print(json.dumps(build(arguments)))
        return
    output = arguments.output or (None if arguments.quick else DEFAULT_OUTPUT)
    report: dict[str, Any] = {"conditions": conditions_of(arguments), "cells": [], "graphs": []}
    if output and output.exists():
        report = json.loads(output.read_text(encoding="utf-8"))
        if report["conditions"] != conditions_of(arguments):
            raise SystemExit(
                f"{output} was measured with {report['conditions']}, this is {conditions_of(arguments)}: figures of "
                "one page must be comparable. Choose another --output."
            )
    for num_items in arguments.items:
        fill(report, num_items, arguments, output)
    report["cells"].sort(key=place_of)
    if output:
        write_json(report, output)
    Console().print(table_of(report["cells"]))
    if output:
        draw(report["cells"], output.with_suffix(".png"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, nargs="?", help="folder that `hf-genrec train` wrote; random weights without"
    )
    parser.add_argument("prepared", nargs="?", help="folder that `hf-genrec prepare` wrote")
    parser.add_argument("--items", type=int, nargs="+", help="sizes (default: the real one or 10000, 10^5, 10^6)")
    parser.add_argument("--walks", nargs="*", default=["20x100x3", "50x50x3", "100x30x5"], help="default: three")
    parser.add_argument("--users", type=int, default=256, help="users of a batch (default 256)")
    parser.add_argument("--ndcg-users", type=int, default=5000, help="a fixed sample (default 5000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring per cell (default 10)")
    parser.add_argument("--graphs", type=Path, default=Path("runs/item_graphs"), help="folder of graphs")
    parser.add_argument("--output", type=Path, help=f"JSON file (default {DEFAULT_OUTPUT}; none with --quick)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cell", nargs=2, metavar=("ITEMS", "VARIANT"), help=argparse.SUPPRESS)
    parser.add_argument("--build", type=int, metavar="ITEMS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if (arguments.run is None) != (arguments.prepared is None):
        parser.error("give both RUN and PREPARED, or neither")
    if arguments.quick:
        arguments.walks, arguments.users, arguments.seconds = ["5x8x2"], 7, 0.0
    if arguments.items is None:
        arguments.items = [real_size(arguments) or 10_000, 10**5, 10**6]
        if arguments.quick:
            arguments.items = [real_size(arguments) or 300, 900]
    return arguments


def conditions_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for all cells of a file."""
    weights = "random"
    if arguments.run is not None:
        with (arguments.run / "model.safetensors").open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    names = ("users", "ndcg_users", "device", "seed", "quick")
    return {name: getattr(arguments, name) for name in names} | {
        "weights": weights,
        "threads": torch.get_num_threads(),
    }


def real_size(arguments: argparse.Namespace) -> int | None:
    return None if arguments.prepared is None else len(PreparedDataset.load(arguments.prepared).item_ids)


def variants(arguments: argparse.Namespace) -> list[str]:
    """Names of what is compared: `exact`, and walks such as `20x100x3`."""
    return [EXACT, *arguments.walks]


def options_of(variant: str) -> dict[str, Any]:
    """The arguments of `recommend()` that a name stands for."""
    if variant == EXACT:
        return {}
    num_beams, num_neighbors, num_propagations = map(int, variant.split("x"))
    return {
        "decoding": "graph",
        "num_beams": num_beams,
        "num_neighbors": num_neighbors,
        "num_propagations": num_propagations,
    }


def fill(report: dict[str, Any], num_items: int, arguments: argparse.Namespace, output: Path | None) -> None:
    """Measure what the report lacks about a size; it is written after each cell."""
    done = {(row["num_items"], row["variant"]) for row in report["cells"]}
    missing = [variant for variant in variants(arguments) if (num_items, variant) not in done]
    if (
        any(variant != EXACT for variant in missing)
        and not (graph_folder(arguments, num_items) / GRAPH_FILE).is_file()
    ):
        report["graphs"].append(in_a_process(arguments, "--build", str(num_items)))
        if output:
            write_json(report, output)
    for variant in tqdm(missing, desc=f"{num_items:,} items"):
        begin = machine(torch.device(arguments.device))
        row = {"num_items": num_items, "variant": variant, "machine": begin}
        report["cells"].append(row | in_a_process(arguments, "--cell", str(num_items), variant))
        if output:
            write_json(report, output)


def place_of(row: dict[str, Any]) -> tuple[int, tuple[int, ...], str]:
    """Where a cell stands on the page: by items, `exact` before the walks, and these by their beams."""
    walk, _, start = row["variant"].partition(" ")
    return row["num_items"], () if walk == EXACT else tuple(map(int, walk.split("x"))), start


def in_a_process(arguments: argparse.Namespace, *words: str) -> dict[str, Any]:
    """What this script says when it is started again with some words."""
    command = [sys.executable, __file__, *([str(arguments.run), arguments.prepared] if arguments.run else [])]
    command += ["--graphs", str(arguments.graphs), "--users", str(arguments.users), "--device", arguments.device]
    command += ["--ndcg-users", str(arguments.ndcg_users)]
    command += ["--seconds", str(arguments.seconds), "--seed", str(arguments.seed), "--walks", *arguments.walks]
    command += [*words, *(["--quick"] if arguments.quick else [])]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


# --- in the process of a cell ----------------------------------------------------------------------------------------


def load_model(arguments: argparse.Namespace, num_items: int) -> Any:
    """The run with dummy items behind the real ones, or random weights and codes."""
    generator = torch.Generator().manual_seed(arguments.seed)
    if arguments.run is None:
        torch.manual_seed(arguments.seed)
        config = RPGConfig(num_items=num_items, **(QUICK if arguments.quick else {}))
        model: Any = RPGForItemGeneration(config)
        model.set_catalog(torch.randint(config.codebook_size, (num_items, config.num_levels), generator=generator))
    else:
        recommender = Recommender.from_pretrained(arguments.run, device="cpu")
        check_same_catalog(recommender.item_ids, PreparedDataset.load(arguments.prepared), owner=str(arguments.run))
        model = recommender.model
        real = model.item_codes
        if num_items < len(real):
            raise SystemExit(f"{arguments.run} has {len(real)} items already: --items must not be smaller.")
        rows = torch.randint(len(real), (num_items - len(real), real.shape[1]), generator=generator)
        model.item_codes = torch.cat([real, real.gather(0, rows)])
        model.config.num_items = num_items
        model.set_catalog(model.item_codes.clone())
    return model.to(arguments.device).eval()


def batch_of(arguments: argparse.Namespace, model: Any, users: Users | None) -> torch.Tensor:
    """Item tokens of the users whose calls are timed."""
    if users is not None:
        return users.tokens(users.sample(arguments.users))
    generator = torch.Generator().manual_seed(arguments.seed + 1)
    tokens = torch.randint(model.config.num_items, (arguments.users, 9), generator=generator)
    return (tokens + model.config.first_item_token).to(model.device)


def ndcg_of(model: Any, users: Users, options: dict[str, Any], arguments: argparse.Namespace) -> float:
    """ndcg@10 of the fixed users."""
    who = users.sample(arguments.ndcg_users)
    ranks = np.full(len(who), -1)
    for rows, tokens in users.batches(who, arguments.users, "ndcg@10"):
        items = model.recommend(tokens, top_k=TOP_K, **options).item_tokens - model.config.first_item_token
        ranks[rows] = ranks_of_targets(items.cpu().numpy(), users.targets[who[rows]])
    return round(float(ndcg_per_user(ranks, k=TOP_K).mean()), 5)


def graph_folder(arguments: argparse.Namespace, num_items: int) -> Path:
    """Its name states the weights and the most neighbours that a walk follows: another graph stands elsewhere."""
    return arguments.graphs / f"{conditions_of(arguments)['weights']}_{num_items}x{most_neighbors(arguments)}"


def most_neighbors(arguments: argparse.Namespace) -> int:
    return max(options_of(walk)["num_neighbors"] for walk in arguments.walks)


def build(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build the graph of a size and tell what it cost."""
    num_items = arguments.build
    model = load_model(arguments, num_items)
    num_neighbors = most_neighbors(arguments)
    before, start = forget_peak(), time.perf_counter()
    graph = build_item_graph(model, num_neighbors=min(num_neighbors, num_items))
    seconds, growth = time.perf_counter() - start, memory_status()["VmHWM"] - before
    folder = graph_folder(arguments, num_items)
    folder.mkdir(parents=True, exist_ok=True)
    graph.save(folder)
    return {
        "num_items": num_items,
        "num_neighbors": num_neighbors,
        "seconds": round(seconds, 1),
        "peak_growth_mb": round(growth / 1e6, 1),
        "neighbor_overlap": round(graph.overlap, 4),
        "machine": machine(torch.device(arguments.device)),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One variant on one batch of users."""
    num_items, variant = int(arguments.cell[0]), arguments.cell[1]
    device, options = torch.device(arguments.device), options_of(variant)
    model = load_model(arguments, num_items)
    users = None if arguments.run is None else Users(model, PreparedDataset.load(arguments.prepared), "validation")
    tokens = batch_of(arguments, model, users)
    if options:
        graph = ItemGraph.load(graph_folder(arguments, num_items))
        model.set_item_graph(graph.neighbors, graph.fingerprint)
    model.recommend(tokens[:1], top_k=TOP_K, **options)  # what is loaded once is not the call's
    before = forget_peak()
    output = model.recommend(tokens, top_k=TOP_K, **options)
    growth = memory_status()["VmHWM"] - before
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        model.recommend(tokens, top_k=TOP_K, **options)
        growth = torch.cuda.max_memory_allocated(device) - held
    calls = {
        "whole": lambda: model.recommend(tokens, top_k=TOP_K, **options),
        "history": lambda: model.code_log_probs(tokens),
    }
    with torch.no_grad():
        seconds = time_in_turns(calls, Sizes(seconds=arguments.seconds), device)
    items = output.item_tokens.cpu() - model.config.first_item_token
    best = model.recommend(tokens, top_k=TOP_K).item_tokens.cpu() - model.config.first_item_token
    result = timing(seconds["whole"], len(tokens)) | {
        "milliseconds_per_user_history": timing(seconds["history"], len(tokens))["milliseconds_per_user"],
        "num_users": len(tokens),
        "peak_growth_mb": round(growth / 1e6, 1),
        "visited": round(float(output.num_visited.float().mean()), 1),
        "overlap": round(float((items.unsqueeze(2) == best.unsqueeze(1)).any(2).float().mean()), 4),
    }
    if users is not None:
        result |= {"ndcg@10": ndcg_of(model, users, options, arguments), "ndcg_users": arguments.ndcg_users}
    return result


# --- what is shown ---------------------------------------------------------------------------------------------------


def table_of(rows: list[dict[str, Any]]) -> Table:
    columns = ["items", "decoding", "ms per user", "of it history", "peak, MB", "visited", "overlap", "ndcg@10"]
    table = Table(*columns, title="Exact decoding and walks along the item graph")
    for row in rows:
        shares = [row["overlap"], row.get("ndcg@10", "")]
        numbers = ("milliseconds_per_user", "milliseconds_per_user_history", "peak_growth_mb", "visited")
        table.add_row(
            f"{row['num_items']:,}", row["variant"], *(f"{row[name]:,}" for name in numbers), *map(str, shares)
        )
    return table


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds per user and the share of the exact list that is found, by the number of items."""
    names = list(dict.fromkeys(row["variant"] for row in rows))
    titles = {"milliseconds_per_user": "milliseconds per user", "overlap": "share of the exact top 10"}
    panels = [
        Panel(title, {name: [(r["num_items"], r[key]) for r in rows if r["variant"] == name] for name in names})
        for key, title in titles.items()
    ]
    plot_lines(panels, path, x_label="items", y_label="", log_x=True)


if __name__ == "__main__":
    main()
