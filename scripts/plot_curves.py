"""
The learning curves of all recorded runs: ndcg@10 on validation users over epochs, one plot per data set.

    python scripts/plot_curves.py
    python scripts/plot_curves.py --records hub_cards/results --output hub_cards/curves

The validation sample and its beams are those of the training; see the command of each run on the results page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_genrec.plots import Panel, plot_lines
from hf_genrec.results import curves_name, load_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=Path("hub_cards/results"), help="folder of records")
    parser.add_argument("--output", type=Path, default=Path("hub_cards/curves"), help="folder of the plots")
    arguments = parser.parse_args()
    datasets: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in load_records(arguments.records):
        run = record["run"]
        if run.get("curve"):
            datasets.setdefault(run["dataset"], {})[run["name"]] = [tuple(point) for point in run["curve"]]
    for dataset, lines in datasets.items():
        path = arguments.output / f"{curves_name(dataset)}.png"
        plot_lines([Panel(dataset, lines)], path, x_label="epochs", y_label="validation ndcg@10")
        print(f"{len(lines)} runs, written to {path}")


if __name__ == "__main__":
    main()
