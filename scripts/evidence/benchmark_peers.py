"""
Speed against other libraries in one run: the same data, ids, shapes and sizes of a step, one thread.

    python -m venv peers && peers/bin/pip install . cornac==3.0.1 rectokens==0.2.2
    OMP_NUM_THREADS=1 peers/bin/python scripts/evidence/benchmark_peers.py --prepared PREPARED --ids IDS \
        --parallel-ids IDS --static CHECKOUT

It runs in an environment of its own, in which the peers are installed beside this library. CHECKOUT is one of
https://github.com/youtube/static-constraint-decoding, which is on no package index; without it STATIC is left out.

    tiger   cornac's TIGER against the T5 of the same shape: targets of training per second, users per second for 10
            items. The ids are those before their collision policy, to which cornac appends a number: ours has the same
            tuples. Both sides also go user by user, the only way cornac has.
    rpg     cornac's RPG against ours, the same network; with the same weights, whether the lists are the same.
    tries   a search of 16 users and 50 beams over given log-probabilities, without a model, by the tries of rectokens
            and STATIC and ours, each with a process of its own: building (peers' ids must be sorted, which counts),
            memory, milliseconds of a search, whether the found ids are the same.

A part that is not asked for keeps its figures in the output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmark_catalog import peak_memory, random_codes
from benchmark_decoding import machine
from hf_genrec import PreparedDataset, SemanticIds
from hf_genrec.files import write_json
from hf_genrec.serving.item_graph import build_item_graph
from hf_genrec.tokenizers.folder import load_tokenized
from peer_models import (
    Cornac,
    Ours,
    Side,
    clocks,
    cornac_rpg,
    cornac_tiger,
    our_rpg,
    our_tiger,
    take_over,
    tuples_of_cornac,
)
from peer_results import peer_blocks
from peer_tries import TRIES, search


DEFAULT_OUTPUT = Path("scripts/evidence/records/peer_speed.json")
PARTS = ("tiger", "rpg", "tries")
CODEBOOK_SIZE, NUM_USERS, NUM_BEAMS = 256, 16, 50  # of the tries
TOGETHER = 64  # users of one call


def main(words: Sequence[str] | None = None) -> None:
    options = parse_arguments(words)
    if options.worker:
        print(json.dumps(measured_trie(options.worker, options.sizes[0], options)), flush=True)
        return
    report = json.loads(options.output.read_text("utf-8")) if options.output.exists() else {}
    versions = {name: version(name) for name in ("cornac", "rectokens", "transformers")}
    for part in options.parts:
        here = machine(torch.device("cpu"))
        load = here.pop("load_average")  # before the part: what else the machine was doing
        figures = {"tiger": tiger, "rpg": rpg, "tries": tries}[part](options)
        report |= {"machine": here, "versions": versions, part: {"load_average": load} | figures}
        write_json(report, options.output)
    Console().print("\n\n".join(peer_blocks(report)))


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, help="folder that `hf-genrec prepare` wrote, for `tiger` and `rpg`")
    parser.add_argument("--ids", type=Path, help="folder of `hf-genrec tokenize`, for `tiger`")
    parser.add_argument("--parallel-ids", type=Path, help="the same with many levels, for `rpg`")
    parser.add_argument("--static", type=Path, help="checkout of STATIC, for `tries`")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch-size", type=int, default=256, help="targets (tiger) or sequences (rpg) of a step")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn, after one that does not count")
    parser.add_argument("--turns", type=int, default=3, help="trainings of each, in turns (default 3)")
    parser.add_argument("--users", type=int, default=128, help="validation users (default 128)")
    parser.add_argument("--beams", type=int, nargs="+", default=[20, 50], help="beams of `tiger` (default 20 50)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7], help="items of `tries`")
    parser.add_argument("--searches", type=int, default=25, help="searches of each trie that count (default 25)")
    parser.add_argument("--note", default="", help="a sentence about the tries, for the page")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--worker", choices=TRIES, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    needed = {"tiger": ("prepared", "ids"), "rpg": ("prepared", "parallel_ids"), "tries": ()}
    for name in dict.fromkeys(name for part in options.parts for name in needed[part]):
        if getattr(options, name) is None and not options.worker:
            parser.error(f"--{name.replace('_', '-')} is needed for the parts {', '.join(options.parts)}")
    return options


# --- models ----------------------------------------------------------------------------------------------------------


def tiger(options: argparse.Namespace) -> dict[str, Any]:
    prepared, (ids, made) = PreparedDataset.load(options.prepared), load_tokenized(options.ids)
    codes, size = ids.codes_before, ids.codebook_size
    tuples = tuples_of_cornac(codes, size)
    theirs = Cornac(
        prepared,
        lambda: cornac_tiger(codes, size, batch_size=options.batch_size),
        "cornac.models.tiger.recom_tiger",
        "session_seq_iter",
    )
    sides: dict[str, Side] = {"cornac": theirs}
    for what, attention in (("a row per target", "bidirectional"), ("all targets of a row", "causal")):
        model = our_tiger(prepared, tuples, size, history_attention=attention)
        sides[f"hf_genrec, {what}"] = Ours(prepared, model, options.batch_size)
    training = trained(sides, options)
    histories = validation_histories(prepared, options.users)
    lists: list[dict[str, Any]] = []
    for beams in options.beams:
        for name, side in sides.items():
            words = {"n_beams": beams} if side is theirs else {"num_beams": beams}
            lists.append({"name": name, "beams": beams} | users_per_second(side, histories, words))
    about = {"quantizer": made["settings"]["quantizer"], "levels": codes.shape[1], "codebook_size": size}
    about |= {"fingerprint": ids.fingerprint}
    figures = {"training": training, "lists": lists, "ids": about}
    return figures | {"settings": settings(options), "num_items": len(codes)}


def rpg(options: argparse.Namespace) -> dict[str, Any]:
    prepared = PreparedDataset.load(options.prepared)
    codes = SemanticIds.load(options.parallel_ids / "semantic_ids.parquet").codes
    theirs = Cornac(
        prepared,
        lambda: cornac_rpg(codes, batch_size=options.batch_size),
        "cornac.models.rpg.recom_rpg",
        "_rpg_session_iter",
    )
    rows = len(prepared.split("train"))
    targets = sum(map(len, prepared.split("train")["history"]))  # the first item of a row is none, its target is one
    model = our_rpg(prepared, codes)
    ours = Ours(prepared, model, round(options.batch_size * targets / rows))
    training = trained({"cornac": theirs, "hf_genrec": ours}, options)
    take_over(theirs.model, model)
    histories = validation_histories(prepared, options.users)
    start = clocks()
    theirs.model.adjacency = theirs.model.model.build_adjacency(
        theirs.model.total_items, theirs.model.graph_edges, theirs.model.graph_chunk_size
    )
    graph_seconds = {"cornac": round(clocks()[1] - start[1], 2)}
    start = clocks()
    graph = build_item_graph(model, show_progress=False)
    model.set_item_graph(graph.neighbors, graph.fingerprint)
    graph_seconds["hf_genrec"] = round(clocks()[1] - start[1], 2)
    lists, found = [], {}
    for decoding in ("exact", "graph"):
        for name, side in (("cornac", theirs), ("hf_genrec", ours)):
            words = {"scoring": decoding} if side is theirs else {"decoding": decoding}
            lists.append({"name": name, "decoding": decoding} | users_per_second(side, histories, words))
            found[name, decoding] = side.recommend(histories, **words)
    pairs = zip(found["cornac", "exact"], found["hf_genrec", "exact"], strict=True)
    equal = {"equal_lists": sum(one == other for one, other in pairs), "users": len(histories)}
    figures = {"training": training, "lists": lists, "graph_cpu_seconds": graph_seconds, "exact": equal}
    return figures | {"settings": settings(options), "num_items": len(codes)}


def trained(sides: dict[str, Side], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians over the turns of targets per second, by the clock and by seconds of computing."""
    speeds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for _ in range(options.turns):
        for name, side in sides.items():
            steps = side.train(options.steps + 1)[1:]
            targets = sum(step.targets for step in steps)
            seconds, computing = sum(step.seconds for step in steps), sum(step.cpu_seconds for step in steps)
            speeds[name].append((targets / seconds, targets / computing, targets / len(steps)))
    return [
        {
            "name": name,
            "targets_per_second": round(statistics.median(speed[0] for speed in found), 2),
            "targets_per_cpu_second": round(statistics.median(speed[1] for speed in found), 2),
            "targets_per_step": round(statistics.mean(speed[2] for speed in found)),
        }
        for name, found in speeds.items()
    ]


def users_per_second(side: Side, histories: list[list[int]], words: dict[str, Any]) -> dict[str, float]:
    """One user at a time, and of ours many in a call; by seconds of computing."""
    side.recommend(histories[:2], **words)
    start = clocks()
    for history in histories:
        side.recommend([history], **words)
    found = {"users_per_second": per_second(len(histories), start, clocks())}
    if isinstance(side, Ours):
        start = clocks()
        for first in range(0, len(histories), TOGETHER):
            side.recommend(histories[first : first + TOGETHER], **words)
        found["together"] = per_second(len(histories), start, clocks())
    return found


def per_second(number: int, start: tuple[float, float], end: tuple[float, float]) -> float:
    return round(number / max(end[1] - start[1], 1e-9), 2)


def validation_histories(prepared: PreparedDataset, num_users: int) -> list[list[int]]:
    numbers = {item: number for number, item in enumerate(prepared.item_ids)}
    split = prepared.split("validation")
    chosen = np.random.default_rng(0).permutation(len(split))[:num_users]
    return [[numbers[item] for item in split[int(user)]["history"]] for user in chosen]


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("batch_size", "steps", "turns", "users")} | {
        "together": TOGETHER
    }


# --- tries -----------------------------------------------------------------------------------------------------------


def tries(options: argparse.Namespace) -> dict[str, Any]:
    cells: list[dict[str, Any]] = []
    for size in options.sizes:
        first: list[Any] | None = None
        for name in TRIES:
            if name == "STATIC" and options.static is None:
                continue
            cell = in_a_process(name, size, options)
            found = cell.pop("found")
            first = first or found
            cells.append(cell | {"is_equal": found == first})
    return {
        "cells": cells,
        "users": NUM_USERS,
        "beams": NUM_BEAMS,
        "searches": options.searches,
        "note": options.note,
    }


def in_a_process(name: str, num_items: int, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", name, "--sizes", str(num_items)]
    command += ["--searches", str(options.searches)] + (["--static", str(options.static)] if options.static else [])
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measured_trie(name: str, num_items: int, options: argparse.Namespace) -> dict[str, Any]:
    """One trie over random distinct ids, built and searched; seconds are those of computing."""
    codes = random_codes(num_items, 0)
    TRIES[name](codes[: min(num_items, 1000)], CODEBOOK_SIZE, options.static)  # what is imported does not count
    before, start = peak_memory(), time.process_time()
    trie = TRIES[name](codes, CODEBOOK_SIZE, options.static)
    build, peak = time.process_time() - start, peak_memory() - before
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(options.searches + 3, codes.shape[1], NUM_USERS, CODEBOOK_SIZE, generator=generator)
    scores = scores.log_softmax(-1)
    times = []
    for one in scores:  # each its own, so that no search finds the tables of the last one in the cache
        start = time.process_time()
        found = search(trie, one, NUM_BEAMS)
        times.append(1000 * (time.process_time() - start))
    return {
        "name": name,
        "num_items": num_items,
        "build_seconds": round(build, 3),
        "peak_growth_mb": round(peak, 1),
        "held_mb": round(sum(tensor.nbytes for tensor in tensors_of(trie)) / 2**20, 1),
        "search_ms": round(statistics.median(times[3:]), 3),
        "found": found.flatten().tolist(),
    }


def tensors_of(value: Any) -> list[torch.Tensor]:
    """All tensors in an object, in its attributes, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    if not isinstance(value, (list, tuple)):
        value = list(vars(value).values()) if hasattr(value, "__dict__") else []
    return [tensor for part in value for tensor in tensors_of(part)]


if __name__ == "__main__":
    main()
