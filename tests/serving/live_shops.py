"""Tiny recommenders whose catalogs change, and the same catalog built anew, without rows of removed items."""

import numpy as np
import pyarrow as pa
import torch

from hf_genrec import ACERecForItemGeneration, Recommender, RPGForItemGeneration
from hf_genrec.modeling.genrec_live_items import rows_of
from invariants.model import make_model, make_sasrec, tiny_config, tiny_rpg_config


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


def rebuilt(shop):
    """A recommender of the open items alone, in a model made from its config, with the same parameters."""
    model, config = shop.model, shop.model.config
    is_open = ~rows_of(config.closed_items, config.num_items)
    fresh = type(model)(type(config)(**(config.to_diff_dict() | {"num_items": int(is_open.sum())})))
    fresh.config.closed_items = fresh.config.items_fingerprint = None
    per_item = {"item_codes", "item_counts", "item_table.rows.weight", "item_table.text_vectors"}
    state = {name: tensor[is_open] if name in per_item else tensor for name, tensor in model.state_dict().items()}
    if not config.has_codes:
        table, first = state["token_embeddings.weight"], config.first_item_token
        state["token_embeddings.weight"] = torch.cat([table[:first], table[first:][is_open]])
    fresh.load_state_dict(state)
    if config.has_codes:
        fresh.set_catalog(state["item_codes"])
    fresh.recommend_config = model.recommend_config
    return Recommender(fresh, pa.table({"item_id": shop.items["item_id"].filter(pa.array(is_open.numpy()))}))
