"""
A model and its items in, the folder that a Hub repository holds out; and whether files of a folder belong together.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open

from hf_genrec.files import updated_folder, write_table
from hf_genrec.modeling.genrec_folder import check_finite, check_parts, items_fingerprint, write_manifest
from hf_genrec.serving.catalog.files import current_number
from hf_genrec.serving.language_model import with_counts
from hf_genrec.tokenizers.folder import QUANTIZER_NAME
from hf_genrec.tokenizers.semantic_ids import code_column, code_rows
from hf_genrec.tokenizers.vocabulary import build_tokenizer


ITEMS_NAME = "items.parquet"


def whole_folder(folder: str | os.PathLike[str]) -> AbstractContextManager[Path]:
    """
    [`updated_folder`] for the files of a recommender; an evaluation and catalog versions of earlier weights go.

    Args: see [`updated_folder`].
    """
    return updated_folder(folder, dropped=("evaluation.json", "evaluation_users.parquet", "catalog"))


def write_parts(folder: Path, model: Any, table: pa.Table, *, quantizer: str | os.PathLike[str] | None = None) -> None:
    """
    Write what [`Recommender.from_pretrained`] reads: weights, code and settings, tokenizer, item table, quantizer.

    Args:
        folder (`Path`): Where to write, see [`whole_folder`].
        model: A model whose catalog holds the items; its config gets their fingerprint.
        table (`pa.Table`): What [`item_table`] returned.
        quantizer (`str` or `Path`, *optional*): The folder of the quantizer, by which new items can get codes.
    """
    check_items(model, table)
    check_finite(model, folder)
    item_ids = table["item_id"].to_pylist()
    model.config.items_fingerprint = items_fingerprint(item_ids)
    model.save_pretrained(folder)
    if not hasattr(model, "tokenizer"):  # a language model has its own, and reads items by their codes
        tokenizer = build_tokenizer(item_ids, model.config, max_history_length=model.config.max_history_length)
        tokenizer.save_pretrained(folder)
    write_table(with_counts(table, model), folder / ITEMS_NAME)
    if quantizer is not None:
        shutil.copytree(quantizer, folder / QUANTIZER_NAME)
    write_manifest(folder, ["tokenizer*.json", "special_tokens_map.json", ITEMS_NAME, f"{QUANTIZER_NAME}/*"])


def item_table(items: pa.Table, codes: Any = None) -> pa.Table:
    """
    The `items.parquet` of a checkpoint: ids, codes, titles and texts.

    Args:
        items (`pa.Table`): `item_id` in the model's order, and further columns.
        codes (array of shape `(num_items, num_levels)`, *optional*): Semantic IDs; `None` if the items have none.
    """
    table = pa.table({"item_id": items["item_id"].cast(pa.string())})
    if codes is not None:
        table = table.append_column("codes", code_column(codes))
    for name in ("title", "text"):
        if name in items.column_names:
            table = table.append_column(name, items[name])
    return table


def check_items(model: Any, items: pa.Table) -> None:
    """
    Whether an item table is the one that a model was saved with.

    Args: see [`write_parts`].
    """
    if "item_id" not in items.column_names:
        raise ValueError(f"The item table needs a column `item_id`, found {items.column_names}.")
    codes = None
    if "codes" in items.column_names:
        codes = code_rows(items["codes"])
        codes = np.zeros((len(items), 0), np.int16) if codes is None else codes
    check_parts(model.config, items["item_id"].to_pylist(), codes=codes)


def check_unchanged(recommender: Any, folder: Path) -> None:
    """Whether a recommender serves the weights and items of a folder. Args: both."""
    remedy = "Write them to a folder with `save_pretrained(folder)` first."
    if recommender.catalog.version.number != current_number(folder):
        raise ValueError(f"The catalog in memory is not the version that {folder} holds. {remedy}")
    model = recommender.model
    state = model.saved_tensors() if hasattr(model, "saved_tensors") else model.state_dict()
    for path in sorted(folder.glob("*model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                tensor = file.get_tensor(name)
                # tables of a catalog that has grown have more rows than the file
                if name not in state or not torch.equal(state[name][: len(tensor)].to(tensor), tensor):
                    raise ValueError(f"The weights in memory are not those of {path} (`{name}` differs). {remedy}")
    table = pq.read_table(folder / ITEMS_NAME)
    items = recommender.items.slice(0, table.num_rows)
    codes = recommender.model.item_codes[: len(items)].cpu().numpy() if "codes" in table.column_names else None
    if not any(rows.equals(table) for rows in (items, item_table(items, codes))):
        raise ValueError(f"The item table in memory is not that of {folder / ITEMS_NAME}. {remedy}")
