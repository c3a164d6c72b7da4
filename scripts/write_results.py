"""
The results page from its records.

    python scripts/write_results.py
    python scripts/write_results.py --records hub_cards/results --output RESULTS.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_genrec.results import load_records, results_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=Path("hub_cards/results"), help="folder of records")
    parser.add_argument("--output", type=Path, default=Path("RESULTS.md"), help="the page to write")
    arguments = parser.parse_args()
    records = load_records(arguments.records)
    arguments.output.write_text(results_page(records), encoding="utf-8")
    print(f"{len(records)} records, written to {arguments.output}")


if __name__ == "__main__":
    main()
