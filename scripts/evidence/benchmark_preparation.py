"""
How preparing a log grows with its length: seconds, CPU seconds and memory.

    python scripts/evidence/benchmark_preparation.py --work folder
    python scripts/evidence/benchmark_preparation.py --work folder --sizes 1000000 10000000 --before other_checkout
    python scripts/evidence/benchmark_preparation.py --work folder --quick

The logs are invented: users and items follow power laws (there is a user for 10 rows and an item for 200), times are
random, and a log of 10 times the rows has 10 times the users and items. Each is prepared by a process of its own, with
a 5-core, from Parquet and, up to `--most-csv` and `--most-jsonl` rows, from CSV and JSON Lines; `--before` names a
checkout whose preparation runs on the same files, as far as `--most-before` rows. Seconds are those of `prepare()`,
without imports; CPU seconds those of all its threads; memory is the peak of the whole process. The growth exponent is
the slope of the CPU seconds between two sizes on logarithmic axes. Logs and folders are removed once measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
from rich.console import Console
from rich.table import Table

from hf_genrec.files import write_json


DEFAULT_OUTPUT = Path("scripts/evidence/records/preparation_speed.json")
QUICK = {"sizes": [2_000, 20_000], "most_csv": 2_000, "most_jsonl": 2_000, "most_before": 2_000}
ROWS_PER_USER, ROWS_PER_ITEM = 10, 200
WORKER = """
import json, resource, sys, time
from hf_genrec.data.prepare import prepare
log, items, folder, options = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
def cpu():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
start, begun = time.perf_counter(), cpu()
data = prepare(folder, interactions=log, items=items, k_core=5, missing_text="keep", overwrite=True, **options)
peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({
    "seconds": round(time.perf_counter() - start, 2), "cpu_seconds": round(cpu() - begun, 2),
    "peak_mb": round(max(peaks) / (2**20 if sys.platform == "darwin" else 2**10)),
    "statistics": data.metadata["statistics"], "fingerprint": data.fingerprint,
}))
"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count(), "duckdb": duckdb.__version__}
    report |= {"memory_limit": options.memory_limit, "runs": []}
    output = options.output or (None if options.quick else DEFAULT_OUTPUT)
    if output and output.exists() and options.add:
        report["runs"] = json.loads(output.read_text("utf-8"))["runs"]
    for size in options.sizes:
        for run in runs_of(size, options):
            report["runs"] = [each for each in report["runs"] if key_of(each) != key_of(run)] + [run]
            report["exponents"] = exponents_of(report["runs"])
            if output:
                write_json(report, output)
    print_table(report)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for logs and prepared folders")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7, 10**8], help="rows of the logs")
    parser.add_argument("--most-csv", type=int, default=10**7, help="rows of the longest log as CSV")
    parser.add_argument("--most-jsonl", type=int, default=10**7, help="rows of the longest log as JSON Lines")
    parser.add_argument("--before", type=Path, help="a checkout of the code to compare with")
    parser.add_argument("--most-before", type=int, default=10**7, help="rows of the longest log for that code")
    parser.add_argument("--memory-limit", default="2GB", help="of the engine (default 2GB)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs")
    parser.add_argument("--add", action="store_true", help="keep other runs that the JSON file has")
    parser.add_argument("--output", type=Path, help=f"JSON file (default {DEFAULT_OUTPUT}; none with --quick)")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    return options


def runs_of(size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All preparations of one log."""
    items, runs = write_items(options.work / "items.parquet", size), []
    for form in ("parquet", "csv", "jsonl"):
        if size > {"csv": options.most_csv, "jsonl": options.most_jsonl}.get(form, size):
            continue
        log = write_log(options.work / f"log.{form}", size)
        found = measured(log, items, options.work / "prepared", {"memory_limit": options.memory_limit})
        runs.append({"num_rows": size, "form": form, "code": "this", **found})
        if options.before and size <= options.most_before:
            found = measured(log, items, options.work / "prepared", {}, checkout=options.before)
            runs.append({"num_rows": size, "form": form, "code": "before", **found})
        log.unlink()
    items.unlink()
    return runs


def write_log(path: Path, num_rows: int) -> Path:
    """The log of a size, the same in every format. Numbers are hashes of the row, so they are the same everywhere."""
    share = "(hash({row} + {salt}) / 18446744073709551616.0)"
    user, item, time = (share.format(row="range", salt=salt * 10**12) for salt in (1, 2, 3))
    num_users, num_items = max(1, num_rows // ROWS_PER_USER), max(1, num_rows // ROWS_PER_ITEM)
    query = (
        f"SELECT 'u' || CAST({num_users} * pow({user}, 2) AS BIGINT) AS user_id, "
        f"'i' || CAST({num_items - 1} * pow({item}, 3) AS BIGINT) AS item_id, "
        f"CAST(1.4e12 + 3e11 * {time} AS BIGINT) AS timestamp FROM range({num_rows})"
    )
    form = {".parquet": "PARQUET", ".csv": "CSV, HEADER", ".jsonl": "JSON"}[path.suffix]
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT {form})").fetchall()
    return path


def write_items(path: Path, num_rows: int) -> Path:
    """The items table of a log."""
    query = (
        f"SELECT 'i' || range AS item_id, 'Item ' || range AS title FROM range({max(1, num_rows // ROWS_PER_ITEM)})"
    )
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT PARQUET)").fetchall()
    return path


def measured(
    log: Path, items: Path, folder: Path, options: dict[str, Any], *, checkout: Path | None = None
) -> dict[str, Any]:
    """One preparation, in a process of its own."""
    environment = dict(os.environ)
    if checkout is not None:
        environment["PYTHONPATH"] = str(checkout.resolve())
    folder = folder.resolve()
    words = [str(log.resolve()), str(items.resolve()), str(folder), json.dumps(options)]
    command, where = [sys.executable, "-c", WORKER, *words], checkout or Path.cwd()
    done = subprocess.run(command, env=environment, cwd=where, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"The preparation of {log} ended with status {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def key_of(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["num_rows"], run["form"], run["code"]


def exponents_of(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Growth of CPU seconds between each size and the next larger one.

    >>> runs = [{"num_rows": 10, "form": "csv", "code": "this", "cpu_seconds": 2.0}]
    >>> exponents_of(runs + [runs[0] | {"num_rows": 1000, "cpu_seconds": 20.0}])
    [{'form': 'csv', 'code': 'this', 'from': 10, 'to': 1000, 'exponent': 0.5}]
    """
    found = []
    for form, code in dict.fromkeys((run["form"], run["code"]) for run in runs):
        same = sorted((run for run in runs if key_of(run)[1:] == (form, code)), key=lambda run: run["num_rows"])
        for small, large in zip(same, same[1:], strict=False):
            growth = math.log(large["cpu_seconds"] / small["cpu_seconds"])
            exponent = round(growth / math.log(large["num_rows"] / small["num_rows"]), 2)
            ends = {"from": small["num_rows"], "to": large["num_rows"]}
            found.append({"form": form, "code": code, **ends, "exponent": exponent})
    return found


def print_table(report: dict[str, Any]) -> None:
    table = Table("rows", "form", "code", "seconds", "CPU seconds", "MB", "left", "fingerprint")
    for run in report["runs"]:
        figures = (f"{run['seconds']:.1f}", f"{run['cpu_seconds']:.1f}", f"{run['peak_mb']:,}")
        left = f"{run['statistics']['num_interactions']:,}"
        table.add_row(f"{run['num_rows']:,}", run["form"], run["code"], *figures, left, run["fingerprint"])
    console = Console()
    console.print(table)
    for each in report["exponents"]:
        console.print(f"{each['form']}, {each['code']}: {each['from']:,} to {each['to']:,} rows: {each['exponent']}")


if __name__ == "__main__":
    main()
