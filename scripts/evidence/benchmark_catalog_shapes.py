"""
Whether a step inside the catalog costs the same with a hundred million items: ids of several shapes, by their number.

    OMP_NUM_THREADS=1 python scripts/evidence/benchmark_catalog_shapes.py
    OMP_NUM_THREADS=1 python scripts/evidence/benchmark_catalog_shapes.py --shapes fixed-3x8192 --sizes 1000000

    random-LxK   distinct random tuples of L levels of K codes: with more items a prefix has more children
    fixed-LxK    prefixes have the same number of children at any number of items, but for the root, which has the rest

Each cell has a process of its own, one at a time, and is written at once; cells that the output holds already are left
out. Seconds are those of computing. A step is what a search does at a depth: `children` where no node has more than
half the codes, else `child_mask` and `child`. It is timed for nodes of random items, and once more for the same ones:
what the second call saves are reads of memory that no cache holds, what remains is the algorithm. Figures are the
fastest tenth of the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm.auto import tqdm

from benchmark_catalog import held_memory, mixed, peak_memory, random_codes
from benchmark_decoding import machine
from catalog_shape_results import shape_blocks
from hf_genrec.files import write_json
from hf_genrec.modeling.genrec_catalog import Catalog


DEFAULT_OUTPUT = Path("scripts/evidence/records/catalog_shapes.json")
ROWS_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class Shape:
    """How the ids of a catalog branch."""

    num_levels: int
    codebook_size: int
    num_children: int | None = None  # of every prefix but the root; `None` for random ids

    def codes(self, num_items: int, seed: int) -> torch.Tensor:
        """Int16, of about as many items: those of equal branching are whole subtrees of the root."""
        if self.num_children is None:
            return random_codes(num_items, seed, num_levels=self.num_levels, codebook_size=self.codebook_size)
        below = self.num_children ** (self.num_levels - 1)
        num_roots = min(self.codebook_size, max(1, round(num_items / below)))
        return branching_codes(num_roots, self, seed)


SHAPES = {
    "random-4x256": Shape(4, 256),
    "random-3x8192": Shape(3, 8192),
    "random-4x4096": Shape(4, 4096),
    "fixed-3x8192": Shape(3, 8192, 110),  # 8,192 subtrees of 110 x 110 items are 99 million
    "fixed-4x4096": Shape(4, 4096, 29),  # 4,096 subtrees of 29 x 29 x 29 are 100 million
}


def branching_codes(num_roots: int, shape: Shape, seed: int) -> torch.Tensor:
    """Items in a mixed order; the codes behind a prefix are distinct, and others behind each prefix."""
    children = shape.num_children
    num_items = num_roots * children ** (shape.num_levels - 1)
    codes = torch.empty(num_items, shape.num_levels, dtype=torch.int16)
    stride = 1_000_003  # a prime that divides no number of items, so each place comes once
    for piece, first in zip(codes.split(ROWS_AT_A_TIME), range(0, num_items, ROWS_AT_A_TIME), strict=True):
        places = torch.arange(first, first + len(piece)) * stride % num_items
        for level in range(shape.num_levels):
            node = places // children ** (shape.num_levels - 1 - level)
            parent = node // children if level else torch.zeros_like(node)
            number = node % children if level else node
            # an odd factor keeps numbers below a power of two apart
            piece[:, level] = (number * 2531 + mixed(parent + 12_345 * level + seed, 32)) % shape.codebook_size
    return codes


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if options.worker:
        torch.set_num_threads(1)
        print(json.dumps(measure(options.worker, options.sizes[0], options)), flush=True)
        return
    report = json.loads(options.output.read_text("utf-8")) if options.output.exists() else {"cells": []}
    known = {(cell["shape"], cell["asked"]) for cell in report["cells"]}
    others = {step["rows"] for cell in report["cells"] for step in cell["steps"]} - set(options.rows)
    if others:
        raise SystemExit(f"{options.output} was measured with {sorted(others)} rows: give these, or another --output.")
    wanted = [(shape, size) for shape in options.shapes for size in options.sizes if (shape, size) not in known]
    for shape, size in tqdm(wanted, desc="Catalogs"):
        cell = {"shape": shape, "asked": size, "machine": machine(torch.device("cpu"))}
        report["cells"].append(cell | in_a_process(shape, size, options))
        write_json(report, options.output)
    Console().print("\n\n".join(shape_blocks(report)))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7, 10**8], help="numbers of items")
    parser.add_argument("--rows", type=int, nargs="+", default=[50, 800], help="users x beams (default 50 800)")
    parser.add_argument("--turns", type=int, default=200, help="steps of each kind that count (default 200)")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", choices=SHAPES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.turns < 2:
        parser.error(f"--turns must be at least 2, got {options.turns}")
    return options


def in_a_process(shape: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", shape, "--sizes", str(size), "--turns", str(options.turns)]
    command += ["--seed", str(options.seed), "--rows", *map(str, options.rows)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(name: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """One catalog, built and stepped through."""
    shape = SHAPES[name]
    codes = shape.codes(size, options.seed)
    before, start = peak_memory(), time.process_time()
    catalog = Catalog(codes, shape.codebook_size)
    build = {
        "num_items": len(codes),
        "cpu_seconds": round(time.process_time() - start, 3),
        "peak_growth_mb": round(peak_memory() - before, 1),
        "held_mb": round(held_memory(catalog), 1),
        "num_nodes": catalog.num_nodes,
        "max_children": catalog.max_children,
    }
    generator = torch.Generator().manual_seed(options.seed)
    steps = [
        {"rows": rows, "depth": depth} | timed(catalog, codes, depth, rows, options.turns, generator)
        for rows in options.rows
        for depth in range(1, shape.num_levels)  # at the root there is one node, whatever the size
    ]
    return build | {"steps": steps}


def timed(
    catalog: Catalog, codes: torch.Tensor, depth: int, rows: int, turns: int, generator: torch.Generator
) -> dict[str, Any]:
    """
    Milliseconds of a step for nodes of random items, and of the same step again: of each the fastest tenth, since
    other work on the machine only adds.
    """
    first, again = [], []
    form, step = step_of(catalog, depth)
    for _ in range(turns + 3):
        some = codes[torch.randint(len(codes), (rows,), generator=generator)].long()
        nodes, chosen = catalog.node_of(some[:, :depth]), some[:, depth]
        first.append(cpu_milliseconds(lambda: step(nodes, chosen)))  # noqa: B023 (called at once)
        again.append(cpu_milliseconds(lambda: step(nodes, chosen)))  # noqa: B023
    times = {"milliseconds": first, "again": again}
    return {"form": form} | {name: round(statistics.quantiles(own[3:], n=10)[0], 4) for name, own in times.items()}


def step_of(catalog: Catalog, depth: int) -> tuple[str, Callable[[torch.Tensor, torch.Tensor], object]]:
    """What a search does at a depth, by the rule of `genrec_beams`."""
    if 2 * catalog.max_children[depth] > catalog.codebook_size:
        return "mask", lambda nodes, chosen: (catalog.child_mask(depth, nodes), catalog.child(depth, nodes, chosen))
    return "children", lambda nodes, chosen: catalog.children(depth, nodes)


def cpu_milliseconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


if __name__ == "__main__":
    main()
