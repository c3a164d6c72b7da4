"""
The results page from its records.

    python scripts/evidence/write_results.py
    python scripts/evidence/write_results.py --records scripts/evidence/records --output RESULTS.md

Trained runs in `results/` (beside each record its results per user), baselines of the same data in `baselines/`, pairs
of runs to be compared in `comparisons.json`, reports of `hf-genrec diagnose` in `trees/`, beam sweeps in `beams/`,
corrections of popularity in `popularity/`, and each benchmark in a file of its own; what does not exist is left out of
the page.
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
        trees={path.stem: json.loads(path.read_text("utf-8")) for path in arguments.records.glob("trees/*.json")},
        figures={path.stem: json.loads(path.read_text("utf-8")) for path in arguments.records.glob("*.json")},
    )
    arguments.output.write_text(page, encoding="utf-8")
    print(f"{len(records)} records and {len(sweeps)} sweeps, written to {arguments.output}")


def read_users(records: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    sizes = {record["run"]["name"]: record["num_users"] for record in records}
    return {name: load_users(users_path(folder / f"{name}.json"), num_users=size) for name, size in sizes.items()}


if __name__ == "__main__":
    main()
