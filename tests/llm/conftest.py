"""A small world for fine-tuning: a data set, ids, and backbones in folders."""

import numpy as np
import pytest

from hf_genrec import prepare
from hf_genrec.tokenizers.folder import tokenize_items
from tiny_llms import KINDS, tiny_llm, tiny_tokenizer


THINGS = ["tea", "cup", "pot", "jam", "oat", "rye", "fig", "nut", "egg", "ham", "bun"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Users who walk through eleven things in a circle, ids of two levels, and backbones in folders."""
    folder = tmp_path_factory.mktemp("llm")
    rows = [f"u{u}\t{' '.join(THINGS[(u + step) % 11] for step in range(5 + u % 3))}\n" for u in range(23)]
    (folder / "log.tsv").write_text("".join(rows))
    items = [{"item_id": thing, "title": f"a {thing}", "description": "green bowl"} for thing in THINGS]
    data = prepare(folder / "data", sequences=folder / "log.tsv", items=items)
    np.save(folder / "vectors.npy", np.random.default_rng(0).normal(size=(11, 6)).astype("float32"))
    tokenize_items(data, folder / "vectors.npy", folder / "ids", num_levels=2, codebook_size=4, num_whitened=0)
    for kind in KINDS:
        tiny_llm(kind).save_pretrained(folder / kind)
        tiny_tokenizer().save_pretrained(folder / kind)
    return data, folder
