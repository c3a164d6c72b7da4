"""
One folder = weights, remote code, tokenizer, item table, quantizer, evaluation and card: what the Hub serves.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec.evaluation.record import users_path, write_record
from hf_genrec.hub.cards import folder_card, is_generated
from hf_genrec.serving.recommender import check_items
from hf_genrec.tokenizers.semantic_ids import SemanticIds, items_fingerprint
from hf_genrec.tokenizers.vocabulary import build_tokenizer


def save_recommender(
    folder: str | os.PathLike[str],
    model: Any,
    semantic_ids: SemanticIds | None,
    items: pa.Table,
    *,
    quantizer: str | os.PathLike[str] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Path:
    """
    Write a complete recommender: the folder is what a Hub repository holds.

    Files are written to a temporary folder beside the target and moved in one by one, weights last, so that a reader
    never meets a half-written file. Files of the folder that are not ours (checkpoints, an edited `README.md`) stay.

    Args:
        folder (`str` or `Path`):
            Where to write; created where it is missing.
        model:
            A trained model whose catalog holds `semantic_ids`.
        semantic_ids ([`SemanticIds`] or `None`):
            The semantic-ID table; `None` for a model without, as SASRec.
        items (`pa.Table`):
            `item_id` in the order of the model's items, `title` and `text`.
        quantizer (`str` or `Path`, *optional*):
            The folder that tokenizing wrote, to be kept as `quantizer/` so that new items can get codes.
        evaluation (`dict`, *optional*):
            An evaluation record, to be kept as `evaluation.json`. `None` removes one that an earlier save left.

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
    table = item_table(semantic_ids, items)
    item_ids = table["item_id"].to_pylist()
    check_items(model, table)
    model.config.items_fingerprint = items_fingerprint(item_ids)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".partial-") as name:
        partial = Path(name)
        model.save_pretrained(partial)
        tokenizer = build_tokenizer(item_ids, model.config, max_history_length=model.config.max_history_length)
        tokenizer.save_pretrained(partial)
        pq.write_table(table, partial / "items.parquet")
        if quantizer is not None:
            shutil.copytree(quantizer, partial / "quantizer")
        if evaluation is not None:
            write_record(evaluation, partial / "evaluation.json")
        else:  # what an earlier save left speaks of other weights
            (target / "evaluation.json").unlink(missing_ok=True)
        users_path(target / "evaluation.json").unlink(missing_ok=True)
        card = target / "README.md"
        if not card.exists() or is_generated(card.read_text(encoding="utf-8")):
            (partial / "README.md").write_text(folder_card(partial, config=model.config), encoding="utf-8")
        for path in sorted(partial.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            if (target / path.name).is_dir():
                shutil.rmtree(target / path.name)
            path.replace(target / path.name)
    return target


def item_table(semantic_ids: SemanticIds | None, items: pa.Table) -> pa.Table:
    """
    The `items.parquet` of a checkpoint: ids, codes and what people want to see.

    Args:
        semantic_ids ([`SemanticIds`] or `None`): The semantic-ID table; `None` if the items have no codes.
        items (`pa.Table`): `item_id` in the same order, and further columns.

    Returns:
        `pa.Table`: `item_id`, `codes` where there are any, then `title` and `text` where `items` has them.

    Raises:
        ValueError: If the ids differ.
    """
    if semantic_ids is not None and items["item_id"].to_pylist() != list(semantic_ids.item_ids):
        raise ValueError(
            f"The semantic IDs ({semantic_ids.num_items} items) and the item table ({items.num_rows} rows) do not "
            "list the same items in the same order. Tokenize the items of this data set."
        )
    table = pa.table({"item_id": items["item_id"].cast(pa.string())})
    if semantic_ids is not None:
        table = table.append_column("codes", pa.array(semantic_ids.codes.tolist(), pa.list_(pa.int16())))
    for name in ("title", "text"):
        if name in items.column_names:
            table = table.append_column(name, items[name])
    return table
