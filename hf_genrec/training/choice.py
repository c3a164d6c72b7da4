"""
What a training does that was given no model: the size of a data set in, semantic IDs, network and schedule out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_genrec.data.prepared import PreparedDataset


_MANY_ITEMS, _MANY_TARGETS = 2_000, 1_000_000
_TARGETS_IN_ALL = 1_500_000  # of all epochs of a small network: minutes of one core
_SASREC_TARGETS = 2_100_000  # the same for the SASRec beside it
_SASREC_ITEMS = 20_000  # its loss is a softmax over all items; measured up to 12,101


@dataclass(frozen=True)
class Choice:
    """
    A model for a data set: two heads on one history (see `LatteConfig.dense_head`) over ids that fit the catalog.

    The first three are arguments of `tokenize_items`, of the config of a Latte model and of `GenRecTrainingArguments`.
    `reads_vectors` says whether the dense head projects the vectors that the ids are made of, without the codes'
    embeddings: better on Scientific and Beauty; not compared on catalogs as small as that of MovieLens-100K. `beside`
    has shape and schedule of a SASRec that is trained, too, unless there are too many items: on MovieLens-100K, Beauty
    and Scientific the sum gains by it, on both halves of the validation users. `reason` has the sizes and what follows
    from them, for people.
    """

    tokenizer: dict[str, Any]
    shape: dict[str, Any]
    schedule: dict[str, Any]
    reads_vectors: bool
    beside: tuple[dict[str, Any], dict[str, Any]] | None
    reason: str


def choose(prepared: PreparedDataset) -> Choice:
    """
    Settings by the numbers of items and targets, found on validation users of MovieLens-100K and Amazon Scientific.

    Args: the data set; only its sizes are read.
    """
    num_items, num_targets = len(prepared.item_ids), int(prepared.metadata["num_train_targets"])
    levels, codes = (2, 64) if num_items <= _MANY_ITEMS else (3, 256)
    while codes > 2 and levels == 2 and (codes // 2) ** 2 >= 2 * num_items:  # half the tuples stay free
        codes //= 2
    width = 64 if num_targets <= _MANY_TARGETS else 128
    is_large = num_items > _MANY_ITEMS  # few items: the shape of the quick start, which was compared on MovieLens-100K
    epochs = min(12 if is_large else 30, max(3, round(_TARGETS_IN_ALL / max(1, num_targets))))
    length = 50 if num_targets > 20 * prepared.metadata["statistics"]["num_users"] else 20
    batch_size = 512 if num_targets > 60_000 else 256
    validations = {"eval_strategy": "steps", "eval_steps": 0.25, "save_strategy": "steps", "save_steps": 0.25}
    beside = None
    if num_items <= _SASREC_ITEMS:
        shape = {"d_model": width, "num_heads": width // 32, "dropout_rate": 0.4, "max_history_length": length}
        sasrec_epochs = min(16, epochs)
        if is_large:
            shape |= {"num_heads": 1, "dropout_rate": 0.5, "max_history_length": 50}
            sasrec_epochs = min(20, max(3, round(_SASREC_TARGETS / max(1, num_targets))))
        beside = (shape, {"num_train_epochs": sasrec_epochs} | validations)
    return Choice(
        tokenizer={"num_levels": levels, "codebook_size": codes},
        shape={
            "num_latent_tokens": 0, "d_model": width, "d_ff": 4 * width, "d_kv": 32, "num_heads": width // 32,
            "max_history_length": length, "dense_head": True,
            "dropout_rate": 0.1 if is_large else 0.3, "marked_tokens": "all" if is_large else "first",
        },
        schedule={
            "num_train_epochs": epochs, "per_device_train_batch_size": batch_size, "learning_rate": 3e-3,
            **validations,
        },
        reads_vectors=is_large,
        beside=beside,
        reason=f"{num_items:,} items, {num_targets:,} targets: ids of {levels} x {codes} codes; PSID with two heads, "
        f"width {width}, the latest {length} items of a history; {epochs} epochs in batches of {batch_size} targets; "
        f"beside it {'' if beside is None else 'a SASRec, '}the sequential ridge, item-kNN and, of embeddings, "
        "similar texts",
    )  # fmt: skip
