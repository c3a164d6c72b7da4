"""
What staying inside the catalog costs, by the number of items: build time, memory, and milliseconds per step.

    python scripts/evidence/benchmark_catalog.py
    python scripts/evidence/benchmark_catalog.py --sizes 10000 1000000 --output catalog_speed.json
    python scripts/evidence/benchmark_catalog.py --quick

Items are random distinct tuples of 4 codes out of 256. Each size has a process of its own, so peaks of memory do not
mix; once all catalogs stand, the processes measure in turns, one at a time. Every call reads prefixes that were not
read just before. Figures are medians over the turns, in milliseconds for one step:

    mask                       legal codes of nodes that a search carries along
    mask and child             the same and the nodes that the chosen codes lead to: what a step of `recommend()` needs
    children                   legal codes and their nodes as padded lists, the other form of the same
    CatalogLogitsProcessor     one call in `generate()`, from tokens to masked scores
    prefix_allowed_tokens_fn   the same call by transformers' own processor over a dictionary from prefixes to tokens

The dictionary is left out above `--dictionary-items` items and `--dictionary-rows` rows: `null` in the JSON file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import PrefixConstrainedLogitsProcessor

from hf_genrec.files import write_json
from hf_genrec.modeling.configuration_genrec import GenRecConfig
from hf_genrec.modeling.genrec_catalog import Catalog
from hf_genrec.modeling.genrec_generate import CatalogLogitsProcessor
from line_plots import Panel, plot_lines


DEFAULT_OUTPUT = Path("scripts/evidence/records/catalog_speed.json")
NUM_LEVELS, CODEBOOK_SIZE = 4, 256
BASELINE = "prefix_allowed_tokens_fn"
VARIANTS = ["mask", "mask and child", "children", "CatalogLogitsProcessor", BASELINE]
NUM_BEAMS = 50  # rows are users x beams; transformers' processor goes through them so
QUICK = {"sizes": [300, 700], "rows": [50, 100], "turns": 2, "warmup": 0, "dictionary_items": 300}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if options.worker:
        work(options)
        return
    output = options.output or (None if options.quick else DEFAULT_OUTPUT)
    report = benchmark(options)
    print_tables(report)
    if output:
        write_json(report, output)
        draw(report, output.with_suffix(".png"))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7, 10**8], help="numbers of items"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[50, 800, 8000], help="users x beams, multiples of 50")
    parser.add_argument("--turns", type=int, default=25, help="turns that count (default 25)")
    parser.add_argument("--warmup", type=int, default=3, help="turns that do not (default 3)")
    parser.add_argument("--dictionary-items", type=int, default=10**6, help="largest catalog as a dictionary")
    parser.add_argument("--dictionary-rows", type=int, default=800, help="most rows for the dictionary")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two turns: shows that everything runs")
    parser.add_argument("--output", type=Path, help=f"JSON file (default {DEFAULT_OUTPUT}; none with --quick)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    if any(rows < 1 or rows % NUM_BEAMS for rows in options.rows):
        parser.error(f"--rows must be multiples of {NUM_BEAMS}, got {options.rows}")
    return options


# --- one catalog, in a process of its own ----------------------------------------------------------------------------


def random_codes(
    num_items: int, seed: int, *, num_levels: int = NUM_LEVELS, codebook_size: int = CODEBOOK_SIZE
) -> torch.Tensor:
    """Distinct pseudo-random rows, int16, made in pieces: no memory hides what the build takes. Sizes: powers of 2."""
    num_bits = codebook_size.bit_length() - 1
    codes = torch.empty(num_items, num_levels, dtype=torch.int16)
    for piece, first in zip(codes.split(1 << 16), range(0, num_items, 1 << 16), strict=True):
        numbers = mixed(torch.arange(first, first + len(piece)) + 7919 * seed, num_bits * num_levels)
        for level in range(num_levels):
            piece[:, level] = (numbers >> num_bits * (num_levels - 1 - level)) % codebook_size
    return codes


def mixed(numbers: torch.Tensor, num_bits: int) -> torch.Tensor:
    """A mix that can be undone (xor-shifts, odd factors), so distinct numbers of so many bits stay distinct."""
    for shift, factor in ((num_bits // 2, 0x9E3779B1), (13, 0x7FEB352D), (num_bits // 2, 1)):
        numbers = ((numbers ^ numbers >> shift) * factor) & ((1 << num_bits) - 1)
    return numbers


def peak_memory() -> float:
    """Of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def held_memory(catalog: Catalog) -> float:
    """Of all tensors of a catalog, in MB."""
    values = [value if isinstance(value, list) else [value] for value in vars(catalog).values()]
    tensors = [value for value in itertools.chain(*values) if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


class Measurement:
    """One catalog and what is timed on it."""

    def __init__(self, num_items: int, options: argparse.Namespace):
        self.options = options
        self.codes = random_codes(num_items, options.seed)
        before, start, start_cpu = peak_memory(), time.perf_counter(), time.process_time()
        self.catalog = Catalog(self.codes, CODEBOOK_SIZE)
        self.build = {
            "num_items": num_items,
            "seconds": round(time.perf_counter() - start, 3),
            "cpu_seconds": round(time.process_time() - start_cpu, 3),
            "peak_growth_mb": round(peak_memory() - before, 1),
            "held_mb": round(held_memory(self.catalog), 1),
            "num_nodes": self.catalog.num_nodes,
            "max_children": self.catalog.max_children,
        }
        self.config = GenRecConfig(num_items=num_items, num_levels=NUM_LEVELS, codebook_size=CODEBOOK_SIZE)
        self.processor = CatalogLogitsProcessor(self.catalog, self.config)
        self.baseline = None
        if num_items <= options.dictionary_items:
            self.baseline = PrefixConstrainedLogitsProcessor(dictionary_trie(self.tokens_of(self.codes)), NUM_BEAMS)
        self.generator = torch.Generator().manual_seed(options.seed)

    def tokens_of(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.long() + self.config.first_code_token + torch.arange(codes.shape[1]) * CODEBOOK_SIZE

    def turn(self) -> list[tuple[int, int, dict[str, float | None]]]:
        """Rows, depth, and milliseconds by variant."""
        return [(rows, depth, self.step(rows, depth)) for rows in self.options.rows for depth in range(NUM_LEVELS)]

    def close(self) -> None:
        """Nothing waits here, unlike in a `Worker`."""

    def step(self, rows: int, depth: int) -> dict[str, float | None]:
        """Each variant once, on random prefixes of items."""
        catalog = self.catalog
        codes = self.codes[torch.randint(len(self.codes), (rows,), generator=self.generator)].long()
        nodes, chosen = catalog.node_of(codes[:, :depth]), codes[:, depth]
        input_ids = torch.cat([torch.zeros(rows, 1, dtype=torch.long), self.tokens_of(codes[:, :depth])], dim=1)
        scores = torch.randn(rows, self.config.vocab_size, generator=self.generator)
        calls: dict[str, Callable[[], object] | None] = {
            "mask": lambda: catalog.child_mask(depth, nodes),
            "mask and child": lambda: (catalog.child_mask(depth, nodes), catalog.child(depth, nodes, chosen)),
            "children": lambda: catalog.children(depth, nodes),
            "CatalogLogitsProcessor": lambda: self.processor(input_ids, scores),
            BASELINE: None,
        }
        if self.baseline is not None and rows <= self.options.dictionary_rows:
            calls[BASELINE] = lambda: self.baseline(input_ids, scores)
        return {name: call and milliseconds(call) for name, call in calls.items()}


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def dictionary_trie(tokens: torch.Tensor) -> Callable[[int, torch.Tensor], list[int]]:
    """`prefix_allowed_tokens_fn` as it is usually written: a dictionary from prefixes to tokens that may follow."""
    children: dict[tuple[int, ...], set[int]] = {}
    for item in tokens.tolist():
        for length, token in enumerate(item):
            children.setdefault(tuple(item[:length]), set()).add(token)
    allowed = {prefix: sorted(followers) for prefix, followers in children.items()}
    return lambda _, sentence: allowed[tuple(sentence.tolist()[1:])]


def work(options: argparse.Namespace) -> None:
    """A line with the build, then a line of times per line that comes in."""
    measurement = Measurement(options.worker, options)
    print(json.dumps(measurement.build), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measurement.turn()), flush=True)


# --- all of them -----------------------------------------------------------------------------------------------------


class Worker:
    """A process with one catalog; waits between its turns."""

    def __init__(self, num_items: int, options: argparse.Namespace):
        command = [sys.executable, __file__, "--worker", str(num_items), "--seed", str(options.seed), "--rows"]
        command += [*map(str, options.rows), "--dictionary-items", str(options.dictionary_items)]
        command += ["--dictionary-rows", str(options.dictionary_rows)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self.build = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A process that measures ended with status {self.process.wait()}.")
        return json.loads(line)

    def turn(self):
        self.process.stdin.write("turn\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.communicate()


def benchmark(options: argparse.Namespace, make_worker: Callable = Worker) -> dict:
    """Build one catalog after the other, then measure in turns."""
    begin = {
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),  # before: what else the machine was doing
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    workers = [make_worker(num_items, options) for num_items in options.sizes]
    times: dict[tuple[int, int, int], dict[str, list[float | None]]] = {}
    for turn in tqdm(range(-options.warmup, options.turns), desc="Turns"):
        for worker in workers:
            for rows, depth, step in worker.turn():
                cell = times.setdefault((worker.build["num_items"], rows, depth), {name: [] for name in VARIANTS})
                for name, value in step.items() if turn >= 0 else ():
                    cell[name].append(value)
    for worker in workers:
        worker.close()
    steps = [
        {"num_items": num_items, "rows": rows, "depth": depth}
        | {name: None if None in values else round(statistics.median(values), 4) for name, values in cell.items()}
        for (num_items, rows, depth), cell in times.items()
    ]
    settings = {name: getattr(options, name) for name in ("sizes", "rows", "turns", "warmup", "seed")}
    settings |= {"num_levels": NUM_LEVELS, "codebook_size": CODEBOOK_SIZE, "num_beams": NUM_BEAMS}
    settings |= {"dictionary_items": options.dictionary_items, "dictionary_rows": options.dictionary_rows}
    return {
        "machine": begin,
        "settings": settings,
        "builds": [worker.build for worker in workers],
        "milliseconds": steps,
        "mean_over_depths": mean_over_depths(steps),
    }


def mean_over_depths(steps: list[dict]) -> list[dict]:
    """A mean step by items and rows, and how many times as long transformers' processor takes as each variant."""
    cells: dict[tuple[int, int], list[dict]] = {}
    for step in steps:
        cells.setdefault((step["num_items"], step["rows"]), []).append(step)
    means = []
    for (num_items, rows), depths in cells.items():
        values = {name: [step[name] for step in depths] for name in VARIANTS}
        mean = {name: None if None in value else round(statistics.mean(value), 4) for name, value in values.items()}
        stock = mean[BASELINE]
        ratios = {name: stock and round(stock / mean[name], 1) for name in VARIANTS if name != BASELINE}
        means.append({"num_items": num_items, "rows": rows} | mean | {"times_cheaper": ratios})
    return means


def print_tables(report: dict) -> None:
    builds = Table(
        "items", "seconds", "of computing", "peak growth, MB", "held, MB", "most children by depth", title="Build"
    )
    for build in report["builds"]:
        children = ", ".join(map(str, build["max_children"]))
        seconds = [f"{build[name]:.2f}" for name in ("seconds", "cpu_seconds")]
        memory = [f"{build[name]:,.0f}" for name in ("peak_growth_mb", "held_mb")]
        builds.add_row(f"{build['num_items']:,}", *seconds, *memory, children)
    steps = Table("rows", "items", *VARIANTS, title="Milliseconds per step, mean over depths (times cheaper)")
    for mean in sorted(report["mean_over_depths"], key=lambda mean: (mean["rows"], mean["num_items"])):
        cells = []
        for name in VARIANTS:
            ratio = mean["times_cheaper"].get(name)
            value = "-" if mean[name] is None else f"{mean[name]:.3f}"
            cells.append(value if ratio is None else f"{value} ({ratio:.0f}x)")
        steps.add_row(f"{mean['rows']:,}", f"{mean['num_items']:,}", *cells)
    Console().print(builds, steps)


def draw(report: dict, path: Path) -> None:
    means = report["mean_over_depths"]
    panels = [
        Panel(
            f"{rows:,} rows (users x beams)",
            {
                name: [(m["num_items"], m[name]) for m in means if m["rows"] == rows and m[name] is not None]
                for name in VARIANTS
            },
        )
        for rows in report["settings"]["rows"]
    ]
    plot_lines(panels, path, x_label="items", y_label="milliseconds per step", log_x=True, log_y=True)


if __name__ == "__main__":
    main()
