"""
A prepared data set in, a model to train out: a new one over a tokenized folder or over the items alone, or a
checkpoint to fine-tune. Whatever was made for other items is refused.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, set_seed

from hf_genrec.data.checks import check_learned_on, trained_on
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.record import read_training
from hf_genrec.modeling.genrec_lists import ranges_of, rows_of
from hf_genrec.serving.recommender import Recommender
from hf_genrec.tokenizers.folder import QUANTIZER_NAME, load_tokenized
from hf_genrec.tokenizers.semantic_ids import SemanticIds
from hf_genrec.training.arguments import did_you_mean


logger = logging.getLogger(__name__)


_NOT_TO_SET = {"num_items", "num_levels", "codebook_size"}  # they follow from the tokenized folder


@dataclasses.dataclass(frozen=True)
class Starting:
    """
    What a run begins with: a model, fresh or from a checkpoint, whose catalog is filled; the semantic IDs in it and
    the folder of their quantizer, if any; the checkpoint it comes from, and fingerprints of the data that one has
    seen; and what else decides the result of the run, for its record.
    """

    model: Any
    semantic_ids: SemanticIds | None
    quantizer: Path | None
    origin: str | None = None
    trained_on: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def start_fresh(
    prepared: PreparedDataset,
    tokenized: str | os.PathLike[str] | None,
    *,
    shape: Mapping[str, Any],
    seed: int,
    architecture: str = "latte",
    vectors: np.ndarray | None = None,
) -> Starting:
    """
    A new model over a tokenized folder, or over the items alone.

    Args:
        prepared ([`PreparedDataset`]): The data set.
        tokenized (`str`, `Path` or `None`):
            The tokenized folder of the same items; `None` for an architecture without semantic IDs.
        shape (`dict`): Fields of the architecture's config; sizes of the catalog come from the folder.
        seed (`int`): Seed of the weights.
        architecture (`str`, *optional*, defaults to `"latte"`): A model type that the Auto classes know.
        vectors (`np.ndarray` of shape `(num_items, dim)`, *optional*):
            What a dense head or a SASRec projects, see [`read_embeddings`]; scaled to a mean length of 1.

    Raises:
        ValueError: If the folder is about other items, missing or of no use, or `shape` has an unknown or wrong field.
    """
    config_class: Any = CONFIG_MAPPING[architecture]
    semantic_ids = None
    known = {field.name for field in dataclasses.fields(config_class)} - _NOT_TO_SET
    known -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    if unknown := sorted(set(shape) - known):
        named, meant = ([f"`{name}`" for name in names] for names in (unknown, known))
        raise ValueError(
            f"The architecture {architecture} has no {', '.join(named)}: leave it out.{did_you_mean(named, meant)}"
        )
    if (tokenized is not None) != config_class.has_codes:
        needs = "needs semantic IDs: name" if config_class.has_codes else "has no semantic IDs: leave out"
        raise ValueError(f"The architecture {architecture!r} {needs} the tokenized folder.")
    if tokenized is not None:
        semantic_ids, made = load_tokenized(tokenized)
        check_same_catalog(semantic_ids.item_ids, prepared, owner=f"The tokenized folder {tokenized}")
        check_learned_on(made, prepared.metadata, owner=f"the tokenized folder {tokenized}")
    if vectors is not None:
        field = "dense_text_dim" if shape.get("dense_head") else "text_dim"
        if not hasattr(config_class, field):
            raise ValueError("`vectors` are read by the dense head: set `dense_head` in `shape`, or leave them out.")
        shape = {**shape, field: vectors.shape[1]}
    set_seed(seed)
    try:
        config = config_class.for_ids(prepared.item_ids if semantic_ids is None else semantic_ids, **shape)
    except StrictDataclassError as error:
        raise ValueError(f"`shape` has a value of the wrong type: {error}") from error
    model: Any = AutoModel.from_config(config)
    _count_items(model, prepared)
    if vectors is not None:
        model.set_text_vectors(torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1).mean()))
    if semantic_ids is None or tokenized is None:
        return Starting(model, None, None)
    model.set_catalog(semantic_ids.codes)
    quantizer = Path(tokenized) / QUANTIZER_NAME
    return Starting(model, semantic_ids, quantizer if quantizer.is_dir() else None)


def start_from(prepared: PreparedDataset, folder_or_repo: str | os.PathLike[str]) -> Starting:
    """
    A checkpoint to fine-tune on another log over the same catalog.

    Weights and semantic IDs are the checkpoint's. What data it was trained on is read from the `training.json` of a
    run folder; of a repository nothing is known. Other items are a `ValueError`. Items that were added to its catalog
    are trained like all others, and removed ones are open again: a log may hold them.

    Args: the new log, prepared against the checkpoint's items; a run folder or a Hub repository.
    """
    path = os.fspath(folder_or_repo)
    recommender = Recommender.from_pretrained(path, device="cpu")
    model, item_ids = recommender.model, recommender.item_ids
    check_same_catalog(item_ids, prepared, owner=f"The checkpoint {path}")
    if num_removed := len(item_ids) - recommender.catalog.version.num_items:
        logger.warning("%d removed items are open again in the new run: remove them there.", num_removed)
        model.close_items(torch.zeros(len(item_ids), dtype=torch.bool))
    _count_items(model, prepared)
    is_new = rows_of(model.config.new_items, model.config.num_items)
    still_new: Any = is_new & torch.from_numpy(prepared.train_item_counts() == 0)
    model.config.new_items = ranges_of(still_new) or None
    seen = tuple(trained_on(read_training(path)))
    if not model.config.has_codes:
        return Starting(model.float(), None, None, origin=path, trained_on=seen)
    semantic_ids = SemanticIds(
        item_ids=tuple(prepared.item_ids),
        codes=model.item_codes.cpu().numpy().astype("int64"),
        codebook_size=model.config.codebook_size,
        policy="keep",
    )
    folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(path, allow_patterns=f"{QUANTIZER_NAME}/*"))
    quantizer = folder / QUANTIZER_NAME if (folder / QUANTIZER_NAME).is_dir() else None
    return Starting(model.float(), semantic_ids, quantizer, origin=path, trained_on=seen)


def _count_items(model: Any, prepared: PreparedDataset) -> None:
    """Models with codes list those items of an id first that occur more often in training; ACERec corrects by it."""
    if hasattr(model, "set_item_counts"):
        model.set_item_counts(torch.from_numpy(prepared.train_item_counts()))


def check_same_catalog(item_ids: Sequence[str], prepared: PreparedDataset, *, owner: str) -> None:
    """
    Raises a `ValueError` that says how, where something was not made for the items of a data set in their order.

    Args: its items, the data set, and what it is, for the error.
    """
    mine, theirs = list(item_ids), prepared.item_ids
    if mine == theirs:
        return
    only_mine, only_theirs = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
    if only_mine or only_theirs:
        how = f"{len(only_mine)} items only there {only_mine[:5]}, {len(only_theirs)} only here {only_theirs[:5]}"
    else:
        how = "the same items in another order"
    raise ValueError(
        f"{owner} ({len(mine)} items) is not about the catalog of {prepared.folder} ({len(theirs)} items): {how}. "
        "Use the data it was made from, or prepare the log with `--keep-all-items` and the checkpoint's items.parquet "
        "as `--items`."
    )
