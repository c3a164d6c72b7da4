"""
What it takes to change a catalog while it is served, and whether any sequence of changes equals a rebuild.

    python scripts/evidence/benchmark_live_catalog.py
    python scripts/evidence/benchmark_live_catalog.py --encoder FOLDER
    python scripts/evidence/benchmark_live_catalog.py --quick

First 1,000 items are added to catalogs of 100,000, whose models are untrained: to a folder on disk, from ready vectors
(with `--encoder` also from texts). The time is that of `catalog.add`, until the version is written and served; then
that of the first list that holds one of the new items. Codes of all other items are compared before and after.

Then small catalogs go through random steps: add, remove, bring back, roll back. After each the trie equals that of a
model made anew of the items that are left, every `--check-every` steps so do the lists, and a folder that is saved in
the end gives the same ones. A sum is one of a PSID with two heads, a SASRec and a text scorer, which learn first what
rows items with such vectors have. The RPG is also added to with an item graph, which is extended: the time of that.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm.auto import tqdm

from hf_genrec import (
    LatteConfig,
    LatteForConditionalGeneration,
    Recommender,
    ResidualKMeans,
    RPGConfig,
    RPGForItemGeneration,
    SASRecConfig,
    SASRecForItemGeneration,
    SemanticIds,
)
from hf_genrec.files import write_json
from hf_genrec.modeling.configuration_item_to_item import ItemToItemConfig
from hf_genrec.modeling.genrec_item_graph import item_graph_fingerprint
from hf_genrec.modeling.genrec_lists import ranges_of, rows_of
from hf_genrec.modeling.modeling_ensemble import EnsembleForItemGeneration
from hf_genrec.modeling.modeling_item_to_item import ItemToItemForItemGeneration
from hf_genrec.serving.catalog.grown_model import with_items
from hf_genrec.serving.catalog.learned_rows import learned_rows, parts_of
from hf_genrec.tokenizers.embeddings import Whitening, encoder_identity
from hf_genrec.tokenizers.fusion import unit_rows
from hf_genrec.tokenizers.new_items import CHOICE_NAME, mean_length


DEFAULT_OUTPUT = Path("scripts/evidence/records/live_catalog.json")
LATTE = {"history_attention": "causal", "history_unit": "item", "normalization": "catalog", "d_model": 64, "d_kv": 32,
         "d_ff": 256, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2}  # fmt: skip
MODELS = ("PSID, two heads", "RPG")
WALKS = (*MODELS, "SASRec", "sum of three")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    record: dict[str, Any] = {"num_items": options.items, "num_added": options.added, "additions": [], "steps": []}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            record["additions"].append(measure(name, Path(folder) / "run", options))
        print(record["additions"][-1])
    record["graph"] = measure_graph(options)
    print(record["graph"])
    for name in WALKS:
        with tempfile.TemporaryDirectory() as folder:
            record["steps"].append(walk(name, Path(folder) / "run", options))
        print(record["steps"][-1])
    write_json(record, options.output)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000, help="items of the large catalog")
    parser.add_argument("--added", type=int, default=1_000, help="items that are added to it at once")
    parser.add_argument("--turns", type=int, default=5, help="additions of which the median counts")
    parser.add_argument("--encoder", help="folder of a sentence-transformers model: measures texts too")
    parser.add_argument("--texts", type=int, default=64, help="texts that are added with `--encoder`")
    parser.add_argument("--steps", type=int, default=2_500, help="random steps of each model")
    parser.add_argument("--check-every", type=int, default=20, help="steps between comparisons of lists")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args(arguments)
    if options.quick:
        options.items, options.added, options.turns, options.steps, options.check_every = 300, 20, 2, 12, 6
    return options


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of additions to a large catalog, medians."""
    num_new = options.added * options.turns
    vectors = np.random.default_rng(0).normal(size=(options.items + num_new, 384 if options.encoder else 64))
    vectors = vectors.astype(np.float32)
    shop = saved_shop(name, folder, vectors[: options.items], encoder=options.encoder)
    shop.recommend([["i1"]])  # what the first request of a process loads
    codes, added, busy, first = shop.model.item_codes.clone(), [], [], []
    for turn in range(options.turns):
        start = options.items + turn * options.added
        items = pa.table({"item_id": [f"new {start + row}" for row in range(options.added)]})
        began, began_busy = time.perf_counter(), time.process_time()
        shop.catalog.add(items, vectors=vectors[start : start + options.added])
        added.append(time.perf_counter() - began)
        busy.append(time.process_time() - began_busy)
        began = time.perf_counter()
        found = shop.recommend([["i1", f"new {start}"]], allow_items=items["item_id"].to_pylist(), top_k=10)
        first.append(time.perf_counter() - began)
        if not found.item_ids[0] or not torch.equal(shop.model.item_codes[: options.items], codes):
            raise RuntimeError("An addition moved another item, or cannot be recommended.")
    result = {"model": name, "seconds_to_add": float(np.median(added)), "cpu_seconds_to_add": float(np.median(busy))}
    result["seconds_to_first"] = float(np.median(first))
    if options.encoder:
        texts = [
            {"item_id": f"text {row}", "text": f"thing number {row}, 2 x {row} mm"} for row in range(options.texts)
        ]
        os.environ["HF_GENREC_CACHE"] = str(folder.parent / "cache")  # else a second run would read the vectors
        began = time.perf_counter()
        shop.catalog.add(texts, encoder=options.encoder)
        result |= {"num_texts": options.texts, "seconds_to_add_texts": time.perf_counter() - began}
    return result


def measure_graph(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds until the graph of an RPG with 16 codes per item leads to new items."""
    draw = torch.Generator().manual_seed(0)
    model = RPGForItemGeneration(
        RPGConfig(num_items=options.items, num_levels=16, d_model=64, num_layers=1, num_heads=2)
    )
    model.set_catalog(torch.randint(256, (options.items, 16), generator=draw))
    neighbors = torch.randint(options.items, (options.items, 50), generator=draw).int()  # whose it is takes no time
    fingerprint = item_graph_fingerprint(model.item_codes, model.code_embeddings(), num_neighbors=50)
    model.set_item_graph(neighbors, fingerprint)
    fresh = torch.randint(256, (options.added, 16), generator=draw)
    grown = with_items(model, options.added, {"codes": fresh})
    began, began_busy = time.perf_counter(), time.process_time()
    if len(grown.item_graph) != options.items + options.added:
        raise RuntimeError("The graph does not lead to the new items.")
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_busy}


def walk(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Random steps; an error where something differs from a rebuild."""
    draw, vectors = random.Random(0), np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)
    shop = saved_shop(name, folder, vectors, codebook_size=16)
    if any(learned_rows(part) is not None for _, part in parts_of(shop.model)):
        shop.catalog.learn(vectors)
    shop.catalog.folder = None  # writing every version of thousands is not what is compared
    began, num_lists = time.perf_counter(), 0
    open_at = {1: set(shop.item_ids)}
    for step in tqdm(range(1, options.steps + 1), name):
        now = open_at[len(open_at)]
        removed = sorted(set(shop.item_ids) - now)
        choices = ["remove"] * (len(now) > 20) + ["back"] * bool(removed) + ["roll back"]
        choices += ["add"] * (len(shop.item_ids) < 400)
        step_kind = draw.choice(choices)
        if step_kind == "add":
            item_id = f"new {len(shop.item_ids)}"
            near = vectors[draw.randrange(len(vectors)), None] + 0.01 * len(shop.item_ids)  # so ids collide
            version = shop.catalog.add([{"item_id": item_id}], vectors=near)
            open_at[version.number] = now | {item_id}
        elif step_kind == "remove":
            gone = set(draw.sample(sorted(now), 2))
            open_at[shop.catalog.remove(sorted(gone)).number] = now - gone
        elif step_kind == "back":
            item_id = draw.choice(removed)
            open_at[shop.catalog.add([{"item_id": item_id}]).number] = now | {item_id}
        else:
            number = draw.randint(max(1, len(open_at) - 50), len(open_at))
            open_at[shop.catalog.rollback(number).number] = open_at[number]
        is_checked, has_trie = step % options.check_every == 0, shop.model.config.has_codes
        anew = rebuilt(shop) if is_checked or has_trie else shop
        if has_trie:
            check_tries(shop, anew)
        if is_checked:
            num_lists += check_lists(shop, anew, open_at[len(open_at)])
    again = Recommender.from_pretrained(shop.save_pretrained(folder.parent / "saved"), device="cpu")
    lists = [each.recommend([[]], top_k=30) for each in (shop, again)]
    if lists[0].item_ids != lists[1].item_ids or not np.allclose(lists[0].scores, lists[1].scores, atol=1e-5):
        raise RuntimeError("The folder, loaded again, gives other lists.")
    seconds = time.perf_counter() - began
    return {"model": name, "num_steps": options.steps, "num_lists": num_lists, "seconds": seconds}


def saved_shop(
    name: str, folder: Path, vectors: np.ndarray, *, codebook_size: int = 256, encoder: str | None = None
) -> Recommender:
    """A folder with an untrained model and the quantizer of its ids, as training leaves it, loaded again."""
    quantizer = ResidualKMeans(num_levels=3, codebook_size=codebook_size).fit(vectors[:20_000])
    ids = SemanticIds.from_quantizer(quantizer, vectors, [f"i{row}" for row in range(len(vectors))])
    items = pa.table({"item_id": list(ids.item_ids)})
    if name == "SASRec":
        model: Any = SASRecForItemGeneration(SASRecConfig(num_items=len(vectors), d_model=64, num_heads=2))
        Recommender(model, items).save_pretrained(folder)
        return Recommender.from_pretrained(folder, device="cpu")
    if name == "RPG":
        config: Any = RPGConfig.for_ids(ids, d_model=64, num_layers=2, num_heads=2)
        model = RPGForItemGeneration(config)
    else:
        heads = {"dense_head": True, "dense_text_dim": vectors.shape[1], "num_latent_tokens": 0}
        model = LatteForConditionalGeneration(LatteConfig.for_ids(ids, **LATTE, **heads))
        model.set_text_vectors(torch.from_numpy(vectors / mean_length(vectors)))
    model.set_catalog(ids.codes)
    bundle = folder.parent / "quantizer"
    bundle.mkdir()
    quantizer.save(bundle)
    choice = {"policy": ids.policy, "num_candidates": 5, "mean_length": mean_length(vectors)}
    write_json(choice, bundle / CHOICE_NAME)
    if encoder is not None:
        write_json({"model": encoder, "identity": encoder_identity(encoder)}, bundle / "encoder.json")
    if name == "sum of three":
        text = ItemToItemForItemGeneration(
            ItemToItemConfig(num_items=len(vectors), vector_dim=vectors.shape[1], method="text")
        )
        words = Whitening.fit(vectors, num_components=vectors.shape[1], take_fewer=True).transform(vectors)
        text.item_vectors.data.copy_(torch.from_numpy(unit_rows(words)))
        sasrec = SASRecForItemGeneration(SASRecConfig(num_items=len(vectors), d_model=16, num_heads=2))
        model = EnsembleForItemGeneration.of([model, sasrec, text])
    Recommender(model, items).save_pretrained(folder, quantizer=bundle)
    return Recommender.from_pretrained(folder, device="cpu")


def rebuilt(shop: Recommender) -> Recommender:
    """A recommender of the open items alone, in a model made from its config, with the same parameters."""
    is_open = ~rows_of(shop.model.config.closed_items, shop.model.config.num_items)
    fresh = rebuilt_model(shop.model, is_open)
    return Recommender(fresh, pa.table({"item_id": shop.items["item_id"].filter(pa.array(is_open.numpy()))}))


def rebuilt_model(model: Any, is_open: torch.Tensor) -> Any:
    """The same model without the rows of other items."""
    config = model.config
    if hasattr(model, "members"):
        settings = {name: getattr(config, name) for name in ("weights", "combination", "num_candidates")}
        fresh = type(model).of([rebuilt_model(member, is_open) for member in model.members], **settings)
        fresh.config.new_items = fresh.members[0].config.new_items
        return fresh
    is_new = rows_of(config.new_items, config.num_items)[is_open]
    changed = {"num_items": int(is_open.sum()), "new_items": ranges_of(is_new) or None, "closed_items": None}
    per_item = {"item_codes", "item_counts", "item_table.rows.weight", "item_table.text_vectors", "item_shares"}
    per_item |= {"item_vectors", "text_vectors"}
    state = {name: tensor[is_open] if name in per_item else tensor for name, tensor in model.state_dict().items()}
    if config.model_type == "sasrec":
        table, first = state["token_embeddings.weight"], config.first_item_token
        state["token_embeddings.weight"] = torch.cat([table[:first], table[first:][is_open]])
    if config.model_type == "item_to_item":
        items = torch.arange(len(is_open)).repeat_interleave(state["offsets"].diff())
        kept, rows = is_open[items] & is_open[state["targets"].long()], is_open.cumsum(0) - 1
        state["targets"], state["weights"] = rows[state["targets"][kept].long()].int(), state["weights"][kept]
        counts = torch.bincount(rows[items[kept]], minlength=int(is_open.sum()))
        state["offsets"] = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        changed["num_weights"] = int(kept.sum())
    fresh = type(model)(type(config)(**(config.to_diff_dict() | {"items_fingerprint": None} | changed)))
    fresh.load_state_dict(state)
    if config.has_codes:
        fresh.set_catalog(state["item_codes"])
    fresh.recommend_config = model.recommend_config
    return fresh.eval()


def check_tries(shop: Recommender, anew: Recommender) -> None:
    """Whether the masks of all nodes of both tries are equal."""
    tries = [each.model.catalog for each in (shop, anew)]
    for depth in range(tries[0].num_levels):
        masks = [trie.child_mask(depth, torch.arange(trie.num_nodes[depth])) for trie in tries]
        if not torch.equal(*masks):
            raise RuntimeError(f"The masks at depth {depth} differ from those of a rebuild.")


def check_lists(shop: Recommender, anew: Recommender, items: set[str]) -> int:
    """Whether both list the same items with the same scores; how many lists that were."""
    names = sorted(items)
    histories = [names[:3], [], names[-1:]]
    lists = [each.recommend(histories, top_k=len(items), exclude_seen=False) for each in (shop, anew)]
    is_equal = lists[0].item_ids == lists[1].item_ids and np.allclose(lists[0].scores, lists[1].scores, atol=1e-3)
    if not is_equal or set(lists[0].item_ids[0]) != items:
        raise RuntimeError("The lists differ from those of a rebuild.")
    return len(histories)


if __name__ == "__main__":
    main()
