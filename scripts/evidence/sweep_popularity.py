"""
What `prior_correction` does to a trained run: recall, ndcg and how much of the catalog is shown.

    python scripts/evidence/sweep_popularity.py RUN PREPARED --name beauty_psid --dataset "Amazon 2014 Beauty"
    python scripts/evidence/sweep_popularity.py RUN PREPARED --name x --dataset X --corrections 0.1 0.3

Users of the validation split, ranked over the whole catalog. The prior of an item is its number of training
interactions plus one. Finished rows are skipped the next time; rows of committed records with another temperature than
1 are of an option that the library had once. `scripts/evidence/write_results.py` makes the page.
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
from hf_genrec.evaluation.metrics import bootstrap_interval, ndcg_per_user, ranks_of_targets, recall_per_user
from hf_genrec.evaluation.record import evaluation_run
from hf_genrec.files import write_json
from hf_genrec.training.initial import check_same_catalog
from sweep_beams import SEED, TOP_K, Users, run_parser


def main() -> None:
    arguments = parse_arguments()
    prepared = PreparedDataset.load(arguments.prepared)
    recommender = Recommender.from_pretrained(arguments.run)
    check_same_catalog(recommender.item_ids, prepared, owner=str(arguments.run))
    path = arguments.records / f"{arguments.name}.json"
    record = open_record(path, arguments, recommender.model.config, prepared)
    users = Users(recommender.model, prepared, "validation")
    prior = torch.from_numpy(prepared.train_item_counts() + 1.0)
    for correction in (0.0, *arguments.corrections):
        if (1.0, correction) not in {(row["temperature"], row["correction"]) for row in record["rows"]}:
            record["rows"].append(measure(users, arguments, prior, correction))
            write_json(record, path)
    Console().print(table_of(record))


def parse_arguments() -> argparse.Namespace:
    parser = run_parser(__doc__, records="scripts/evidence/records/popularity")
    parser.add_argument("--corrections", type=float, nargs="*", default=[0.1, 0.2, 0.4], help="shares of the prior")
    parser.add_argument("--max-users", type=int, default=5000, help="a fixed sample (default 5000)")
    parser.add_argument("--beams", type=int, default=50, help="beams per user (default 50)")
    return parser.parse_args()


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


def measure(users: Users, arguments: argparse.Namespace, prior: torch.Tensor, correction: float) -> dict[str, Any]:
    """One row of the record."""
    config, who = users.model.config, users.sample(arguments.max_users)
    options: dict[str, Any] = {"prior_correction": correction, "item_prior": prior} if correction else {}
    ranks, shown = np.full(len(who), -1), np.zeros(config.num_items, dtype=bool)
    for rows, tokens in users.batches(who, arguments.batch_size, f"prior {correction}"):
        output = users.model.recommend(tokens, top_k=TOP_K, num_beams=arguments.beams, **options)
        items = (output.item_tokens - config.first_item_token).cpu().numpy()
        ranks[rows] = ranks_of_targets(items, users.targets[who[rows]])
        shown[items[items >= 0]] = True
    values = {f"recall@{TOP_K}": recall_per_user(ranks, k=TOP_K), f"ndcg@{TOP_K}": ndcg_per_user(ranks, k=TOP_K)}
    return {
        "temperature": 1.0,
        "correction": correction,
        **{name: float(per_user.mean()) for name, per_user in values.items()},
        "intervals": {name: list(bootstrap_interval(per_user, seed=SEED)) for name, per_user in values.items()},
        f"coverage@{TOP_K}": float(shown.mean()),
    }


def table_of(record: dict[str, Any]) -> Table:
    table = Table(title=f"{record['system']}, {record['dataset']}: popularity")
    for name in ("temperature", "correction", "ndcg@10", "recall@10", "coverage@10"):
        table.add_column(name, justify="right")
    for row in record["rows"]:
        figures = [f"{row[name]:.4f}" for name in ("ndcg@10", "recall@10", "coverage@10")]
        table.add_row(f"{row['temperature']:g}", f"{row['correction']:g}", *figures)
    return table


if __name__ == "__main__":
    main()
