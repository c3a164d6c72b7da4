"""
The learning curves of all recorded runs: ndcg@10 on validation users over epochs, one plot per data set.

    python scripts/evidence/plot_curves.py
    python scripts/evidence/plot_curves.py --records RECORDS --output FOLDER

The validation sample and its beams are those of the training; see the command of each run on the results page. Weights
that were evaluated in several ways are drawn once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from line_plots import Panel, plot_lines
from results import curves_name, load_records


NUM_COLUMNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--records", type=Path, default=Path("scripts/evidence/records/results"), help="folder of records"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("scripts/evidence/records/curves"), help="folder of the plots"
    )
    arguments = parser.parse_args()
    datasets: dict[str, dict[str, Panel]] = {}
    drawn: set[str] = set()
    for record in load_records(arguments.records):
        run = record["run"]
        if run.get("curve") and run["weights"] not in drawn:
            drawn.add(run["weights"])
            panels = datasets.setdefault(run["dataset"], {})
            panel = panels.setdefault(run["system"], Panel(run["system"], {}))
            panel.lines[run["name"]] = [tuple(point) for point in run["curve"]]
    for dataset, panels in datasets.items():
        path = arguments.output / f"{curves_name(dataset)}.png"
        ordered = [panels[system] for system in sorted(panels)]
        plot_lines(
            ordered, path, x_label="epochs", y_label="validation ndcg@10", num_columns=NUM_COLUMNS, share_axes=True
        )
        print(f"{sum(len(panel.lines) for panel in ordered)} runs, written to {path}")


if __name__ == "__main__":
    main()
