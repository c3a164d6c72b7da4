"""
Two plots of the results page: ndcg@10 by the length of ids, and by how rare the target is.

    python scripts/evidence/plot_long_ids.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from line_plots import Panel, plot_lines
from long_id_results import BUCKETS, LENGTHS_PLOT, PUBLISHED, RARE_PLOT, REPRODUCED, lengths_of, rare_values
from results import load_records
from write_results import read_users


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--records", type=Path, default=Path("scripts/evidence/records/results"), help="folder of records"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("scripts/evidence/records/curves"), help="folder of the plots"
    )
    arguments = parser.parse_args()
    lengths_plot, rare_plot = (arguments.output / Path(plot).name for plot in (LENGTHS_PLOT, RARE_PLOT))
    records = load_records(arguments.records)
    measured = {number: record["model"]["ndcg@10"] for number, record in lengths_of(records).items()}
    lines = {"ours, 15 epochs": measured, "published": PUBLISHED, "reproduced": REPRODUCED}
    panel = Panel("RPG on Beauty", {name: [*points.items()] for name, points in lines.items()})
    plot_lines([panel], lengths_plot, x_label="codes per item", y_label="ndcg@10", log_x=True, x_ticks=[*PUBLISHED])
    buckets = [*BUCKETS]
    found = rare_values(read_users(records, arguments.records))
    rare = {
        name: [(buckets.index(bucket), value) for bucket, value in values.items()] for name, values in found.items()
    }
    ticks: dict[float, str] = dict(enumerate(buckets))
    label = "how often the target was taken in training"
    plot_lines([Panel("Beauty", rare)], rare_plot, x_label=label, y_label="ndcg@10", x_ticks=ticks)
    print(f"{len(measured)} lengths and {len(found)} systems, written to {lengths_plot} and {rare_plot}")


if __name__ == "__main__":
    main()
