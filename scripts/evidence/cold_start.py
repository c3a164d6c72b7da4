"""
How items without any interaction get into lists: six ways, on a run that was trained without them.

    hf-genrec prepare ... --cold-items 0.05 --output DATA
    python scripts/evidence/cold_start.py RUN DATA EMBEDDINGS --name Beauty

The rows of the cold items are taken out of the model of `RUN`, and then they are added as a shop would:
`catalog.add`, from their vectors in `EMBEDDINGS` (a model without semantic IDs learns first what rows such vectors
have). Of the users whose target is cold and of a sample of the others:

    nothing        cold items are not in the catalog
    id only        they are ranked with all others (`num_new_items=0`, `new_item_margin=0`)
    restricted     the best cold items alone, by `allow_items`: a shelf of new items
    dense          the best generated warm items and all cold ones, by the dense head (LIGER) plus an offset
    quota          the last places of a list are theirs (`num_new_items`) and no other ones
    margin         the same, and they stand higher where their scores exceed others by a margin (`new_item_margin`)

Offset, places and margin are chosen on validation users: the best recall@10 of cold targets (of equal ones the best
ndcg@10) among the settings that lose at most `--loss` of the ndcg@10 of warm ones. Test users are read once.
The record has an entry for each `--name`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmark_live_catalog import rebuilt_model
from hf_genrec import PreparedDataset, Recommender
from hf_genrec.evaluation.metrics import bootstrap_interval
from hf_genrec.files import write_json
from hf_genrec.modeling.genrec_lists import with_new_items
from hf_genrec.serving.catalog.learned_rows import learned_rows, parts_of
from hf_genrec.serving.recommendations import Recommendations
from hf_genrec.tokenizers.folder import QUANTIZER_NAME, read_embeddings


DEFAULT_OUTPUT = Path("scripts/evidence/records/cold_start.json")
OFFSETS = (-8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
PLACES = (1, 2, 3, 4, 5)
MARGINS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
NUM_GENERATED = 20
KINDS = ("cold", "warm")
Lists = list[list[str]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    data = PreparedDataset.load(options.data)
    cold = data.cold_item_ids
    with tempfile.TemporaryDirectory() as folder:
        recommender = without_then_added(options.run, data, options.embeddings, Path(folder))
    record: dict[str, Any] = {"model": type(recommender.model).__name__, "num_cold_items": len(cold)}
    record |= {"newest_by": data.metadata["cold_items"]["newest_by"], "loss": options.loss}
    for split in ("validation", "test"):
        users = users_of(data, split, set(cold), options)
        asked = ask(recommender, users, cold)
        if split == "validation":
            record |= chosen_settings(asked, users, loss=options.loss)
        lists = {name: asked[name] for name in ("nothing", "id only", "restricted")}
        lists["quota"] = by_quota(asked, record["places"])
        lists["margin"] = by_margin(asked, *record["margin"])
        if "offset" in record:
            lists["dense"] = by_dense(asked, record["offset"])
        record[split] = {name: figures(of_way, users, beside=lists["nothing"]) for name, of_way in lists.items()}
        record[split]["num_users"] = {kind: int((users["is_cold"] == (kind == "cold")).sum()) for kind in KINDS}
        for name, found in record[split].items():
            print(split, name, found)
    known = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    write_json(known | {options.name: record}, options.output)


def chosen_settings(asked: dict[str, Any], users: dict[str, Any], *, loss: float) -> dict[str, Any]:
    """Places and offset, each chosen on these users, with the figures of all that were tried."""
    least = (1 - loss) * figures(asked["nothing"], users)["warm"]["ndcg@10"]
    quotas = {number: figures(by_quota(asked, number), users) for number in PLACES}
    chosen: dict[str, Any] = {"places": int(best_of(quotas, least)), "quotas": quotas}
    margins = {
        (number, margin): figures(by_margin(asked, number, margin), users)
        for number in (0, 1, 2) for margin in MARGINS
    }  # fmt: skip
    chosen["margin"] = best_of(margins, least)
    chosen["margins"] = [{"places": number, "margin": margin} | found for (number, margin), found in margins.items()]
    if "scores" in asked:
        offsets = {offset: figures(by_dense(asked, offset), users) for offset in OFFSETS}
        chosen |= {"offset": best_of(offsets, least), "offsets": offsets}
    return chosen


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("data", type=Path, help="prepared data with cold items")
    parser.add_argument("embeddings", type=Path, help="embeddings of the items that the ids were made of")
    parser.add_argument("--name", default="Scientific", help="what the entry of the record is called")
    parser.add_argument("--warm-users", type=int, default=2_000, help="users with warm targets, drawn at random")
    parser.add_argument("--loss", type=float, default=0.03, help="share of the warm ndcg@10 that may be lost")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    return parser.parse_args(arguments)


def without_then_added(run: Path, data: PreparedDataset, embeddings: Path, folder: Path) -> Recommender:
    """The recommender of a run without the rows of the cold items, to which they are then added."""
    whole, cold = Recommender.from_pretrained(run, device="cpu"), set(data.cold_item_ids)
    vectors, _ = read_embeddings(embeddings, data)
    is_warm = np.array([item_id not in cold for item_id in whole.item_ids])
    model = rebuilt_model(whole.model, torch.from_numpy(is_warm))
    columns = [name for name in whole.items.column_names if name != "codes"]
    items = whole.items.select(columns)
    quantizer = run / QUANTIZER_NAME
    Recommender(model, items.filter(pa.array(is_warm))).save_pretrained(
        folder / "warm", quantizer=quantizer if quantizer.is_dir() else None
    )
    recommender = Recommender.from_pretrained(folder / "warm", device="cpu", batch_size=256)
    if any(learned_rows(part) is not None for _, part in parts_of(model)):
        recommender.catalog.learn(vectors[is_warm])
    recommender.catalog.add(items.filter(pa.array(~is_warm)), vectors=vectors[~is_warm])
    return recommender


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
    histories, rule = users["histories"], {"exclude_seen": True, "top_k": 10}
    old = recommender.recommend(histories, exclude_items=cold, **rule)
    new = recommender.recommend(histories, allow_items=cold, **rule)
    asked: dict[str, Any] = {
        "nothing": old.item_ids,
        "id only": recommender.recommend(histories, num_new_items=0, new_item_margin=0.0, **rule).item_ids,
        "restricted": new.item_ids,
        "both": [as_tensors(each, recommender) for each in (old, new)],
        "heads": 1 + recommender.config.dense_weight,
        "cold": list(cold),
        "item_ids": recommender.item_ids,
    }
    some = recommender.recommend(histories[:300], num_new_items=1, new_item_margin=1.0, **rule).item_ids
    if some != by_margin(asked, 1, 1.0)[:300]:
        raise RuntimeError("`num_new_items` gives other lists than the two that it is made of.")
    if hasattr(recommender.model, "dense_scores"):
        rule |= {"top_k": NUM_GENERATED, "dense_weight": 0.0}
        asked["generated"] = recommender.recommend(histories, exclude_items=cold, **rule).item_ids
        asked["scores"] = dense_scores(recommender, histories)
    return asked


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


def as_tensors(found: Recommendations, recommender: Recommender) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of items and scores of lists, filled up to ten."""
    index = {item_id: row for row, item_id in enumerate(recommender.item_ids)}
    items = torch.full((len(found.item_ids), 10), -1)
    scores = torch.full(items.shape, -float("inf"))
    for user, (listed, ranked) in enumerate(zip(found.item_ids, found.scores, strict=True)):
        items[user, : len(listed)] = torch.tensor([index[item_id] for item_id in listed], dtype=torch.long)
        scores[user, : len(listed)] = torch.tensor(ranked)
    return items, scores


def by_margin(asked: dict[str, Any], places: int, margin: float) -> Lists:
    """Cold items by their scores less a margin, and in the last places."""
    items, _ = with_new_items(*asked["both"], places=places, margin=margin * asked["heads"])
    return [[asked["item_ids"][row] for row in rows if row >= 0] for rows in items.tolist()]


def by_quota(asked: dict[str, Any], places: int) -> Lists:
    """The last places of a list of ten go to the best cold items."""
    pairs = zip(asked["nothing"], asked["restricted"], strict=True)
    return [[*warm[: 10 - places], *cold[:places]] for warm, cold in pairs]


def best_of(found: dict[Any, dict[str, Any]], least: float) -> Any:
    """The setting with the best recall of cold targets among those that keep enough of the warm ndcg@10."""
    kept = {setting: each for setting, each in found.items() if each["warm"]["ndcg@10"] >= least}
    if not kept:
        return max(found, key=lambda setting: found[setting]["warm"]["ndcg@10"])
    return max(kept, key=lambda setting: (kept[setting]["cold"]["recall@10"], kept[setting]["cold"].get("ndcg@10")))


def figures(lists: Lists, users: dict[str, Any], *, beside: Lists | None = None) -> dict[str, Any]:
    """
    recall@10 and ndcg@10 of cold and of warm targets; with other lists `beside` also 95 % bootstrap intervals over
    users, and how much more the others have.
    """
    found: dict[str, Any] = {}
    for kind in KINDS:
        mine = users["is_cold"] == (kind == "cold")
        values = values_of(lists, users["targets"])
        others = {} if beside is None else values_of(beside, users["targets"])
        found[kind] = {name: round(float(value[mine].mean()), 5) for name, value in values.items()}
        for name, other in others.items():
            less = (other - values[name])[mine]
            found[kind][f"{name} interval"] = _rounded(bootstrap_interval(values[name][mine]))
            found[kind][f"{name} less"] = round(float(less.mean()), 5)
            found[kind][f"{name} less interval"] = _rounded(bootstrap_interval(less, is_share=False))
    return found


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(end, 5) for end in interval]


def values_of(lists: Lists, targets: np.ndarray) -> dict[str, np.ndarray]:
    """recall@10 and ndcg@10 of each user."""
    ranks = np.array(
        [items.index(target) if target in items else -1 for items, target in zip(lists, targets, strict=True)]
    )
    is_found = ranks >= 0
    return {"recall@10": is_found.astype(float), "ndcg@10": is_found / np.log2(np.where(is_found, ranks, 0) + 2.0)}


if __name__ == "__main__":
    main()
