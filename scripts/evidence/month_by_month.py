"""
A shop over months: items come, the model is fine-tuned each month, and the next month says how well it did.

    python scripts/evidence/month_by_month.py LOG ITEMS --encoder FOLDER --work FOLDER

`LOG` is a `.csv` of `user_id,item_id,timestamp`, `ITEMS` its table of items. The model is trained on the first
`--first` months. At the start of each later month the items that appear in it are added from their titles, and the
users who buy in it and have bought before get a list of ten; what they buy in that month are the targets. Then the
month is over: those who bought in it, with their last items before, are the log to go on with.

    frozen         the model of the first months, and their items
    items added    the same model with all items that came since (`catalog.add`)
    fine-tuned     also trained on each month once it is over (`train --from`): ids and rows are kept
    retrained      a new model with new ids, trained on everything before the month; in the months of `--retrain`

A list is without items of the history. Figures are means over users of those over their targets, for all targets and
for those that appear in the month; intervals are bootstrapped over users. No setting is chosen by any of them.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec import PreparedDataset, Recommender
from hf_genrec.cli.main import app
from hf_genrec.evaluation.metrics import bootstrap_interval
from hf_genrec.files import write_json
from hf_genrec.tokenizers.embeddings import embed_texts
from line_plots import Panel, plot_lines


DEFAULT_OUTPUT = Path("scripts/evidence/records/month_by_month.json")
NETWORK = ["--latents", "0", "--dense-head", "--d-model", "64", "--d-ff", "256", "--d-kv", "32", "--heads", "2",
           "--max-history", "50", "--dropout", "0.1", "--set", "marked_tokens=all"]  # fmt: skip
HOW = ["--batch-size", "256", "--precision", "fp32", "--threads", "1", "--seed", "1", "--eval-steps", "0.5"]
NUM_BEFORE = 10  # items before the month that a user's part of the log to go on with begins with
TOP_K = 10
WAYS = ("frozen", "items added", "fine-tuned", "retrained")


@dataclass
class Shop:
    """The whole log, the titles of its items and their vectors, by item id."""

    log: pd.DataFrame
    titles: dict[str, str]
    vectors: dict[str, np.ndarray]
    work: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def before(self, month: pd.Period) -> pd.DataFrame:
        """What was bought before a month."""
        return self.log[self.log["month"] < month]

    def items_of(self, log: pd.DataFrame) -> list[str]:
        """The items of a part of the log in the order in which they appear."""
        return log["item_id"].drop_duplicates().tolist()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    shop = open_shop(options)
    months = sorted(shop.log["month"].unique())[: options.months]
    start, later = months[options.first], months[options.first :]
    first = train_anew(shop, start, options)
    tuned = shutil.copytree(first, options.work / "tuned", dirs_exist_ok=True)
    added = shutil.copytree(first, options.work / "added", dirs_exist_ok=True)
    record: dict[str, Any] = {"first_months": options.first, "num_items": len(shop.titles), "months": []}
    for month in later:
        runs = {"frozen": first, "items added": added, "fine-tuned": tuned}
        if str(month) in options.retrain:
            runs["retrained"] = train_anew(shop, month, options)
        record["months"].append(measure(shop, month, runs))
        print(record["months"][-1])
        tuned = go_on(shop, month, tuned, options)
    record["seconds"] = shop.seconds
    for way in WAYS[2:]:  # the months that it has
        record.setdefault("together", {})[way] = together([each for each in record["months"] if way in each["ways"]])
    for month in record["months"]:
        month.pop("values")
    write_json(record, options.output)
    draw(record, options.output.with_suffix(".png"))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="user_id,item_id,timestamp")
    parser.add_argument("items", type=Path, help=".jsonl with item_id and title")
    parser.add_argument("--encoder", required=True, help="folder or name of a sentence-transformers model")
    parser.add_argument("--work", type=Path, required=True, help="a folder for data and runs; emptied first")
    parser.add_argument("--first", type=int, default=4, help="months that the first model is trained on")
    parser.add_argument("--months", type=int, default=12, help="months in all; later ones are left out")
    parser.add_argument("--retrain", nargs="*", default=["2011-07", "2011-10"], help="months with a model made anew")
    parser.add_argument("--epochs", default="4", help="of models made anew")
    parser.add_argument("--tuning-epochs", default="2", help="of a month to go on with")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    return parser.parse_args(arguments)


def open_shop(options: argparse.Namespace) -> Shop:
    log = pd.read_csv(options.log, dtype={"user_id": str, "item_id": str}, parse_dates=["timestamp"])
    log = log.sort_values("timestamp", kind="stable")
    log["month"] = log["timestamp"].dt.to_period("M")
    items = pd.read_json(options.items, lines=True, dtype={"item_id": str})
    titles = dict(zip(items["item_id"], items["title"], strict=True))
    vectors = embed_texts([*titles.values()], model_name=options.encoder)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    return Shop(log, titles, dict(zip(titles, vectors, strict=True)), options.work)


def train_anew(shop: Shop, month: pd.Period, options: argparse.Namespace) -> Path:
    """A model of everything before a month, with ids of its own."""
    folder = shop.work / f"anew-{month}"
    log, began = shop.before(month), time.process_time()
    data = prepared(shop, log, shop.items_of(log), folder / "data")
    vectors = np.stack([shop.vectors[item_id] for item_id in PreparedDataset.load(data).item_ids])
    np.save(folder / "texts.npy", vectors)
    verb("embed", data, "--matrix", folder / "texts.npy", "--behavior", "svd", "--output", folder / "vectors")
    verb("tokenize", data, "--embeddings", folder / "vectors", "--output", folder / "ids")
    made = ["--ids", folder / "ids", "--embeddings", folder / "vectors"]
    how = ["--epochs", options.epochs, "--learning-rate", "3e-3", *HOW]
    verb("train", data, *made, *NETWORK, *how, "--output", folder / "run")
    shop.seconds[f"anew {month}"] = time.process_time() - began
    return folder / "run"


def go_on(shop: Shop, month: pd.Period, run: Path, options: argparse.Namespace) -> Path:
    """The run of the next month: trained on those who bought in this one, with the same ids and rows."""
    folder, began = shop.work / f"tuned-{month}", time.process_time()
    log = shop.log[shop.log["month"] <= month]
    log = log[log["user_id"].isin(log.loc[log["month"] == month, "user_id"])]
    earlier = log[log["month"] < month]
    is_before = earlier.groupby("user_id").cumcount(ascending=False) < NUM_BEFORE
    log = pd.concat([earlier[is_before], log[log["month"] == month]])
    data = prepared(shop, log, Recommender.from_pretrained(run, device="cpu").item_ids, folder / "data")
    how = ["--epochs", options.tuning_epochs, "--learning-rate", "1e-3", *HOW]
    verb("train", data, "--from", run, *how, "--output", folder / "run")
    shop.seconds[f"tuned {month}"] = time.process_time() - began
    return folder / "run"


def prepared(shop: Shop, log: pd.DataFrame, item_ids: Sequence[str], folder: Path) -> Path:
    """A part of the log over some items, which all are kept in their order."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    log[["user_id", "item_id", "timestamp"]].to_csv(folder.parent / "log.csv", index=False)
    pq.write_table(table_of(shop, item_ids), folder.parent / "items.parquet")
    verb("prepare", "--interactions", folder.parent / "log.csv", "--items", folder.parent / "items.parquet",
         "--keep-all-items", "--output", folder)  # fmt: skip
    return folder


def table_of(shop: Shop, item_ids: Sequence[str]) -> pa.Table:
    """Ids and titles as `prepare` and `catalog.add` read them."""
    return pa.table({"item_id": list(item_ids), "title": [shop.titles[item_id] for item_id in item_ids]})


def verb(*words: object) -> None:
    """A command of `hf-genrec`."""
    app([str(word) for word in words], standalone_mode=False)


def measure(shop: Shop, month: pd.Period, runs: dict[str, Path]) -> dict[str, Any]:
    """What each model lists at the start of a month, compared with what was bought in it."""
    earlier, now = shop.before(month), shop.log[shop.log["month"] == month]
    histories = earlier.groupby("user_id")["item_id"].agg(list)
    users = [user for user in now["user_id"].unique() if user in histories.index]
    targets = now.groupby("user_id")["item_id"].agg(list)
    new = set(now["item_id"]) - set(earlier["item_id"])
    found: dict[str, Any] = {"month": str(month), "num_new_items": len(new), "num_users": len(users), "ways": {}}
    found["values"] = {}
    for way, run in runs.items():
        recommender = Recommender.from_pretrained(run, device="cpu", batch_size=256)
        late = [item_id for item_id in shop.items_of(shop.log[shop.log["month"] <= month])
                if item_id not in set(recommender.item_ids)]  # fmt: skip
        if late and way != "frozen":
            began = time.process_time()
            recommender.catalog.add(table_of(shop, late), vectors=np.stack([shop.vectors[each] for each in late]))
            shop.seconds["additions"] = shop.seconds.get("additions", 0.0) + time.process_time() - began
        lists = recommender.recommend([histories[user] for user in users], top_k=TOP_K, exclude_seen=True).item_ids
        values = values_of(lists, [targets[user] for user in users], new)
        found["values"][way] = values
        found["ways"][way] = {name: summary(value) for name, value in values.items()}
    return found


def values_of(lists: list[list[str]], targets: list[list[str]], new: set[str]) -> dict[str, np.ndarray]:
    """Means over the targets of each user; of new ones only for users who have any."""
    found: dict[str, list[float]] = {"recall@10": [], "ndcg@10": [], "recall@10 new": [], "ndcg@10 new": []}
    for items, wanted in zip(lists, targets, strict=True):
        place = {item_id: rank for rank, item_id in enumerate(items)}
        for kind, some in (("", wanted), (" new", [item_id for item_id in wanted if item_id in new])):
            if some:
                ranks = [place.get(item_id) for item_id in some]
                found[f"recall@10{kind}"].append(float(np.mean([rank is not None for rank in ranks])))
                gains = [0.0 if rank is None else 1 / np.log2(rank + 2) for rank in ranks]
                found[f"ndcg@10{kind}"].append(float(np.mean(gains)))
    return {name: np.array(values) for name, values in found.items()}


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean, 95 % interval and number of users."""
    if not len(values):
        return {"mean": 0.0, "interval": [0.0, 0.0], "num_users": 0}
    return {
        "mean": float(values.mean()), "interval": list(bootstrap_interval(values)), "num_users": len(values),
    }  # fmt: skip


def together(months: list[dict[str, Any]]) -> dict[str, Any]:
    """The users of some months as one, by the ways that all of these have."""
    return {
        way: {
            name: summary(np.concatenate([month["values"][way][name] for month in months]))
            for name in months[0]["values"][way]
        }
        for way in WAYS
        if months and all(way in month["values"] for month in months)
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """recall@10 by month, of all targets and of those that appear in the month."""
    numbers = {month["month"]: int(month["month"].split("-")[1]) for month in record["months"]}
    panels = []
    for title, name in (("all targets", "recall@10"), ("items of the month", "recall@10 new")):
        lines: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        intervals: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for month in record["months"]:
            for way, found in month["ways"].items():
                lines[way].append((numbers[month["month"]], found[name]["mean"]))
                intervals[way].append(tuple(found[name]["interval"]))
        panels.append(Panel(title, lines, intervals))
    plot_lines(panels, path, x_label="month", y_label="recall@10", x_ticks=sorted(numbers.values()))


if __name__ == "__main__":
    main()
