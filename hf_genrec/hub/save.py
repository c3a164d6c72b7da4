"""
A trained recommender in, the folder that a Hub repository holds out: what serving reads, evaluation and card.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_genrec.files import write_json
from hf_genrec.hub.cards import check_written, folder_card, is_generated, sample_output
from hf_genrec.hub.files import CARD_NAME
from hf_genrec.modeling.genrec_folder import write_manifest
from hf_genrec.serving.folder import item_table, whole_folder, write_parts
from hf_genrec.serving.recommender import Recommender
from hf_genrec.tokenizers.semantic_ids import SemanticIds


def save_recommender(
    folder: str | os.PathLike[str],
    model: Any,
    semantic_ids: SemanticIds | None,
    items: pa.Table,
    *,
    quantizer: str | os.PathLike[str] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> Path:
    """
    Write a complete recommender with its card, see [`whole_folder`]; [`Recommender.save_pretrained`] writes no card.

    Args:
        folder (`str` or `Path`): Where to write; created where it is missing.
        model: A trained model whose catalog holds `semantic_ids`.
        semantic_ids ([`SemanticIds`] or `None`): The semantic-ID table; `None` for a model without, as SASRec.
        items (`pa.Table`):
            `item_id` in the order of the model's items, `title` and `text`. With titles the card shows a sample.
        quantizer (`str` or `Path`, *optional*):
            The folder that tokenizing wrote, to be kept as `quantizer/` so that new items can get codes.
        evaluation (`dict`, *optional*):
            An evaluation record, to be kept as `evaluation.json`. `None` removes one that an earlier save left.
        license (`str`, *optional*): The licence in the card's metadata; `None` keeps that of the earlier card.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: If model, semantic IDs and items do not belong together.
    """
    if (semantic_ids is not None) != model.config.has_codes:
        raise ValueError(
            f"`semantic_ids` must be given for models with semantic IDs and be `None` for others; this is a "
            f"{model.config.model_type!r} model, got {'none' if semantic_ids is None else 'a table'}."
        )
    if semantic_ids is not None and items["item_id"].to_pylist() != list(semantic_ids.item_ids):
        raise ValueError(
            f"The semantic IDs ({semantic_ids.num_items} items) and the item table ({items.num_rows} rows) do not "
            "list the same items in the same order. Tokenize the items of this data set."
        )
    table = item_table(items, None if semantic_ids is None else semantic_ids.codes)
    card = Path(folder) / CARD_NAME
    earlier = card.read_text(encoding="utf-8") if card.exists() else None
    with whole_folder(folder) as partial:
        write_parts(partial, model, table, quantizer=quantizer)
        if evaluation is not None:
            write_json(evaluation, partial / "evaluation.json")
            write_manifest(partial, ["evaluation.json"])
        if earlier is None or is_generated(earlier):
            sample = _sample(model, table) if "title" in table.column_names else ""
            text = folder_card(partial, config=model.config, sample=sample, license=license, published=earlier or "")
            (partial / CARD_NAME).write_text(text, encoding="utf-8")
        else:
            check_written(earlier, license=license)
    return Path(folder)


def _sample(model: Any, table: pa.Table, *, length: int = 3, top_k: int = 5) -> str:
    """What the model recommends after a history of its own first choices: no user's history is published."""
    was_training = model.training
    recommender = Recommender(model, table)
    history: list[str] = []
    for _ in range(length):
        history += recommender.recommend([history], top_k=1, exclude_seen=True).item_ids[0]
    found = recommender.recommend([history], top_k=top_k, exclude_seen=True)
    model.train(was_training)
    item_ids, scores = found.item_ids[0], found.scores[0]
    rows = zip(recommender.titles(item_ids), item_ids, scores, strict=True)
    return sample_output(recommender.titles(history), list(rows))
