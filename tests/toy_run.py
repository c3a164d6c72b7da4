"""A complete recommender of twenty-nine items, made without training."""

import pyarrow as pa

from hf_genrec import Recommender, SemanticIds, save_recommender
from invariants.model import NUM_ITEMS, make_model, random_codes, tiny_config


ITEM_IDS = [f"i{number}" for number in range(NUM_ITEMS)]
ITEMS = pa.table({"item_id": ITEM_IDS, "title": [f"the {name}" for name in ITEM_IDS], "text": ["x"] * NUM_ITEMS})
HISTORIES = [["i3"], [], ["i1", "i7", "i4"]]


def save_toy_run(folder, *, shift=0.0):
    """The folder; `shift` is added to the embeddings, so that two runs have different weights."""
    model = make_model(tiny_config(num_latent_tokens=2))
    model.shared.weight.data += shift
    return save_recommender(folder, model, SemanticIds(ITEM_IDS, random_codes().numpy(), 5, "keep"), ITEMS)


def answers(folder_or_repo, **kwargs):
    return Recommender.from_pretrained(folder_or_repo, device="cpu", **kwargs).recommend(HISTORIES, top_k=5).item_ids
