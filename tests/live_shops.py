"""Tiny recommenders whose catalogs change, and the same catalog built anew, without rows of removed items."""

import numpy as np
import pyarrow as pa
import torch

from benchmark_live_catalog import rebuilt
from hf_genrec import ACERecForItemGeneration, Recommender, RPGForItemGeneration
from invariants.model import make_model, make_sasrec, tiny_config, tiny_rpg_config


__all__ = ["free_codes", "model_of", "rebuilt", "shop_of"]

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
    if kind == "acerec":
        from hf_genrec import ACERecConfig

        config = ACERecConfig(num_items=11, num_levels=3, codebook_size=5, num_merged_tokens=2, **SHAPE)
        return make_model(config, model_class=ACERecForItemGeneration)
    return make_sasrec(num_items=11)


def shop_of(kind):
    return Recommender(model_of(kind), pa.table({"item_id": [f"i{row}" for row in range(11)]}))


def free_codes(shop):
    """The first tuple that no item has or had."""
    config = shop.model.config
    taken = set(map(tuple, shop.model.item_codes.tolist()))
    sizes = (config.codebook_size,) * config.num_levels
    return next([int(code) for code in codes] for codes in np.ndindex(*sizes) if codes not in taken)
