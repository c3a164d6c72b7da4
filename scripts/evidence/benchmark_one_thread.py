"""
What a list costs on one thread: against stock T5, in bfloat16, and in a trained run by the width of a search.

    OMP_NUM_THREADS=1 python scripts/evidence/benchmark_one_thread.py RUN PREPARED --dataset "Amazon 2014 Beauty"

    stock  random weights of the paper's shape as in `benchmark_decoding.py`: stock, `recommend()`, the same through
           `torch.compile` and with weights rounded to bfloat16; what the matrix products alone would take at the rate
           of large ones; one cell once more with memory kept by glibc, in a process of its own
    wide   validation users of a trained run, 16 at a time, beams alone, ten items: the whole search, `recommend()`,
           which leaves out beams of the last step that no listed item can come from, and that in bfloat16
    bound  the same users: prefixes of each level that are no worse than the tenth best item of the catalog. Any exact
           method must compute these, with whatever drafts it begins.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmark_decoding import (
    BASELINE,
    QUICK,
    Sizes,
    build_model,
    machine,
    make_variants,
    random_histories,
    same_lists,
)
from hf_genrec import PreparedDataset, Recommender
from hf_genrec.files import write_json
from hf_genrec.modeling.genrec_beams import beam_search, rank_ids
from hf_genrec.serving.compiled import compile_networks
from sweep_beams import Users


OUTPUT = Path("scripts/evidence/records/one_thread.json")
CELLS = ((1, 50), (16, 50), (16, 500))  # users and beams
WIDTHS = (50, 200, 500)
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
TOP_K = 10


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    sizes = QUICK if arguments.quick else Sizes(seconds=6.0, min_turns=2)
    cells, widths = (((1, 10), (3, 24)), (11, 24)) if arguments.quick else (CELLS, WIDTHS)
    if arguments.cell:
        print(json.dumps(against_stock(*arguments.cell, sizes)))
        return
    record: dict[str, Any] = {"machine": machine(torch.device("cpu")), "dataset": arguments.dataset}
    record["gflops"] = {
        dtype: round(products_per_second(getattr(torch, dtype)), 1) for dtype in ("float32", "bfloat16")
    }
    record["stock"] = [against_stock(users, beams, sizes) for users, beams in cells]
    if not arguments.quick:
        record["stock"].append(with_kept_memory(16, 50))
    model = Recommender.from_pretrained(arguments.run, device="cpu").model
    users = Users(model, PreparedDataset.load(arguments.prepared), "validation")
    histories = users.tokens(users.sample(arguments.users))
    record["num_items"], record["num_users"] = model.config.num_items, len(histories)
    record["wide"] = [by_width(model, histories[:16], beams, sizes) for beams in widths]
    record["bound"] = prefixes_needed(model, histories)
    write_json(record, arguments.output)
    Console().print_json(data=record)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run that writes codes")
    parser.add_argument("prepared", nargs="?", help="folder that `hf-genrec prepare` wrote")
    parser.add_argument("--dataset", default="", help="name of the data set on the page")
    parser.add_argument("--users", type=int, default=64, help="a fixed sample (default 64)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one turn: shows that everything runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file (default {OUTPUT})")
    parser.add_argument("--cell", type=int, nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def against_stock(num_users: int, num_beams: int, sizes: Sizes) -> dict[str, Any]:
    """One cell: milliseconds per user of stock and of ours, whose lists must be the same."""
    device = torch.device("cpu")
    model = build_model(sizes.num_items, 0, sizes, device, 0)
    histories = random_histories(model, num_users, sizes.history_length, 0)
    calls: dict[str, Callable[[], Any]] = dict(make_variants(model, histories, num_beams, [BASELINE, "recommend"]))
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    calls["bfloat16"] = make_variants(rounded, histories, num_beams, ["recommend"])["recommend"]
    with FlopCounterMode(display=False) as counter:
        calls["recommend"]()
    if sizes is not QUICK:
        torch.compiler.reset()  # variants of other cells count against the same limit
        compiled = copy.deepcopy(model)
        compile_networks(compiled)
        calls["compiled"] = make_variants(compiled, histories, num_beams, ["recommend"])["recommend"]
    lists = {name: call() for name, call in calls.items()}
    if not all(same_lists(lists[BASELINE], found)[0] for name, found in lists.items() if name != "bfloat16"):
        raise SystemExit(f"With {num_users} users and {num_beams} beams stock lists other items.")
    cell = {"num_users": num_users, "num_beams": num_beams, "kept_memory": "MALLOC_MMAP_MAX_" in os.environ}
    cell["gflop_per_user"] = round(counter.get_total_flops() / num_users / 1e9, 4)
    return cell | milliseconds(calls, num_users, sizes)


def products_per_second(dtype: torch.dtype, size: int = 1024, turns: int = 10) -> float:
    """The best rate in 10^9 operations per second of CPU time that products of square matrices reach."""
    matrix, seconds = torch.randn(size, size).to(dtype), []
    for _ in range(turns):
        began = time.process_time()
        torch.mm(matrix, matrix)
        seconds.append(time.process_time() - began)
    return 2e-9 * size**3 / min(seconds)


def with_kept_memory(num_users: int, num_beams: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--cell", str(num_users), str(num_beams)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | KEPT).stdout
    return json.loads(output.splitlines()[-1])


def by_width(model: Any, histories: torch.Tensor, num_beams: int, sizes: Sizes) -> dict[str, Any]:
    """One width: the whole search and the one for a short list, which must be equal, and that in bfloat16."""
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    options = {"top_k": TOP_K, "num_beams": num_beams} | ({"dense_weight": 0.0} if model.config.dense_head else {})

    @torch.no_grad()
    def whole() -> torch.Tensor:
        beams = beam_search(model, model.encode_history(histories), num_beams=num_beams)
        return model.catalog.item_at(rank_ids(beams, top_k=TOP_K, latent_aggregation="max")[0])

    def short() -> torch.Tensor:
        return model.recommend(histories, **options).item_tokens - model.config.first_item_token

    calls = {"whole": whole, "recommend": short, "bfloat16": lambda: rounded.recommend(histories, **options)}
    if not torch.equal(whole(), short()):
        raise SystemExit(f"With {num_beams} beams the short list is another one.")
    return {"num_users": len(histories), "num_beams": num_beams} | milliseconds(calls, len(histories), sizes)


def milliseconds(calls: dict[str, Callable[[], Any]], num_users: int, sizes: Sizes) -> dict[str, Any]:
    """Medians of repetitions in turns; of CPU time, which one thread has to itself on a busy machine too."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    while min(map(len, seconds.values())) < sizes.min_turns or sum(map(sum, seconds.values())) < sizes.seconds:
        for name, call in calls.items():
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    medians = {name: 1000 * statistics.median(values) / num_users for name, values in seconds.items()}
    return {"milliseconds_per_user": {name: round(median, 3) for name, median in medians.items()}}


@torch.no_grad()
def prefixes_needed(model: Any, histories: torch.Tensor) -> dict[str, Any]:
    """Mean and most prefixes of each level that are no worse than the `TOP_K`-th best item, of all there are."""
    counts: list[list[torch.Tensor]] = [[] for _ in range(model.config.num_levels - 1)]
    for history in histories.split(1):
        beams = beam_search(model, model.encode_history(history), num_beams=model.config.num_paths)
        worst = beams.scores.topk(TOP_K).values[:, -1:]
        for found, step in zip(counts, beams.trace, strict=False):
            found.append((step.scores >= worst).sum(1))
    numbers = [torch.cat(found).float() for found in counts]
    return {
        "mean": [round(number.mean().item(), 1) for number in numbers],
        "most": [int(number.max()) for number in numbers],
        "all": model.catalog.num_nodes[1:-1],
    }


if __name__ == "__main__":
    main()
