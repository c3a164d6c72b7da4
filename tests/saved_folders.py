"""Complete folders of tiny models with random weights, for each architecture, as `save_recommender` writes them."""

import atexit
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa

from hf_genrec import (
    ACERecConfig,
    ACERecForItemGeneration,
    RPGConfig,
    RPGForItemGeneration,
    SASRecConfig,
    SASRecForItemGeneration,
    SemanticIds,
    save_recommender,
)
from invariants.model import (
    CODEBOOK_SIZE,
    NUM_ITEMS,
    make_decoder,
    make_item_to_item,
    make_model,
    random_codes,
    tiny_config,
)


ITEM_IDS = [f"i{number}" for number in range(NUM_ITEMS)]
TITLES = [f"T{number}" for number in range(NUM_ITEMS)]
_FOLDERS = tempfile.mkdtemp(prefix="hf_genrec_saved_")
atexit.register(shutil.rmtree, _FOLDERS, ignore_errors=True)
_SAVED = {}
ARCHITECTURES = ("latte", "decoder", "rpg", "acerec", "sasrec", "item_to_item")


def model_of(architecture, *, seed=0):
    """A tiny model with 29 items."""
    shape = {"num_items": NUM_ITEMS, "d_model": 16, "num_layers": 2, "num_heads": 2}
    codes = {"num_levels": 4, "codebook_size": CODEBOOK_SIZE}
    if architecture == "latte":
        return make_model(tiny_config(num_latent_tokens=2), seed=seed)
    if architecture == "decoder":
        return make_decoder(num_latent_tokens=2, seed=seed)
    if architecture == "rpg":
        return make_model(RPGConfig(**shape, **codes), model_class=RPGForItemGeneration, seed=seed)
    if architecture == "acerec":
        config = ACERecConfig(**shape, **codes, num_merged_tokens=3)
        return make_model(config, model_class=ACERecForItemGeneration, seed=seed)
    if architecture == "item_to_item":
        return make_item_to_item(seed=seed)
    return make_model(SASRecConfig(**shape), model_class=SASRecForItemGeneration, seed=seed)


def make_folder(folder, architecture="latte", *, item_ids=ITEM_IDS, seed=0, titles=TITLES):
    """Write a folder, a copy of the first of its kind; without titles where they are `None`."""
    kind = architecture, tuple(item_ids), seed, titles and tuple(titles)
    if kind not in _SAVED:
        _SAVED[kind] = _save(Path(tempfile.mkdtemp(dir=_FOLDERS)) / "run", architecture, item_ids, seed, titles)
    return shutil.copytree(_SAVED[kind], folder, dirs_exist_ok=True)


def _save(folder, architecture, item_ids, seed, titles):
    model = model_of(architecture, seed=seed)
    ids = None
    if model.config.has_codes:
        codes = random_codes(NUM_ITEMS, model.config.num_levels, CODEBOOK_SIZE, seed=seed)
        ids = SemanticIds(item_ids, codes.numpy(), CODEBOOK_SIZE, "keep")
    columns = {"item_id": item_ids} | ({} if titles is None else {"title": titles})
    return save_recommender(folder, model, ids, pa.table(columns))
