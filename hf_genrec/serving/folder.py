"""
A model and its items in, the folder that a Hub repository holds out; and whether files of a folder belong together.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec.modeling.genrec_folder import check_parts, items_fingerprint
from hf_genrec.tokenizers.folder import QUANTIZER_NAME
from hf_genrec.tokenizers.vocabulary import build_tokenizer


ITEMS_NAME = "items.parquet"


@contextmanager
def whole_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A temporary folder beside the files of a recommender, which replace them when all of them are written.

    They are moved in one by one, weights last, so that a reader never meets a half-written file; if writing fails the
    folder is as it was. An evaluation that an earlier save left goes, since it speaks of other weights. Other files
    (checkpoints, an edited `README.md`) stay.

    Args:
        folder (`str` or `Path`): The folder of the recommender; created where it is missing.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".partial-") as name:
        partial = Path(name)
        yield partial
        for outdated in ("evaluation.json", "evaluation_users.parquet"):
            (target / outdated).unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            if (target / path.name).is_dir():
                shutil.rmtree(target / path.name)
            path.replace(target / path.name)


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
    item_ids = table["item_id"].to_pylist()
    model.config.items_fingerprint = items_fingerprint(item_ids)
    model.save_pretrained(folder)
    tokenizer = build_tokenizer(item_ids, model.config, max_history_length=model.config.max_history_length)
    tokenizer.save_pretrained(folder)
    pq.write_table(table, folder / ITEMS_NAME)
    if quantizer is not None:
        shutil.copytree(quantizer, folder / QUANTIZER_NAME)


def item_table(items: pa.Table, codes: Any = None) -> pa.Table:
    """
    The `items.parquet` of a checkpoint: ids, codes and what people want to see.

    Args:
        items (`pa.Table`): `item_id` in the model's order, and further columns.
        codes (array of shape `(num_items, num_levels)`, *optional*): Semantic IDs; `None` if the items have none.
    """
    table = pa.table({"item_id": items["item_id"].cast(pa.string())})
    if codes is not None:
        table = table.append_column("codes", pa.array(codes.tolist(), pa.list_(pa.int16())))
    for name in ("title", "text"):
        if name in items.column_names:
            table = table.append_column(name, items[name])
    return table


def check_items(model: Any, items: pa.Table, *, tokenizer: Any = None) -> None:
    """
    Whether an item table, and a tokenizer, are those that a model was saved with.

    Args:
        model: A model whose config has `catalog_fingerprint` and `items_fingerprint`.
        items (`pa.Table`): Columns `item_id` and, where present, `codes`.
        tokenizer (*optional*): The tokenizer of the folder.
    """
    if "item_id" not in items.column_names:
        raise ValueError(f"The item table needs a column `item_id`, found {items.column_names}.")
    codes = items["codes"].to_pylist() if "codes" in items.column_names else None
    check_parts(model.config, items["item_id"].to_pylist(), codes=codes, tokenizer=tokenizer)
