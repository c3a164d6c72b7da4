"""
Exported graphs against the models they were made from: equal lists, speed, and what 8-bit products lose.

    python scripts/evidence/benchmark_onnx.py SASRec=RUN "dense head=RUN,decoding=dense" rpg --prepared PREPARED

A word is a name, a run folder and options of the recommender, or an architecture alone, which has random weights and
codes then and the size of the prepared data. Cells of the output that are not asked for stay if they are of as many
items. All is measured in one process: lists of some validation users in torch and in onnxruntime, one user
and a batch at a time in turns, on as many threads; ndcg@10 of more validation users by both graphs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console

from benchmark_decoding import machine
from hf_genrec import (
    ACERecConfig,
    ACERecForItemGeneration,
    LatteConfig,
    LatteForConditionalGeneration,
    PreparedDataset,
    Recommender,
    RPGConfig,
    RPGForItemGeneration,
)
from hf_genrec.evaluation.metrics import ndcg_per_user
from hf_genrec.files import write_json
from hf_genrec.serving.export.onnx_graph import export_onnx
from hf_genrec.serving.export.onnx_recommender import OnnxRecommender
from server_results import onnx_blocks


TOP_K, BATCH = 10, 64
RANDOM = {
    "rpg": (RPGConfig, RPGForItemGeneration),
    "acerec": (ACERecConfig, ACERecForItemGeneration),
    "tiger": (partial(LatteConfig, num_latent_tokens=0, num_levels=4, d_ff=256), LatteForConditionalGeneration),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME[=RUN[,OPTION=VALUE]]", help="or rpg, acerec, tiger")
    parser.add_argument("--prepared", required=True, help="folder that `hf-genrec prepare` wrote")
    parser.add_argument("--users", type=int, default=1000, help="whose lists are compared (default 1000)")
    parser.add_argument("--ndcg-users", type=int, default=5000, help="for ndcg@10 (default 5000)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring each cell (default 4)")
    parser.add_argument("--note", default="", help="a sentence about the models, for the page")
    parser.add_argument("--output", type=Path, default=Path("scripts/evidence/records/onnx_speed.json"))
    arguments = parser.parse_args()
    prepared = PreparedDataset.load(arguments.prepared)
    rows = prepared.split("validation")
    chosen = np.random.default_rng(0).permutation(len(rows["target"]))[: max(arguments.users, arguments.ndcg_users)]
    users = [(rows["history"][int(user)], rows["target"][int(user)]) for user in chosen]
    old = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else {}
    cells = {cell["name"]: cell for cell in old.get("cells", ()) if old["num_items"] == len(prepared.item_ids)}
    report = {"cells": [], "num_items": len(prepared.item_ids), "users": arguments.users, "note": arguments.note}
    report |= {"ndcg_users": arguments.ndcg_users, "machine": machine(torch.device("cpu"))}
    for word in arguments.models:
        name, _, run = word.partition("=")
        recommender = loaded(name, run, prepared.item_ids)
        cells[name] = {"name": name} | compare(recommender, users, arguments, is_trained=bool(run))
        report["cells"] = list(cells.values())
        write_json(report, arguments.output)
    Console().print("\n\n".join(onnx_blocks(report)))


def loaded(name: str, run: str, item_ids: list[str]) -> Recommender:
    if run:
        folder, *words = run.split(",")
        options = {key: read(value) for key, _, value in (word.partition("=") for word in words)}
        return Recommender.from_pretrained(folder, device="cpu", **options)
    torch.manual_seed(0)
    config_class, model_class = RANDOM[name]
    model = model_class(config_class(num_items=len(item_ids)))
    codes = torch.randint(model.config.codebook_size, (len(item_ids), model.config.num_levels))
    model.set_catalog(codes)
    return Recommender(model, pa.table({"item_id": item_ids}))


def read(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def compare(
    recommender: Recommender, users: list[Any], arguments: argparse.Namespace, *, is_trained: bool
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(recommender, Path(folder) / "onnx", top_k=TOP_K, int8=True)
        used = ("encoder", "decoder") if (path / "encoder.onnx").exists() else ("model",)
        megabytes = {
            kind: sum((path / f"{name}{ending}.onnx").stat().st_size for name in used) / 1e6
            for kind, ending in (("model", ""), ("model_int8", "_int8"))
        }
        threads = torch.get_num_threads()
        graphs = {
            "onnx": OnnxRecommender(path, threads=threads),
            "int8": OnnxRecommender(path, int8=True, threads=threads),
        }
    calls: dict[str, Callable[[list[Any]], list[list[str]]]] = {
        "torch": lambda histories: recommender.recommend(histories, top_k=TOP_K).item_ids,
        "onnx": lambda histories: graphs["onnx"].recommend(histories, top_k=TOP_K)[0],
        "int8": lambda histories: graphs["int8"].recommend(histories, top_k=TOP_K)[0],
    }
    histories = [history for history, _ in users[: arguments.users]]
    lists = {name: in_batches(call, histories) for name, call in calls.items()}
    found: dict[str, Any] = {"megabytes": {name: round(size, 1) for name, size in megabytes.items()}}
    for name in ("onnx", "int8"):
        pairs = list(zip(lists[name], lists["torch"], strict=True))
        found[f"equal_{name}"] = sum(ours == theirs for ours, theirs in pairs)
        found[f"overlap_{name}"] = round(float(np.mean([len(set(a) & set(b)) / TOP_K for a, b in pairs])), 4)
    for size in (1, BATCH):
        found[f"ms_{size}"] = milliseconds(calls, histories, size=size, seconds=arguments.seconds)
    return found | ({"ndcg@10": ndcgs(calls, users[: arguments.ndcg_users])} if is_trained else {})


def in_batches(call: Callable[[list[Any]], list[list[str]]], histories: list[Any]) -> list[list[str]]:
    return [found for start in range(0, len(histories), BATCH) for found in call(histories[start : start + BATCH])]


def milliseconds(calls: dict[str, Any], histories: list[Any], *, size: int, seconds: float) -> dict[str, float]:
    """Median milliseconds of a call, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    until, place = time.perf_counter() + seconds * len(calls), 0
    while time.perf_counter() < until or place < 3 * size:
        batch = [histories[(place + number) % len(histories)] for number in range(size)]
        place += size
        for name, call in calls.items():
            start = time.perf_counter()
            call(batch)
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: round(statistics.median(values[1:]), 2) for name, values in taken.items()}


def ndcgs(calls: dict[str, Any], users: list[Any]) -> dict[str, float]:
    found = {}
    for kind in ("onnx", "int8"):
        lists = in_batches(calls[kind], [history for history, _ in users])
        pairs = zip(lists, (target for _, target in users), strict=True)
        ranks = [items.index(target) if target in items else -1 for items, target in pairs]
        found[kind] = round(float(ndcg_per_user(np.array(ranks), k=TOP_K).mean()), 5)
    return found


if __name__ == "__main__":
    main()
