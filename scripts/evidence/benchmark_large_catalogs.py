"""
How tokenizing, saving, loading, serving, changing and evaluating a catalog grow with its number of items.

    python scripts/evidence/benchmark_large_catalogs.py
    python scripts/evidence/benchmark_large_catalogs.py --sizes 10000 100000 --phases tokenize load
    python scripts/evidence/benchmark_large_catalogs.py --quick

Catalogs are invented: titles of a few words, vectors around cluster centres, users who take items by a power law. Each
phase at each size has a process of its own; each step in it is measured in seconds, in seconds of computing (all
threads, user and system) and by the most memory that it held above what was there before it. The exponent `e` of a
step is that of `seconds of computing ~ items ** e` between the two largest sizes, per user where they differ in users.

    tokenize   whitening, then per quantizer: learning from 65,536 rows at most (of the RQ-VAE two epochs), encoding
               all items, resolving collisions; `opq` is `pq` after a rotation, learned from the same rows
    save       `SemanticIds`, and the run folders of a generative model with a dense head, a SASRec, an RPG and an
               item-to-item table of 20 weights for each item
    load       the folders, each with the first list after it; the tokenizer and the semantic-ID table alone
    change     1,000 items added to and removed from the loaded catalog, and the first list after each
    evaluate   `evaluate` of all users with the baselines; with the models of a sample, since these score the whole
               catalog for each user: `--scores` numbers in all, of RPG, which adds up 32 codes for each, and of 20
               beams with a dense head a tenth; at most as many users as there are. The users' file with all of them
    live       a generative model without a dense head and without a folder: as `change`, with given codes
    trie       the trie of a catalog alone; this and `live` also of sizes that have no folder (`--trie-sizes`)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from hf_genrec import (
    LatteConfig,
    LatteForConditionalGeneration,
    PreparedDataset,
    Recommender,
    RPGConfig,
    RPGForItemGeneration,
    SASRecConfig,
    SASRecForItemGeneration,
)
from hf_genrec.data.prepared import fingerprint_of
from hf_genrec.evaluation.baselines import BASELINES
from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
from hf_genrec.evaluation.record import write_users
from hf_genrec.files import write_json
from hf_genrec.modeling.configuration_item_to_item import ItemToItemConfig
from hf_genrec.modeling.genrec_catalog import Catalog
from hf_genrec.modeling.modeling_item_to_item import ItemToItemForItemGeneration
from hf_genrec.serving.catalog.grown_model import with_items
from hf_genrec.tokenizers.base import Quantizer
from hf_genrec.tokenizers.embeddings import Whitening, load_matrix
from hf_genrec.tokenizers.new_items import CHOICE_NAME, mean_length
from hf_genrec.tokenizers.row_tables import mapped
from hf_genrec.tokenizers.semantic_ids import SemanticIds


DEFAULT_OUTPUT = Path("scripts/evidence/records/large_catalogs.json")
PHASES = ("tokenize", "save", "load", "change", "evaluate", "live", "trie")
WORDS = ("red", "soft", "small", "old", "plain", "north", "oak", "steel", "paper", "lamp", "chair", "kettle", "brush",
         "garden", "book", "table", "shelf", "cup", "coat", "rope", "drum", "clock", "mirror", "basket")  # fmt: skip
LATTE = {"history_attention": "causal", "history_unit": "item", "normalization": "catalog", "d_model": 64, "d_kv": 32,
         "d_ff": 256, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2, "num_latent_tokens": 0}  # fmt: skip
NUM_CHANGED = 1_000
# What `evaluate` reads: folder, options of the search, and by what the number of scores is divided.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "SASRec": ("sasrec", {}, 1),
    "generative": ("generative", {"num_beams": 20}, 10),
    "RPG": ("rpg", {}, 10),
    "item-to-item": ("item_to_item", {}, 1),
}
QUANTIZERS: dict[str, dict[str, Any]] = {"residual-kmeans": {}, "pq": {}, "opq": {}, "rqvae": {"epochs": 2}}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if options.worker:
        work(options)
        return
    report = benchmark(options)
    print_table(report)
    output = options.output or (None if options.quick else DEFAULT_OUTPUT)
    if output:
        write_json(report, output)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6], help="numbers of items")
    parser.add_argument("--trie-sizes", type=int, nargs="*", default=[10**7], help="further ones of `live` and `trie`")
    parser.add_argument("--users", type=int, default=10**5, help="users of the log")
    parser.add_argument("--scores", type=int, default=10**9, help="scores that each model computes in an evaluation")
    parser.add_argument("--dim", type=int, default=128, help="columns of the vectors")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    systems = [*MODELS, *BASELINES]
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems, help="those that are evaluated")
    parser.add_argument("--folder", type=Path, help="where data and runs are kept (default: a folder that goes)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs")
    parser.add_argument("--output", type=Path, help=f"JSON file (default {DEFAULT_OUTPUT}; none with --quick)")
    parser.add_argument("--worker", choices=PHASES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(sizes=[300, 700], trie_sizes=[900], users=40, scores=7_000, dim=16)
    return options


# --- data and runs ---------------------------------------------------------------------------------------------------


def write_data(folder: Path, num_items: int, num_users: int, dim: int) -> None:
    """A prepared folder with items that an invented shop could have, and their vectors as `vectors.npy`."""
    draw = np.random.default_rng(num_items)
    data = folder / "data"
    data.mkdir(parents=True)
    item_ids = item_ids_of(num_items)
    words = np.array(WORDS)[draw.integers(len(WORDS), size=(num_items, 4))]
    titles = pa.array([f"{' '.join(row)} {number}" for number, row in enumerate(words)])
    pq.write_table(pa.table({"item_id": item_ids, "title": titles, "text": titles}), data / "items.parquet")
    lengths = draw.integers(5, 16, size=num_users)
    taken = np.minimum((num_items * draw.random(lengths.sum()) ** 3).astype(np.int64), num_items - 1)
    offsets = np.append(0, np.cumsum(lengths))
    users = pa.array([f"u{user}" for user in range(num_users)])
    for back, split in enumerate(("test", "validation", "train"), 1):
        last = offsets[1:] - back  # the target; the history is all before it
        flat = np.concatenate([np.arange(start, end) for start, end in zip(offsets[:-1], last, strict=True)])
        sizes = np.append(0, np.cumsum(last - offsets[:-1])).astype(np.int32)
        history = pa.ListArray.from_arrays(pa.array(sizes), item_ids.take(pa.array(taken[flat])))
        columns = {"user_id": users, "history": history, "target": item_ids.take(pa.array(taken[last]))}
        columns["timestamp"] = pa.nulls(num_users, pa.int64())
        pq.write_table(pa.table(columns), data / f"{split}.parquet")
    record = {"format_version": 1, "protocol": "leave-last-out", "fingerprint": fingerprint_of(data)}
    write_json(record | {"repeat_rate": 0.0}, data / "dataset.json")
    centres = draw.normal(size=(max(8, num_items // 100), dim)).astype(np.float32)
    vectors = centres[draw.integers(len(centres), size=num_items)]
    vectors += 0.5 * draw.standard_normal(size=vectors.shape, dtype=np.float32)
    np.save(folder / "vectors.npy", vectors)


def item_ids_of(num_items: int) -> pa.Array:
    """Ten letters and digits, as shops give them."""
    return pa.array([f"B{number * 48271 % 2147483647:09d}" for number in range(1, num_items + 1)])


def random_codes(num_items: int, *, num_levels: int = 4, codebook_size: int = 256) -> torch.Tensor:
    """Distinct tuples: the digits of numbers that a bijection of 32 bits has mixed."""
    numbers = torch.arange(num_items)
    for shift, factor in ((16, 0x9E3779B1), (13, 0x7FEB352D), (16, 1)):
        numbers = ((numbers ^ numbers >> shift) * factor) & 0xFFFFFFFF
    digits = [(numbers >> 8 * (3 - level)) % codebook_size for level in range(num_levels)]
    return torch.stack(digits, dim=1).to(torch.int16)


# --- steps -----------------------------------------------------------------------------------------------------------


class Steps:
    """What was measured in one process, a row per step."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str, *, num_users: int | None = None) -> Iterator[None]:
        before = _start_peak()
        began, began_busy = time.perf_counter(), _computing()
        yield
        seconds, busy = time.perf_counter() - began, _computing() - began_busy
        row = {"step": name, "num_items": self.num_items, "seconds": round(seconds, 3), "cpu_seconds": round(busy, 3)}
        row |= {"peak_mb": round(_peak() - before, 1)} | ({"num_users": num_users} if num_users else {})
        self.rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)


def _computing() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _start_peak() -> float:
    """Let the kernel forget the peak so far; returns what the process holds now, in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def tokenize(folder: Path, steps: Steps, options: argparse.Namespace) -> None:
    prepared = PreparedDataset.load(folder / "data")
    vectors = load_matrix(folder / "vectors.npy", num_items=steps.num_items)
    item_ids, rows = prepared.item_ids, np.flatnonzero(prepared.train_item_counts() > 0)
    for name, settings in QUANTIZERS.items():
        learner = Quantizer.named(name, num_items=len(vectors), num_rows=len(rows), options=settings)
        wanted, points = min(learner.default_whitened, options.dim), vectors
        if wanted % learner.num_levels and name in ("pq", "opq"):
            learner = Quantizer.named(name, num_items=len(vectors), num_rows=len(rows), num_levels=8)
        fitted = rows[learner.rows_to_learn(len(rows), most=2**16)]
        if wanted:
            with steps.step(f"{name}: whitening"):
                whitening = Whitening.fit(vectors, num_components=wanted, fit_on=rows, take_fewer=True)
                points = mapped(vectors, whitening.transform, dim=len(whitening.scale))
        with steps.step(f"{name}: learning"):
            learner.fit(points[fitted], show_progress=False)
        with steps.step(f"{name}: encoding"):
            codes = learner.encode(points)
        with steps.step(f"{name}: resolving collisions"):
            latents = None
            if learner.codebooks is not None:
                latents = mapped(points, learner.latents, dim=learner.codebooks.shape[2])
            ids = SemanticIds.from_codes(
                item_ids, codes, codebook_size=learner.codebook_size, policy=learner.default_policy,
                embeddings=latents, codebooks=learner.codebooks,
            )  # fmt: skip
        with steps.step(f"{name}: statistics"):
            ids.statistics()


def save(folder: Path, steps: Steps, options: argparse.Namespace) -> None:
    items = PreparedDataset.load(folder / "data").items
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    sample = np.ascontiguousarray(vectors[:20_000])
    quantizer = Quantizer.named("residual-kmeans", num_items=len(vectors), num_rows=len(sample), num_levels=4)
    codes = random_codes(steps.num_items, codebook_size=256).numpy().astype(np.int64)
    bundle = folder / "quantizer"
    bundle.mkdir(exist_ok=True)
    quantizer.fit(sample, show_progress=False).save(bundle)
    write_json({"policy": "widen", "num_candidates": 5, "mean_length": mean_length(sample)}, bundle / CHOICE_NAME)
    ids = SemanticIds(tuple(items["item_id"].to_pylist()), codes, 256, "widen")
    with steps.step("semantic IDs: saving"):
        ids.save(folder / "semantic_ids.parquet")
    config = LatteConfig.for_ids(ids, **LATTE, dense_head=True)
    generative = LatteForConditionalGeneration(config)
    generative.set_catalog(ids.codes)
    with steps.step("generative: saving"):
        Recommender(generative, items).save_pretrained(folder / "generative", quantizer=bundle)
    for title, name, model in other_models(steps.num_items):
        with steps.step(f"{title}: saving"):
            Recommender(model, items).save_pretrained(folder / name)


def other_models(num_items: int) -> Iterator[tuple[str, str, Any]]:
    """Models without training, by their titles and folders."""
    yield "SASRec", "sasrec", SASRecForItemGeneration(SASRecConfig(num_items=num_items, d_model=64, num_heads=2))
    config = RPGConfig(num_items=num_items, num_levels=32, codebook_size=256, d_model=64, d_ff=256, num_heads=2)
    rpg = RPGForItemGeneration(config)
    rpg.set_catalog(random_codes(8 * num_items).reshape(num_items, 32))
    yield "RPG", "rpg", rpg
    width = min(20, num_items)
    table = ItemToItemForItemGeneration(ItemToItemConfig(num_items=num_items, num_weights=width * num_items))
    rows = torch.arange(num_items).repeat_interleave(width)
    targets = (rows * 7919 + torch.arange(width).repeat(num_items) ** 3) % num_items
    table.set_weights(rows, targets, torch.rand(len(rows)))
    yield "item-to-item", "item_to_item", table


def load(folder: Path, steps: Steps, options: argparse.Namespace) -> None:
    history = [item_ids_of(3).to_pylist()]
    for title, name in (("generative", "generative"), ("SASRec", "sasrec")):
        with steps.step(f"{title}: loading"):
            shop = Recommender.from_pretrained(folder / name, device="cpu")
        with steps.step(f"{title}: first list"):
            shop.recommend(history)
        with steps.step(f"{title}: second list"):
            shop.recommend(history)
        del shop
    with steps.step("semantic IDs: loading"):
        SemanticIds.load(folder / "semantic_ids.parquet")
    from transformers import AutoTokenizer

    with steps.step("tokenizer alone: loading"):
        AutoTokenizer.from_pretrained(folder / "sasrec")


def change(folder: Path, steps: Steps, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        run = Path(shutil.copytree(folder / "generative", Path(copy) / "run"))
        shop = Recommender.from_pretrained(run, device="cpu")
        history = [item_ids_of(3).to_pylist()]
        shop.recommend(history)
        fresh = np.load(folder / "vectors.npy", mmap_mode="r")[:NUM_CHANGED] + np.float32(0.1)
        items = pa.table({"item_id": [f"new {row}" for row in range(len(fresh))]})
        with steps.step("adding 1,000 items"):
            shop.catalog.add(items, vectors=fresh)
        with steps.step("first list with them"):
            shop.recommend(history)
        with steps.step("removing 1,000 items"):
            shop.catalog.remove(items["item_id"].to_pylist())
        with steps.step("first list without them"):
            shop.recommend(history)
        with steps.step("loading the changed catalog"):
            Recommender.from_pretrained(run, device="cpu")


def evaluation(folder: Path, steps: Steps, options: argparse.Namespace) -> None:
    data = PreparedDataset.load(folder / "data")
    users = options.users
    with steps.step("reading the data", num_users=users):
        data.train_item_counts()
    for title, (name, search, share) in MODELS.items():
        if title not in options.systems:
            continue
        fewer = min(users, max(1, options.scores // steps.num_items // share))
        shop = Recommender.from_pretrained(folder / name, device="cpu", **search)
        with steps.step(f"{title}, without baselines", num_users=fewer):
            evaluate(shop, data, EvaluationSettings(max_users=fewer), baselines={})
        del shop
    for name, baseline in BASELINES.items():
        if name not in options.systems:
            continue
        with steps.step(f"{name}: learning and tuning", num_users=users):
            systems = baseline.for_columns(data)
        with steps.step(f"{name}: evaluating", num_users=users):
            record = evaluate(systems[False], data, EvaluationSettings(batch_size=4096), baselines={})
        if name == "popularity":
            with steps.step("writing the users", num_users=users):
                write_users(record.users, folder / "users.parquet", keep_names=True)


def live(folder: Path | None, steps: Steps, options: argparse.Namespace) -> None:
    item_ids, codes = item_ids_of(steps.num_items), random_codes(steps.num_items + NUM_CHANGED)
    model = LatteForConditionalGeneration(
        LatteConfig(num_items=steps.num_items, num_levels=4, codebook_size=256, **LATTE)
    )
    model.set_catalog(codes[: steps.num_items])
    with steps.step("recommender"):
        shop = Recommender(model, pa.table({"item_id": item_ids}), num_beams=20)
    history = [item_ids[:3].to_pylist()]
    with steps.step("first list"):
        shop.recommend(history)
    fresh = [{"item_id": f"new {row}", "codes": own} for row, own in enumerate(codes[steps.num_items :].tolist())]
    with steps.step("adding 1,000 items"):
        shop.catalog.add(fresh)
    with steps.step("first list with them"):
        shop.recommend(history)
    with steps.step("removing 1,000 items"):
        shop.catalog.remove([item["item_id"] for item in fresh])
    with steps.step("first list without them"):
        shop.recommend(history)


def trie(folder: Path | None, steps: Steps, options: argparse.Namespace) -> None:
    codes = random_codes(steps.num_items)
    with steps.step("building the trie"):
        catalog = Catalog(codes, 256)
    del catalog
    config = LatteConfig(num_items=steps.num_items, num_levels=4, codebook_size=256, **LATTE)
    model = LatteForConditionalGeneration(config)
    with steps.step("set_catalog"):
        model.set_catalog(codes)
    fresh = torch.cat([codes[:NUM_CHANGED, 1:], codes[:NUM_CHANGED, :1]], dim=1)
    with steps.step("tables with 1,000 further items"):
        grown = with_items(model, NUM_CHANGED, {"codes": fresh})
    with steps.step("their trie"):
        _ = grown.catalog


RUN: dict[str, Callable[..., None]] = {
    "tokenize": tokenize, "save": save, "load": load, "change": change, "evaluate": evaluation, "live": live,
    "trie": trie,
}  # fmt: skip


def work(options: argparse.Namespace) -> None:
    """One phase at one size; a line of JSON comes out."""
    steps = Steps(options.sizes[0])
    RUN[options.worker](options.folder, steps, options)
    print(json.dumps(steps.rows), flush=True)


# --- all of them -----------------------------------------------------------------------------------------------------


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    machine = {
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip
    steps: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        for num_items in options.sizes:
            folder = root / str(num_items)
            if not folder.exists():
                write_data(folder, num_items, options.users, options.dim)
            for phase in options.phases:
                steps += in_process(phase, num_items, folder, options)
        for num_items in options.trie_sizes:
            for phase in (own for own in ("live", "trie") if own in options.phases):
                steps += in_process(phase, num_items, root, options)
    settings = {name: getattr(options, name) for name in ("sizes", "trie_sizes", "users", "scores", "dim")}
    return {"machine": machine, "settings": settings, "steps": steps, "exponents": exponents(steps)}


def in_process(phase: str, num_items: int, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, "--worker", phase, "--sizes", str(num_items), "--folder", str(folder)]
    for name in ("users", "scores", "dim"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--systems", *options.systems]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True).stdout
    return [{"phase": phase} | row for row in json.loads(answer.splitlines()[-1])]


def exponents(steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By phase and step, between its two largest sizes; none where computing takes less than a tenth of a second."""
    found = {}
    for phase, name in dict.fromkeys((row["phase"], row["step"]) for row in steps):
        own = [row for row in steps if (row["phase"], row["step"]) == (phase, name) and row["cpu_seconds"] >= 0.1]
        if len(own) > 1:
            few, many = sorted(own, key=lambda row: row["num_items"])[-2:]
            work = [row["cpu_seconds"] / row.get("num_users", 1) for row in (few, many)]
            found[f"{phase}: {name}"] = round(
                math.log(work[1] / work[0]) / math.log(many["num_items"] / few["num_items"]), 2
            )
    return found


def print_table(report: dict[str, Any]) -> None:
    table = Table("phase", "step", "items", "seconds", "computing", "peak, MB", "exponent")
    last = {(row["phase"], row["step"]): row["num_items"] for row in report["steps"]}
    for row in report["steps"]:
        key = (row["phase"], row["step"])
        exponent = report["exponents"].get(": ".join(key), "") if last[key] == row["num_items"] else ""
        cells = (
            f"{row['num_items']:,}",
            f"{row['seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['peak_mb']:,.0f}",
        )
        table.add_row(*key, *cells, str(exponent))
    Console(width=119).print(table)


if __name__ == "__main__":
    main()
