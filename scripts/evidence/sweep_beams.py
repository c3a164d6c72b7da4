"""
What more beams bring a trained run: ndcg@10, recall@10, distinct items among the beams and milliseconds per user.

    python scripts/evidence/sweep_beams.py RUN PREPARED --name psid --dataset "Beauty 2014" --split validation
    python scripts/evidence/sweep_beams.py RUN PREPARED --name psid --dataset "Beauty 2014"
    python scripts/evidence/sweep_beams.py RUN PREPARED --name psid --dataset "Beauty 2014" --chosen 50 max

All users of the split are ranked over the whole catalog, and some fixed users by the exact score of every item (a beam
for every path), so that the search can be compared with what it approximates. One search serves both aggregations
over latents; sum with the best items re-scored exactly is a row of its own. Every finished row is written to the
record and skipped the next time; `--chosen` notes the default that the validation rows suggest. `--retime 512`
measures the milliseconds of the finished rows again, on so many users, once the machine is quiet.
`scripts/evidence/write_results.py` makes the page.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from decoding_results import find_row, load_sweeps, sweep_label, sweep_plot_name
from hf_genrec import PreparedDataset, Recommender
from hf_genrec.evaluation.metrics import bootstrap_interval, ndcg_per_user, ranks_of_targets, recall_per_user
from hf_genrec.evaluation.record import evaluation_run
from hf_genrec.files import write_json
from hf_genrec.modeling.genrec_beams import beam_search, list_items, rank_ids
from hf_genrec.training.initial import check_same_catalog
from line_plots import Panel, plot_lines


TOP_K = 10
SEED = 0  # of the fixed users and of the bootstrap


@dataclass(frozen=True)
class Result:
    """Rank of each user's target (-1: not recommended), mean number of distinct items among the beams, seconds."""

    ranks: np.ndarray
    num_distinct_items: float | None
    seconds: float


class Users:
    """Histories and targets of a split as the model wants them, in batches of about equal length."""

    def __init__(self, model: Any, prepared: PreparedDataset, split: str) -> None:
        config, rows = model.config, prepared.split(split)
        index_of = {item_id: index for index, item_id in enumerate(prepared.item_ids)}
        self.model = model
        self.targets = np.array([index_of[target] for target in rows["target"]])
        self.histories = [
            [config.first_item_token + index_of[item] for item in history if item in index_of][
                -config.max_history_length :
            ]
            for history in rows["history"]
        ]

    def __len__(self) -> int:
        return len(self.targets)

    def sample(self, size: int) -> np.ndarray:
        """So many users, always the same."""
        return np.sort(np.random.default_rng(SEED).choice(len(self), size=min(size, len(self)), replace=False))

    def batches(self, users: np.ndarray, batch_size: int, label: str) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Positions in `users` and item tokens; a progress bar shows how many are done."""
        lengths = np.array([len(self.histories[user]) for user in users])
        order = np.argsort(lengths, kind="stable")
        with tqdm(total=len(users), desc=label, unit=" users") as bar:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                yield rows, self.tokens(users[rows])
                bar.update(len(rows))

    def tokens(self, users: np.ndarray) -> torch.Tensor:
        batch = [self.histories[user] for user in users]
        tokens = np.full((len(batch), max(1, *map(len, batch))), self.model.config.pad_token_id, dtype=np.int64)
        for row, history in enumerate(batch):
            tokens[row, : len(history)] = history
        return torch.from_numpy(tokens).to(self.model.device)


def main() -> None:
    arguments = parse_arguments()
    prepared = PreparedDataset.load(arguments.prepared)
    recommender = Recommender.from_pretrained(arguments.run, device=arguments.device)
    check_same_catalog(recommender.item_ids, prepared, owner=str(arguments.run))
    path = arguments.records / f"{arguments.name}.json"
    record = open_record(path, arguments, recommender.model.config, prepared)
    users = Users(recommender.model, prepared, arguments.split)
    if arguments.retime:
        retime(record, users, arguments)
    else:
        fill(record, users, arguments, path)
    if arguments.chosen:
        record["chosen"] = chosen(record, *arguments.chosen)
    write_json(record, path)
    Console().print(table_of(record))
    draw(arguments.records, record["dataset"])


def run_parser(description: str | None, *, records: str) -> argparse.ArgumentParser:
    """Options of every sweep over a trained run."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that `hf-genrec train` wrote")
    parser.add_argument("prepared", help="folder that `hf-genrec prepare` wrote")
    parser.add_argument("--name", required=True, help="name of the record: small letters, digits, - and _")
    parser.add_argument("--dataset", required=True, help="name of the data set on the page")
    parser.add_argument("--system", help="name of the system (default: from the model)")
    parser.add_argument("--batch-size", type=int, default=32, help="users searched at a time (default 32)")
    parser.add_argument("--records", type=Path, default=Path(records), help=f"folder of records (default {records})")
    return parser


def parse_arguments() -> argparse.Namespace:
    parser = run_parser(__doc__, records="scripts/evidence/records/beams")
    parser.add_argument("--split", default="test", choices=["validation", "test"], help="default test")
    parser.add_argument("--beams", type=int, nargs="+", default=[10, 50, 200, 500], help="default 10 50 200 500")
    parser.add_argument("--latent-aggregation", nargs="+", default=["max", "sum"], choices=["max", "sum"])
    parser.add_argument("--num-rescored", type=int, default=50, help="items re-scored exactly (default 50; 0: none)")
    parser.add_argument("--exact-users", type=int, default=500, help="users scored exactly (default 500; 0: none)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--chosen", nargs=2, metavar=("BEAMS", "AGGREGATION"), help="note the default, e.g. 50 max")
    parser.add_argument("--retime", type=int, metavar="USERS", help="only measure the milliseconds again")
    return parser.parse_args()


def open_record(path: Path, arguments: argparse.Namespace, config: Any, prepared: PreparedDataset) -> dict[str, Any]:
    """The record as far as it got, or a new one."""
    run = evaluation_run(arguments.run, num_beams=0, latent_aggregation="max")
    record = {
        "name": arguments.name,
        "system": arguments.system or config.system_name,
        "dataset": arguments.dataset,
        "protocol": prepared.metadata["protocol"],
        "fingerprint": prepared.fingerprint,
        "model": run["model"],
        "weights": run.get("weights"),
        "num_items": config.num_items,
        "num_latent_tokens": config.num_latent_tokens,
        "threads": torch.get_num_threads(),
        "rows": [],
    }
    if not path.exists():
        return record
    old = next(sweep for sweep in load_sweeps(path.parent) if sweep["name"] == arguments.name)
    differing = [name for name in ("fingerprint", "weights") if old[name] != record[name]]
    if differing:
        raise SystemExit(f"{path} was begun with another {' and '.join(differing)}: choose another --name.")
    return record | {name: old[name] for name in ("rows", "chosen") if name in old}


# --- measuring -------------------------------------------------------------------------------------------------------


def fill(record: dict[str, Any], users: Users, arguments: argparse.Namespace, path: Path) -> None:
    """Measure the rows that are missing; the record is written after each."""
    config = users.model.config
    aggregations = arguments.latent_aggregation if config.num_latent_tokens else ["max"]  # alike without latents
    sample = users.sample(arguments.exact_users)

    def add(result: Result, who: np.ndarray, **settings: Any) -> None:
        record["rows"].append(row_of(result, who, sample, split=arguments.split, device=arguments.device, **settings))
        write_json(record, path)

    def missing(settings: dict[str, Any]) -> bool:
        return find_row(record, split=arguments.split, **settings) is None

    everybody = np.arange(len(users))
    for num_beams in arguments.beams:
        wanted = [name for name in aggregations if missing(settings_of(num_beams, name))]
        results = search(users, everybody, num_beams, wanted, arguments.batch_size) if wanted else {}
        for name, result in results.items():
            add(result, everybody, **settings_of(num_beams, name), batch_size=arguments.batch_size)
        settings = settings_of(num_beams, "sum", arguments.num_rescored)
        if config.num_latent_tokens and arguments.num_rescored and missing(settings):
            result = rescored(users, everybody, num_beams, arguments.num_rescored, arguments.batch_size)
            add(result, everybody, **settings, batch_size=arguments.batch_size)
    wanted = [name for name in aggregations if len(sample) and missing(settings_of(None, name))]
    # a search with a beam for every path leaves nothing out, and computes shared prefixes once
    for name, result in (search(users, sample, config.num_paths, wanted, 1) if wanted else {}).items():
        add(replace(result, num_distinct_items=None), sample, **settings_of(None, name), batch_size=1)


def retime(record: dict[str, Any], users: Users, arguments: argparse.Namespace) -> None:
    """Replace the milliseconds of finished rows by those of some users, one row after the other."""
    some = users.sample(arguments.retime)
    for row in record["rows"]:
        if row["split"] != arguments.split or row["num_beams"] not in arguments.beams:
            continue
        beams, name, size = row["num_beams"], row["latent_aggregation"], arguments.batch_size
        if row["num_rescored"]:
            result = rescored(users, some, beams, row["num_rescored"], size)
        else:
            result = search(users, some, beams, [name], size)[name]
        row["milliseconds_per_user"][arguments.device] = milliseconds(result, len(some))
        row["batch_size"] = size


def settings_of(num_beams: int | None, latent_aggregation: str, num_rescored: int = 0) -> dict[str, Any]:
    """What distinguishes the rows of a split; no beams stand for exact scores."""
    return {"num_beams": num_beams, "latent_aggregation": latent_aggregation, "num_rescored": num_rescored}


@torch.no_grad()
def search(
    users: Users, who: np.ndarray, num_beams: int, aggregations: Sequence[str], batch_size: int
) -> dict[str, Result]:
    """One search for all aggregations. Like `recommend()` it widens where the beams hold too few items."""
    model, top_k = users.model, min(TOP_K, users.model.config.num_items)
    ranks = {name: np.full(len(who), -1) for name in aggregations}
    num_distinct, seconds = 0, dict.fromkeys(aggregations, 0.0)
    model.recommend(users.tokens(who[:1]), top_k=1, num_beams=num_beams)  # what is built once is nobody's time
    for rows, tokens in users.batches(who, batch_size, f"{num_beams} beams"):
        start = time.perf_counter()
        width = min(num_beams, model.config.num_paths)
        beams = beam_search(model, model.encode_history(tokens), num_beams=width)
        shared = time.perf_counter() - start
        num_distinct += count_distinct(beams.leaves)
        for name in aggregations:
            start = time.perf_counter()
            ids = rank_ids(beams, top_k=top_k, latent_aggregation=name)
            items, scores = list_items(model.catalog, *ids, top_k=top_k)
            short = (scores == -float("inf")).any(1)
            if bool(short.any()):
                output = model.recommend(tokens[short], top_k=top_k, num_beams=2 * width, latent_aggregation=name)
                items[short] = output.item_tokens - model.config.first_item_token
            ranks[name][rows] = ranks_of_targets(items.cpu().numpy(), users.targets[who[rows]])
            seconds[name] += shared + time.perf_counter() - start
    return {name: Result(ranks[name], num_distinct / len(who), seconds[name]) for name in aggregations}


def count_distinct(leaves: torch.Tensor) -> int:
    """Distinct items of each user, summed over the users; a dead beam (-1) ends nowhere."""
    ordered = leaves.sort(dim=1).values
    is_first = torch.nn.functional.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True)
    return int((is_first & (ordered >= 0)).sum())


def rescored(users: Users, who: np.ndarray, num_beams: int, num_rescored: int, batch_size: int) -> Result:
    """`recommend()` with the best items scored again, exactly and over all latents."""
    model, seconds = users.model, 0.0
    ranks = np.full(len(who), -1)
    options = {"latent_aggregation": "sum", "num_rescored": num_rescored, "num_beams": num_beams}
    for rows, tokens in users.batches(who, batch_size, f"{num_beams} beams, {num_rescored} re-scored"):
        start = time.perf_counter()
        output = model.recommend(tokens, top_k=min(TOP_K, model.config.num_items), **options)
        items = (output.item_tokens - model.config.first_item_token).cpu().numpy()
        seconds += time.perf_counter() - start
        ranks[rows] = ranks_of_targets(items, users.targets[who[rows]])
    return Result(ranks, None, seconds)


def milliseconds(result: Result, num_users: int) -> float:
    return round(1000 * result.seconds / num_users, 3)


def row_of(result: Result, who: np.ndarray, sample: np.ndarray, *, device: str, **settings: Any) -> dict[str, Any]:
    """One row of the record. Of the fixed users it keeps the hits, so that rows can be compared user by user."""
    values = {
        f"recall@{TOP_K}": recall_per_user(result.ranks, k=TOP_K),
        f"ndcg@{TOP_K}": ndcg_per_user(result.ranks, k=TOP_K),
    }
    ranks = dict(zip(who.tolist(), result.ranks.tolist(), strict=True))
    return {
        **settings,
        "num_users": len(who),
        **{name: float(per_user.mean()) for name, per_user in values.items()},
        "intervals": {name: list(bootstrap_interval(per_user, seed=SEED)) for name, per_user in values.items()},
        "num_distinct_items": result.num_distinct_items,
        "milliseconds_per_user": {device: milliseconds(result, len(who))},
        "sample": {
            "num_users": len(sample),
            "hits": {str(user): ranks[user] for user in sample.tolist() if ranks[user] >= 0},
        },
    }


def chosen(record: dict[str, Any], num_beams: str, latent_aggregation: str) -> dict[str, Any]:
    """The default; it must have been measured on the validation split."""
    settings = settings_of(int(num_beams), latent_aggregation)
    if find_row(record, split="validation", **settings) is None:
        raise SystemExit(
            f"--chosen {num_beams} {latent_aggregation}: no such row of the validation split; measure it."
        )
    return settings


# --- showing ---------------------------------------------------------------------------------------------------------


def table_of(record: dict[str, Any]) -> Table:
    table = Table(title=f"{record['system']}, {record['dataset']}: beams")
    for name in ("split", "decoding", "beams", "users", "ndcg@10", "recall@10", "distinct", "ms/user"):
        table.add_column(name, justify="left" if name in ("split", "decoding") else "right")
    for row in record["rows"]:
        distinct, times = row["num_distinct_items"], row["milliseconds_per_user"]
        table.add_row(
            row["split"],
            sweep_label(record, row),
            "all" if row["num_beams"] is None else str(row["num_beams"]),
            f"{row['num_users']:,}",
            f"{row['ndcg@10']:.4f}",
            f"{row['recall@10']:.4f}",
            "" if distinct is None else f"{distinct:.1f}",
            ", ".join(f"{time:.2f} ({device})" for device, time in times.items()),
        )
    return table


def draw(folder: Path, dataset: str) -> None:
    """All records of the data set in one plot: ndcg@10 against milliseconds per user, on test if it was measured."""
    found = list(rows_of(load_sweeps(folder), dataset))
    split = "test" if any(row["split"] == "test" for _, row in found) else "validation"
    lines: dict[str, list[tuple[float, float]]] = {}
    intervals: dict[str, list[tuple[float, float]]] = {}
    for record, row in found:
        if row["split"] != split:
            continue
        for device, time_per_user in row["milliseconds_per_user"].items():
            name = f"{sweep_label(record, row)}, {device}"
            lines.setdefault(name, []).append((time_per_user, row["ndcg@10"]))
            intervals.setdefault(name, []).append(tuple(row["intervals"]["ndcg@10"]))
    if lines:
        path = folder / sweep_plot_name(dataset)
        panel = Panel(f"{dataset}, {split} split", lines, intervals)
        plot_lines([panel], path, x_label="milliseconds per user", y_label="ndcg@10", log_x=True)


def rows_of(records: Iterable[dict[str, Any]], dataset: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for record in records:
        if record["dataset"] == dataset:
            for row in record["rows"]:
                if row["num_beams"] is not None:
                    yield record, row


if __name__ == "__main__":
    main()
