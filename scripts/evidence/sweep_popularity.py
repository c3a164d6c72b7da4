"""
What each remedy against popular prefixes does to the lists of a trained run, beside what it costs in recall.

    python scripts/evidence/sweep_popularity.py RUN PREPARED --name beauty_psid --dataset "Amazon 2014 Beauty"
    python scripts/evidence/sweep_popularity.py RUN PREPARED --name x --dataset X --others SASRec=RUN2 --max-users 1000

Users of the validation split, ranked over the whole catalog without the items of their history; lists of the other
runs are read through the semantic IDs of the first. The prior of an item is its number of training interactions plus
one. Finished rows are skipped the next time. `scripts/evidence/write_results.py` makes the page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from hf_genrec import PreparedDataset, Recommender
from hf_genrec.evaluation.baselines.base import sampled_users
from hf_genrec.evaluation.lists import coverage, item_indices
from hf_genrec.evaluation.metrics import bootstrap_interval, ndcg_per_user, ranks_of_targets, recall_per_user
from hf_genrec.evaluation.prefixes import popular_prefixes, shared_codes_of_pairs, shared_codes_per_user
from hf_genrec.evaluation.record import evaluation_run, named_path
from hf_genrec.files import write_json
from hf_genrec.training.initial import check_same_catalog
from line_plots import Panel, plot_lines
from sweep_beams import SEED, TOP_K, run_parser


PLAIN = "beams alone"


def main() -> None:
    arguments = parse_arguments()
    prepared = PreparedDataset.load(arguments.prepared)
    recommender = Recommender.from_pretrained(arguments.run)
    path = arguments.records / f"{arguments.name}.json"
    record = open_record(path, arguments, recommender.model.config, prepared)
    lists = Lists(prepared, recommender.model.item_codes.cpu().numpy(), arguments)
    record["shared_by_targets"] = shared_codes_of_pairs(lists.targets, codes=lists.codes)
    jobs = [(remedy, options, recommender) for remedy, options in remedies(recommender, arguments.beams)]
    for word in arguments.others:
        name, folder = named_path(word)
        jobs.append((name or Path(folder).name, {}, Recommender.from_pretrained(folder)))
    done = {(row["remedy"], json.dumps(row["options"])) for row in record["rows"]}
    for remedy, options, system in jobs:
        check_same_catalog(system.item_ids, prepared, owner=remedy)
        if (remedy, json.dumps(options)) not in done:
            record["rows"].append({"remedy": remedy, "options": options} | lists.measure(system, options))
            write_json(record, path)
    Console().print(table_of(record))
    draw(record, path.with_suffix(".png"))


def parse_arguments() -> argparse.Namespace:
    parser = run_parser(__doc__, records="scripts/evidence/records/popularity")
    parser.add_argument("--others", metavar="NAME=RUN", nargs="*", default=[], help="other systems of the same items")
    parser.add_argument("--max-users", type=int, default=5000, help="a fixed sample (default 5000)")
    parser.add_argument("--beams", type=int, default=50, help="beams per user (default 50)")
    return parser.parse_args()


def remedies(recommender: Recommender, beams: int) -> list[tuple[str, dict[str, Any]]]:
    """Every setting of every remedy that the model knows, by name, plain beams first."""
    known = recommender.model.recommend_options
    plain = {"num_beams": beams} | ({"dense_weight": 0.0} if "dense_weight" in known else {})
    tried = [(PLAIN, plain)]
    tried += [("more beams", plain | {"num_beams": width}) for width in (4 * beams, 10 * beams)]
    tried += [("prior correction", plain | {"prior_correction": share}) for share in (0.1, 0.2, 0.4)]
    tried += [("diversity", plain | {"diversity": weight}) for weight in (0.1, 0.3, 0.5)]
    tried += [("five groups", plain | {"num_groups": 5, "group_penalty": nats}) for nats in (0.5, 1.0, 2.0)]
    if "dense_weight" in known:
        tried += [("two heads", plain | {"dense_weight": weight}) for weight in (0.5, 1.0, 2.0, 8.0)]
    return tried


def open_record(path: Path, arguments: argparse.Namespace, config: Any, prepared: PreparedDataset) -> dict[str, Any]:
    """The record as far as it got, or a new one."""
    record = {
        "name": arguments.name,
        "system": arguments.system or config.system_name,
        "dataset": arguments.dataset,
        "fingerprint": prepared.fingerprint,
        "weights": evaluation_run(arguments.run, num_beams=0, latent_aggregation="max").get("weights"),
        "num_items": config.num_items,
        "num_beams": arguments.beams,
        "num_users": min(arguments.max_users, len(prepared.split("validation"))),
        "rows": [],
    }
    if not path.exists():
        return record
    old = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name in ("fingerprint", "weights", "num_beams", "num_users") if old[name] != record[name]]
    if differing:
        raise SystemExit(f"{path} was begun with another {' and '.join(differing)}: choose another --name.")
    return record | {"rows": old["rows"]}


class Lists:
    """Lists of the same users by any system, and what they are like."""

    def __init__(self, prepared: PreparedDataset, codes: np.ndarray, arguments: argparse.Namespace) -> None:
        split = sampled_users(prepared.split("validation"), max_users=arguments.max_users, seed=SEED)
        self.codes, self.counts, self.item_ids = codes, prepared.train_item_counts(), prepared.item_ids
        self.histories = list(split["history"])
        self.targets = item_indices([[target] for target in split["target"]], item_ids=self.item_ids)[:, 0]

    def measure(self, system: Recommender, options: dict[str, Any]) -> dict[str, Any]:
        """Accuracy, popular prefixes by their length, and shared codes."""
        more = dict(options)
        if "prior_correction" in more:
            more["item_prior"] = torch.from_numpy(self.counts + 1.0)
        found = system.recommend(self.histories, top_k=TOP_K, exclude_seen=True, show_progress=True, **more)
        lists = item_indices(found.item_ids, item_ids=self.item_ids)
        ranks = ranks_of_targets(lists, self.targets)
        values = {f"recall@{TOP_K}": recall_per_user(ranks, k=TOP_K), f"ndcg@{TOP_K}": ndcg_per_user(ranks, k=TOP_K)}
        return {
            **{name: float(per_user.mean()) for name, per_user in values.items()},
            "intervals": {name: list(bootstrap_interval(per_user, seed=SEED)) for name, per_user in values.items()},
            f"coverage@{TOP_K}": coverage(lists, num_items=len(self.item_ids)),
            "by_prefix": popular_prefixes(lists, self.targets, codes=self.codes, counts=self.counts),
            "shared_codes": float(np.nanmean(shared_codes_per_user(lists, codes=self.codes))),
        }


def table_of(record: dict[str, Any]) -> Table:
    table = Table(title=f"{record['system']}, {record['dataset']}: popular prefixes")
    for name in ("remedy", "options", "ndcg@10", "recall@10", "coverage@10", "first code", "item", "codes shared"):
        table.add_column(name, justify="left" if name in ("remedy", "options") else "right")
    plain = record["rows"][0]["options"]
    for row in record["rows"]:
        figures = [f"{row[name]:.4f}" for name in ("ndcg@10", "recall@10", "coverage@10")]
        growth = [f"{row['by_prefix'][place]['amplification']:.2f}x" for place in (0, -1)]
        options = " ".join(f"{name}={value:g}" for name, value in row["options"].items() if value != plain.get(name))
        table.add_row(row["remedy"], options, *figures, *growth, f"{row['shared_codes']:.3f}")
    return table


def draw(record: dict[str, Any], path: Path) -> None:
    """Amplification against recall, a line per remedy that begins at plain beams."""
    first = record["rows"][0]
    panels = []
    for place, title in ((0, "popular first codes"), (-1, "popular items")):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in record["rows"]:
            start = [] if row is first or not row["options"] else [first]
            points = lines.setdefault(row["remedy"], [point_of(entry, place) for entry in start])
            points.append(point_of(row, place))
        panels.append(Panel(title, lines))
    plot_lines(panels, path, x_label="recall@10", y_label="share in lists / share in targets")


def point_of(row: dict[str, Any], place: int) -> tuple[float, float]:
    return row["recall@10"], row["by_prefix"][place]["amplification"]


if __name__ == "__main__":
    main()
