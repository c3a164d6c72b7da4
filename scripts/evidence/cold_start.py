"""
How items without any interaction get into lists: five ways, on a run that was trained without them.

    hf-genrec prepare ... --cold-items 0.05 --output DATA
    python scripts/evidence/cold_start.py RUN DATA --output scripts/evidence/records/cold_start.json

`RUN` is a model with two heads. Cold items have the ids and vectors that their texts give them and own rows of zeros,
as `catalog.add` makes them. Of the users whose target is cold and of a sample of the others:

    nothing        cold items are closed
    id only        they are in the trie and in the dense head like all others
    restricted     the best cold items alone, by `allow_items`: a shelf of new items
    dense          the best generated warm items and all cold ones, by the dense head (LIGER) plus an offset
    quota          the list without cold items, whose last places go to the best of `restricted`

Offset and places are chosen on validation users: the best recall@10 of cold targets among the settings that lose at
most `--loss` of the ndcg@10 of warm ones. Test users are read once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_genrec import PreparedDataset, Recommender
from hf_genrec.evaluation.metrics import bootstrap_interval
from hf_genrec.files import write_json


DEFAULT_OUTPUT = Path("scripts/evidence/records/cold_start.json")
OFFSETS = (-8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
PLACES = (1, 2, 3, 4, 5)
NUM_GENERATED = 20
Lists = list[list[str]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    data = PreparedDataset.load(options.data)
    recommender = Recommender.from_pretrained(options.run, device="cpu")
    cold = data.cold_item_ids
    forget(recommender, cold)
    chosen = {"offset": 0.0, "places": 0}
    record: dict[str, Any] = {"run": options.run.name, "num_cold_items": len(cold), "loss": options.loss}
    for split in ("validation", "test"):
        users = users_of(data, split, set(cold), options)
        asked = ask(recommender, users, cold)
        if split == "validation":
            offsets = {offset: figures(by_dense(asked, offset), users) for offset in OFFSETS}
            places = {number: figures(by_quota(asked, number), users) for number in PLACES}
            least = (1 - options.loss) * figures(asked["nothing"], users)["warm"]["ndcg@10"]
            chosen = {"offset": best_of(offsets, least), "places": best_of(places, least)}
            record |= {"chosen": chosen, "offsets": offsets, "quotas": places}
        lists = {name: asked[name] for name in ("nothing", "id only", "restricted")}
        lists |= {"dense": by_dense(asked, chosen["offset"]), "quota": by_quota(asked, int(chosen["places"]))}
        record[split] = {name: figures(of_way, users, intervals=True) for name, of_way in lists.items()}
        record[split]["num_users"] = {kind: int((users["is_cold"] == (kind == "cold")).sum()) for kind in KINDS}
        for name, found in record[split].items():
            print(split, name, found)
    write_json(record, options.output)


KINDS = ("cold", "warm")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with two heads")
    parser.add_argument("data", type=Path, help="prepared data with cold items")
    parser.add_argument("--warm-users", type=int, default=2_000, help="users with warm targets, drawn at random")
    parser.add_argument("--loss", type=float, default=0.03, help="share of the warm ndcg@10 that may be lost")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    return parser.parse_args(arguments)


def forget(recommender: Recommender, cold: Sequence[str]) -> None:
    """Zero the own rows of cold items: training has pushed these away from every history."""
    rows = recommender.model.item_table.rows
    if rows is not None:
        index = {item_id: row for row, item_id in enumerate(recommender.item_ids)}
        rows.weight.data[[index[item_id] for item_id in cold]] = 0


def users_of(data: PreparedDataset, split: str, cold: set[str], options: argparse.Namespace) -> dict[str, Any]:
    """All users with a cold target and some of the others: histories, targets, and which are which."""
    rows = data.split(split)
    targets = np.array(rows["target"])
    is_cold = np.array([target in cold for target in targets])
    warm = np.random.default_rng(0).permutation(np.flatnonzero(~is_cold))[: options.warm_users]
    chosen = np.sort(np.concatenate([np.flatnonzero(is_cold), warm]))
    histories = list(rows["history"])
    return {
        "histories": [histories[row] for row in chosen], "targets": targets[chosen], "is_cold": is_cold[chosen],
    }  # fmt: skip


def ask(recommender: Recommender, users: dict[str, Any], cold: Sequence[str]) -> dict[str, Any]:
    """The lists that all ways are made of."""
    histories, rule = users["histories"], {"exclude_seen": True}
    asked: dict[str, Any] = {
        "nothing": recommender.recommend(histories, top_k=10, exclude_items=cold, **rule).item_ids,
        "id only": recommender.recommend(histories, top_k=10, **rule).item_ids,
        "restricted": recommender.recommend(histories, top_k=10, allow_items=cold, **rule).item_ids,
        "generated": recommender.recommend(
            histories, top_k=NUM_GENERATED, exclude_items=cold, dense_weight=0.0, **rule
        ).item_ids,
        "cold": list(cold),
    }
    return asked | {"scores": dense_scores(recommender, histories), "item_ids": recommender.item_ids}


def dense_scores(recommender: Recommender, histories: Lists) -> np.ndarray:
    """Log-probabilities of all items by the dense head, `-inf` for those of the history."""
    now, parts = recommender._now, []
    rows, _ = now.look_up(histories)
    for start in range(0, len(rows), 256):
        scores = now.model.dense_scores(now.history_tokens(rows[start : start + 256])).numpy()
        for user, seen in enumerate(rows[start : start + 256]):
            scores[user, seen] = -np.inf
        parts.append(scores)
    return np.concatenate(parts)


def by_dense(asked: dict[str, Any], offset: float) -> Lists:
    """Generated warm items and all cold ones by the dense head."""
    index = {item_id: row for row, item_id in enumerate(asked["item_ids"])}
    cold, lists = np.array([index[item_id] for item_id in asked["cold"]]), []
    for scores, generated in zip(asked["scores"], asked["generated"], strict=True):
        candidates = np.concatenate([[index[item_id] for item_id in generated], cold]).astype(int)
        ranked = scores[candidates]
        ranked[len(generated) :] += offset
        best = candidates[np.argsort(-ranked, kind="stable")[:10]]
        lists.append([asked["item_ids"][row] for row in best])
    return lists


def by_quota(asked: dict[str, Any], places: int) -> Lists:
    """The last places of a list of ten go to the best cold items."""
    pairs = zip(asked["nothing"], asked["restricted"], strict=True)
    return [[*warm[: 10 - places], *cold[:places]] for warm, cold in pairs]


def best_of(found: dict[Any, dict[str, Any]], least: float) -> float:
    """The setting with the best recall of cold targets among those that keep enough of the warm ndcg@10."""
    kept = {setting: each for setting, each in found.items() if each["warm"]["ndcg@10"] >= least}
    if not kept:
        return max(found, key=lambda setting: found[setting]["warm"]["ndcg@10"])
    return max(kept, key=lambda setting: kept[setting]["cold"]["recall@10"])


def figures(lists: Lists, users: dict[str, Any], *, intervals: bool = False) -> dict[str, Any]:
    """recall@10 and ndcg@10 of cold and of warm targets; with `intervals` 95 % bootstrap intervals over users."""
    pairs = zip(lists, users["targets"], strict=True)
    ranks = np.array([items.index(target) if target in items else -1 for items, target in pairs])
    values = {"recall@10": (ranks >= 0).astype(float), "ndcg@10": np.where(ranks >= 0, 1 / np.log2(ranks + 2.0), 0.0)}
    found: dict[str, Any] = {}
    for kind in KINDS:
        mine = users["is_cold"] == (kind == "cold")
        found[kind] = {name: float(value[mine].mean()) for name, value in values.items()}
        if intervals:
            found[kind] |= {
                f"{name} interval": list(bootstrap_interval(value[mine])) for name, value in values.items()
            }
    return found


if __name__ == "__main__":
    main()
