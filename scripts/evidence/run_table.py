"""
Train and evaluate every run of a table, several at a time, and leave one record per run.

    python scripts/evidence/run_table.py scripts/evidence/tables/acerec_ablation.json --work WORK
    python scripts/evidence/run_table.py scripts/evidence/tables/beauty_parallel.json --work WORK --jobs 2

A table is a JSON file: `dataset` (its name on the results page), `prepared` (folder), `seeds`, and `rows`, each with
`name`, `system`, `ids` (folder; null for a model without ids), `encoder` (null likewise), `train` (further words for
`hf-genrec train`, such as `--embeddings` and a folder of vectors) and, where wanted, `seeds` (instead of the table's)
and `record` (further words for `record_run.py`). A row with `name`, `system`, `record` and `run_of`, the name of
another row, trains nothing: it evaluates that row's runs another way. Folders are relative to WORK, where `runs/` and
`logs/` are made too. A run whose record exists is skipped, an unfinished one is resumed, so a table of many hours can
be filled bit by bit. `write_results.py` makes the page from the records.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console


SCRIPTS = Path(__file__).resolve().parent
FIELDS = {"name", "system", "ids", "encoder", "train"}
FIELDS_OF_ANOTHER_READING = {"name", "system", "record", "run_of"}


@dataclass(frozen=True)
class Run:
    """One row of a table with one of its seeds."""

    name: str
    seed: int
    prepared: str
    dataset: str
    row: dict[str, Any]

    def commands(self, records: Path) -> list[list[str]]:
        """The two programs that make the run and its record, with folders relative to the work folder."""
        output = f"runs/{self.row.get('run_of', self.row['name'])}_seed{self.seed}"
        program = str(Path(sys.executable).with_name("hf-genrec"))
        ids = [] if self.row["ids"] is None else ["--ids", self.row["ids"]]
        train = [program, "train", self.prepared, *ids, "--output", output, *self.row["train"]]
        record = [sys.executable, str(SCRIPTS / "record_run.py"), output, self.prepared, *ids]
        record += ["--name", self.name, "--dataset", self.dataset, "--system", self.row["system"]]
        record += [] if self.row["encoder"] is None else ["--encoder", self.row["encoder"]]
        record += ["--keep-evaluation"] if "run_of" in self.row else []
        record += [*self.row.get("record", []), "--records", str(records)]
        return [[*train, "--seed", str(self.seed), "--resume"], record]


def main() -> None:
    arguments = parse_arguments()
    runs = read_table(arguments.table)
    records, work = arguments.records.resolve(), arguments.work.resolve()
    console = Console(stderr=True, highlight=False)
    waiting = [run for run in runs if not (records / f"{run.name}.json").exists()]
    console.print(f"{len(runs) - len(waiting)} of {len(runs)} runs have their records.")
    (work / "logs").mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    codes = []
    for needs_another in (False, True):  # a run is read another way when it is there
        ready = [run for run in waiting if ("run_of" in run.row) == needs_another]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            codes += pool.map(lambda run: fill(run, records, work, threads, console), ready)
    if any(codes):
        raise SystemExit(f"{sum(map(bool, codes))} runs failed; see {work / 'logs'}.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="JSON file of the table")
    parser.add_argument("--work", type=Path, required=True, help="folder with the prepared data and the ids")
    parser.add_argument(
        "--jobs", type=int, default=1, choices=range(1, 65), metavar="N", help="runs that share the cores (default 1)"
    )
    parser.add_argument(
        "--records", type=Path, default=Path("scripts/evidence/records/results"), help="folder of records"
    )
    return parser.parse_args()


def read_table(path: Path) -> list[Run]:
    """The runs of a table, row by row for each seed, so that every seed's comparison is whole before the next."""
    table = json.loads(path.read_text(encoding="utf-8"))
    rows = {row.get("name"): row for row in table["rows"]}
    for row in table["rows"]:
        wanted = FIELDS_OF_ANOTHER_READING if "run_of" in row else FIELDS
        optional = {"record"} if "run_of" in row else {"record", "seeds"}
        if set(row) - optional != wanted - optional or not wanted <= set(row):
            raise SystemExit(f"{path}: a row must have {', '.join(sorted(wanted))}; got {', '.join(sorted(row))}.")
        if "run_of" in row and "train" not in rows.get(row["run_of"], {}):
            raise SystemExit(f"{path}: `run_of` must name a row that is trained, got {row['run_of']!r}.")
    if len(rows) < len(table["rows"]):
        raise SystemExit(f"{path}: two rows have the same name.")
    whole = [rows.get(row.get("run_of"), {}) | row for row in table["rows"]]
    seeds_of = [row.get("seeds", table["seeds"]) for row in whole]
    return [
        Run(f"{row['name']}_seed{seed}", seed, table["prepared"], table["dataset"], row)
        for seed in dict.fromkeys(chain.from_iterable(seeds_of))
        for row, seeds in zip(whole, seeds_of, strict=True)
        if seed in seeds
    ]


def fill(run: Run, records: Path, work: Path, threads: int, console: Console) -> int:
    """Train (or resume) and record one run; the exit status of what failed, or 0."""
    console.print(f"{run.name}: begun")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (work / "logs" / f"{run.name}.log").open("a", encoding="utf-8") as log:
        for command in run.commands(records):
            status = subprocess.run(command, cwd=work, env=environment, stdout=log, stderr=log).returncode
            if status:
                console.print(f"{run.name}: failed, see {log.name}")
                return status
    score = json.loads((records / f"{run.name}.json").read_text(encoding="utf-8"))["model"]["ndcg@10"]
    console.print(f"{run.name}: ndcg@10 {score:.4f}")
    return 0


if __name__ == "__main__":
    main()
