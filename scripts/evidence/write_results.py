"""
The results page from its records.

    python scripts/evidence/write_results.py
    python scripts/evidence/write_results.py --records scripts/evidence/records --output RESULTS.md

Trained runs in `results/` (beside each record its results per user), baselines of the same data in `baselines/`, pairs
of runs to be compared in `comparisons.json`, reports of `hf-genrec diagnose` in `trees/`, the experiment in
`synthetic_siblings.json`, beam sweeps in `beams/`, corrections of popularity in `popularity/`, and the benchmarks in
files named `..._speed.json`; what does not exist is left out of the page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from decoding_results import load_sweeps
from hf_genrec.evaluation.record import users_path
from hf_genrec.evaluation.systems import load_users
from paired_results import load_pairs
from results import load_records, results_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=Path("scripts/evidence/records"), help="folder of records")
    parser.add_argument("--output", type=Path, default=Path("RESULTS.md"), help="the page to write")
    arguments = parser.parse_args()
    records = load_records(arguments.records / "results")
    sweeps = load_sweeps(arguments.records / "beams")
    page = results_page(
        records,
        baselines=[json.loads(path.read_text("utf-8")) for path in sorted(arguments.records.glob("baselines/*.json"))],
        users=read_users(records, arguments.records / "results"),
        pairs=load_pairs(arguments.records / "comparisons.json"),
        sweeps=sweeps,
        popularity=[
            json.loads(path.read_text("utf-8")) for path in sorted(arguments.records.glob("popularity/*.json"))
        ],
        decoding_speed=read_figures(arguments.records / "decoding_speed.json"),
        catalog_speed=read_figures(arguments.records / "catalog_speed.json"),
        draft_speed=read_figures(arguments.records / "draft_speed.json"),
        parallel_speed=read_figures(arguments.records / "parallel_speed.json"),
        pool_speed=read_figures(arguments.records / "pool_speed.json"),
        training_speed=read_figures(arguments.records / "parallel_training_speed.json"),
        space_speed=read_figures(arguments.records / "space_speed.json"),
        server_speed=read_figures(arguments.records / "server_speed.json"),
        onnx_speed=read_figures(arguments.records / "onnx_speed.json"),
        llm_speed=read_figures(arguments.records / "llm_decoding_speed.json"),
        live_catalog=read_figures(arguments.records / "live_catalog.json"),
        large_catalogs=read_figures(arguments.records / "large_catalogs.json"),
        cold_start=read_figures(arguments.records / "cold_start.json"),
        months=read_figures(arguments.records / "month_by_month.json"),
        preparation_speed=read_figures(arguments.records / "preparation_speed.json"),
        processes=read_figures(arguments.records / "processes.json"),
        trees={path.stem: json.loads(path.read_text("utf-8")) for path in arguments.records.glob("trees/*.json")},
        synthetic=read_figures(arguments.records / "synthetic_siblings.json"),
    )
    arguments.output.write_text(page, encoding="utf-8")
    print(f"{len(records)} records and {len(sweeps)} sweeps, written to {arguments.output}")


def read_users(records: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    sizes = {record["run"]["name"]: record["num_users"] for record in records}
    return {name: load_users(users_path(folder / f"{name}.json"), num_users=size) for name, size in sizes.items()}


def read_figures(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


if __name__ == "__main__":
    main()
