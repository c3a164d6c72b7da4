"""
The results page from its records.

    python scripts/write_results.py
    python scripts/write_results.py --records hub_cards --output RESULTS.md

Trained runs in `results/`, beam sweeps in `beams/`, corrections of popularity in `popularity/`, and the benchmarks
`decoding_speed.json` and `catalog_speed.json`; what does not exist is left out of the page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_genrec.decoding_results import load_sweeps
from hf_genrec.results import load_records, results_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=Path("hub_cards"), help="folder of records")
    parser.add_argument("--output", type=Path, default=Path("RESULTS.md"), help="the page to write")
    arguments = parser.parse_args()
    records = load_records(arguments.records / "results")
    sweeps = load_sweeps(arguments.records / "beams")
    page = results_page(
        records,
        sweeps=sweeps,
        popularity=[
            json.loads(path.read_text("utf-8")) for path in sorted(arguments.records.glob("popularity/*.json"))
        ],
        decoding_speed=read_figures(arguments.records / "decoding_speed.json"),
        catalog_speed=read_figures(arguments.records / "catalog_speed.json"),
        parallel_speed=read_figures(arguments.records / "parallel_speed.json"),
        training_speed=read_figures(arguments.records / "parallel_training_speed.json"),
    )
    arguments.output.write_text(page, encoding="utf-8")
    print(f"{len(records)} records and {len(sweeps)} sweeps, written to {arguments.output}")


def read_figures(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


if __name__ == "__main__":
    main()
