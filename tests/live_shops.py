"""Tiny recommenders whose catalogs change, and the same catalog built anew, without rows of removed items."""

import numpy as np
import pyarrow as pa
import torch

from benchmark_live_catalog import rebuilt
from hf_genrec import (
    ACERecForItemGeneration,
    Recommender,
    RPGForItemGeneration,
    VQRecConfig,
    VQRecForItemGeneration,
)
from hf_genrec.modeling.configuration_item_to_item import ItemToItemConfig
from hf_genrec.modeling.modeling_ensemble import EnsembleForItemGeneration
from hf_genrec.modeling.modeling_item_to_item import ItemToItemForItemGeneration
from hf_genrec.serving.catalog.learned_rows import learned_rows, parts_of
from hf_genrec.tokenizers.embeddings import Whitening
from hf_genrec.tokenizers.fusion import unit_rows
from invariants.model import make_item_to_item, make_model, make_sasrec, tiny_config, tiny_rpg_config


__all__ = ["TEXTS", "add_one", "free_codes", "model_of", "rebuilt", "shop_of"]

TEXTS = np.random.default_rng(3).normal(size=(11, 8)).astype(np.float32)
SHAPE = {"d_model": 16, "num_layers": 1, "num_heads": 2}
TWO_HEADS = {"history_attention": "causal", "history_unit": "item", "dense_head": True, "num_latent_tokens": 0}


def model_of(kind):
    if kind == "latte":
        return make_model(tiny_config(num_latent_tokens=2, num_items=11, normalization="catalog"))
    if kind == "two heads":
        model = make_model(tiny_config(num_items=11, num_levels=2, normalization="catalog", **TWO_HEADS))
        model.item_table.rows.weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        return model
    if kind == "rpg":
        return make_model(tiny_rpg_config(num_items=11, num_levels=3), model_class=RPGForItemGeneration)
    if kind == "vqrec":
        config = VQRecConfig(num_items=11, num_levels=3, codebook_size=5, **SHAPE)
        return make_model(config, model_class=VQRecForItemGeneration)
    if kind == "acerec":
        from hf_genrec import ACERecConfig

        config = ACERecConfig(num_items=11, num_levels=3, codebook_size=5, num_merged_tokens=2, **SHAPE)
        return make_model(config, model_class=ACERecForItemGeneration)
    if kind == "table":
        return table_model()
    if kind == "ensemble":
        sasrec = make_sasrec(num_items=11, text_dim=3)
        members = [model_of("two heads"), sasrec, table_model(), text_model()]
        return EnsembleForItemGeneration.of(members, num_candidates=4)
    return text_model() if kind == "text" else make_sasrec(num_items=11)


def table_model():
    return make_item_to_item(ItemToItemConfig(num_items=11, num_weights=37))


def text_model():
    words = unit_rows(Whitening.fit(TEXTS, num_components=8).transform(TEXTS))
    model = ItemToItemForItemGeneration(ItemToItemConfig(num_items=11, vector_dim=8, method="text"))
    model.item_vectors.data.copy_(torch.from_numpy(1.3 * words))
    return model.eval()


def shop_of(kind):
    return Recommender(model_of(kind), pa.table({"item_id": [f"i{row}" for row in range(11)]}))


def free_codes(shop):
    """The first tuple that no item has or had."""
    model = next(part for _, part in parts_of(shop.model) if part.config.has_codes)
    config, taken = model.config, set(map(tuple, model.item_codes.tolist()))
    sizes = (config.codebook_size,) * config.num_levels
    return next([int(code) for code in codes] for codes in np.ndindex(*sizes) if codes not in taken)


def add_one(shop, item_id):
    """Add an item with what the model reads of it."""
    item, vectors = {"item_id": item_id}, None
    if any(part.config.has_codes for _, part in parts_of(shop.model)):
        item["codes"] = free_codes(shop)
    if any(learned_rows(part) is not None for _, part in parts_of(shop.model)):
        if shop.catalog._regression is None:
            shop.catalog.learn(TEXTS)
        vectors = np.random.default_rng(len(shop.item_ids)).normal(size=(1, 8)).astype(np.float32)
    return shop.catalog.add([item], vectors=vectors)
