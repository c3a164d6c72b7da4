"""
A prepared data set in, an item-to-item model out, without a single training step: the ridge, item-kNN or text.

Settings are chosen on the validation split, as everywhere; the run folder is like that of a trained model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from hf_genrec.data.checks import check_trained_on
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines import ItemKNN, SequentialRidge, TextSimilarity
from hf_genrec.evaluation.baselines.base import CatalogRanker, validation_users
from hf_genrec.evaluation.ensemble import as_tokens, fit_ensemble, likeliest_factor
from hf_genrec.evaluation.lists import item_indices
from hf_genrec.evaluation.metrics import ndcg_at_k, ranks_of_targets
from hf_genrec.evaluation.record import TRAINING_NAME, read_training
from hf_genrec.files import single_writer, write_json
from hf_genrec.hub.save import save_recommender
from hf_genrec.modeling.configuration_item_to_item import METHODS, ItemToItemConfig
from hf_genrec.modeling.modeling_item_to_item import ItemToItemForItemGeneration
from hf_genrec.serving.language_model import load_model
from hf_genrec.serving.recommender import Recommender, check_model_name
from hf_genrec.tokenizers.folder import QUANTIZER_NAME
from hf_genrec.training.runs import config_settings
from hf_genrec.training.trainer import Stopwatch


logger = logging.getLogger(__name__)

_KNN_NEIGHBORS = 100
_CALIBRATION_USERS, _VALIDATION_USERS = 1_000, 2_000


def fit_item_to_item(
    prepared: PreparedDataset,
    *,
    method: str = "ridge",
    embeddings: NDArray[np.floating] | None = None,
    exclude_seen: bool = False,
    seed: int = 0,
) -> ItemToItemForItemGeneration:
    """
    Fit one of the baselines and hand it over as a model that is saved, served and published like any other.

    [`SequentialRidge`], [`ItemKNN`] and [`TextSimilarity`] are the same systems for a comparison in memory. A factor
    on all weights, chosen by likelihood on the validation split too, makes the softmax of the scores probabilities
    that mean something; the order of the items does not depend on it.

    Args:
        prepared ([`PreparedDataset`]): The data set; weights come from its training part.
        method (`str`, *optional*, defaults to `"ridge"`): `"ridge"`, `"item-knn"` or `"text"`.
        embeddings (`np.ndarray` of shape `(num_items, dimension)`, *optional*): For `"text"`: the items' text vectors.
        exclude_seen (`bool`, *optional*, defaults to `False`):
            Choose settings for lists without items of the history.
        seed (`int`, *optional*, defaults to 0): Of the sample of validation users, where there are very many.

    Returns:
        [`ItemToItemForItemGeneration`]: in evaluation mode, on the CPU.

    Raises:
        ValueError: If the method is unknown, or `embeddings` are missing or of no use.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}.")
    if (embeddings is not None) != (method == "text"):
        raise ValueError("`embeddings` go with `method='text'` and with no other.")
    options: dict[str, Any] = {"exclude_seen": exclude_seen, "seed": seed}
    if embeddings is not None:
        text = TextSimilarity.tune(prepared, embeddings, **options)
        model = _model(prepared, text, method, vectors=text.item_vectors, self_similarity=text.self_similarity)
    elif method == "ridge":
        ridge = SequentialRidge.tune(prepared, **options)
        model = _model(prepared, ridge, method, weights=ridge.item_weights)
    else:
        tuned = ItemKNN.tune(prepared, **options)
        knn = ItemKNN(prepared, alpha=tuned.alpha, decay=tuned.decay, num_neighbors=_KNN_NEIGHBORS)
        model = _model(prepared, knn, method, weights=knn.similarity)
    _calibrate(model, *validation_users(prepared, max_users=_CALIBRATION_USERS, seed=seed), prepared.item_ids)
    return model.eval()


def fit_run(
    prepared: PreparedDataset,
    output_dir: str | os.PathLike[str],
    *,
    method: str = "ridge",
    embeddings: NDArray[np.floating] | None = None,
    exclude_seen: bool | None = None,
    seed: int = 0,
    command: str = "",
) -> dict[str, Any]:
    """
    [`fit_item_to_item`], and the run folder; returns the content of `training.json`.

    Args: see [`fit_item_to_item`]. `exclude_seen` is also how the run is served; `None` leaves seen items out where
    the data set has (almost) no repeats, see [`~PreparedDataset.has_repeats`]. `command` is recorded in
    `training.json`.
    """
    stopwatch = Stopwatch()
    exclude_seen = not prepared.has_repeats if exclude_seen is None else exclude_seen
    model = fit_item_to_item(prepared, method=method, embeddings=embeddings, exclude_seen=exclude_seen, seed=seed)
    settings = {"seed": seed, "training": {"method": method, "exclude_seen": exclude_seen}}
    with single_writer(output_dir):
        return _write_fitted(prepared, output_dir, model, settings, {"command": command} | stopwatch.read())


def ensemble_run(
    prepared: PreparedDataset,
    members: Mapping[str, str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    *,
    combination: str = "standardised",
    exclude_seen: bool | None = None,
    max_users: int | None = 6_000,
    seed: int = 0,
    command: str = "",
) -> dict[str, Any]:
    """
    [`fit_ensemble`] of run folders or Hub repositories, and the run folder of the whole; returns the content of
    `training.json`. There `members` holds their minutes where they are known; `minutes` and `cpu_minutes` are those of
    all together.

    Args: see [`fit_ensemble`] and [`fit_run`]; `members` are paths or repositories, by a name for each.
    """
    stopwatch = Stopwatch()
    exclude_seen = not prepared.has_repeats if exclude_seen is None else exclude_seen
    models, minutes, quantizers = {}, {}, {}
    for name, path in members.items():
        check_model_name(os.fspath(path))
        models[name] = load_model(os.fspath(path)).eval()
        if models[name].config.has_codes and (Path(path) / QUANTIZER_NAME).is_dir():
            quantizers[models[name].config.catalog_fingerprint] = Path(path) / QUANTIZER_NAME
        record = read_training(path)
        check_trained_on(record, prepared.metadata, owner=f"The run {path}")
        minutes[name] = {key: record.get(key) for key in ("minutes", "cpu_minutes")}
    options: dict[str, Any] = {"combination": combination, "exclude_seen": exclude_seen}
    model, report = fit_ensemble(models, prepared, **options, max_users=max_users, seed=seed)
    spent = {
        key: round(value + sum(own[key] or 0 for own in minutes.values()), 3)
        for key, value in stopwatch.read().items()
    }
    more = {"command": command, "ensemble": report, "members": minutes} | spent
    with single_writer(output_dir):
        quantizer = next(iter(quantizers.values())) if len(quantizers) == 1 else None  # by which new items get ids
        return _write_fitted(
            prepared, output_dir, model, {"seed": seed, "training": options}, more, quantizer=quantizer
        )


def _write_fitted(
    prepared: PreparedDataset,
    output_dir: str | os.PathLike[str],
    model: Any,
    settings: dict[str, Any],
    spent: dict[str, Any],
    *,
    quantizer: Path | None = None,
) -> dict[str, Any]:
    """
    The run folder of a model that was made without training steps; returns the content of `training.json`.

    Args: the data set, the run folder and the model; `settings` decided the result, beside the data and the model's
    config; `spent` are command and minutes; `quantizer` is that of a member's semantic IDs, if any.
    """
    folder = Path(output_dir)
    exclude_seen = settings["training"]["exclude_seen"]
    model.recommend_config.exclude_seen = exclude_seen
    save_recommender(folder, model, None, prepared.items, quantizer=quantizer)
    histories, targets = validation_users(prepared, max_users=_VALIDATION_USERS, seed=0)
    found = Recommender(model, prepared.items, batch_size=256).recommend(histories, exclude_seen=exclude_seen)
    record = {
        "settings": {
            "data_fingerprint": prepared.fingerprint,
            "protocol": prepared.metadata["protocol"],
            "semantic_ids_fingerprint": None,
            "from": None,
            "targets": "all",
            "model": config_settings(model.config),
        }
        | settings,
        "data": {"category": prepared.metadata.get("category")},
        "semantic_ids": None,
        "num_threads": torch.get_num_threads(),
        "resumed_from": None,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "best_metric": ndcg_at_k(ranks_of_targets(found.item_ids, targets), k=10),
        "log_history": [],
    } | spent
    write_json(record, folder / TRAINING_NAME)  # last: it says that the run is finished
    return record


def _model(
    prepared: PreparedDataset,
    ranker: CatalogRanker,
    method: str,
    *,
    weights: sp.csr_array | None = None,
    vectors: NDArray[np.float32] | None = None,
    self_similarity: bool = True,
) -> ItemToItemForItemGeneration:
    """A baseline's weights or vectors, which are in order of popularity, in the order of the catalog."""
    rows = pd.Index(prepared.item_ids).get_indexer(ranker.item_ids)
    num_weights, dim = 0 if weights is None else weights.nnz, 0 if vectors is None else vectors.shape[1]
    config = ItemToItemConfig.for_ids(
        prepared.item_ids,
        method=method,
        decay=ranker.decay,
        num_weights=num_weights,
        vector_dim=dim,
        self_similarity=self_similarity,
    )
    model = ItemToItemForItemGeneration(config)
    if weights is not None:
        entries = weights.tocoo()
        items, targets = (rows[places] for places in entries.coords)
        order = np.lexsort((targets, items))
        columns: Any = map(torch.from_numpy, (items[order], targets[order], entries.data[order].astype(np.float32)))
        model.set_weights(*columns)
    if vectors is not None:
        model.item_vectors.data[torch.from_numpy(rows)] = torch.from_numpy(vectors)
    counts = torch.from_numpy(prepared.train_item_counts()).float()
    model.item_shares.copy_(counts / counts.max().clamp_min(1))
    return model


@torch.no_grad()
def _calibrate(
    model: ItemToItemForItemGeneration, histories: list[list[str]], targets: list[str], item_ids: list[str]
) -> None:
    """Multiply all scores by the factor under which the validation targets are most likely."""
    tokens: Any = as_tokens(histories, item_ids, model.config)
    logits = torch.cat([model.item_logits(part) for part in tokens.split(256)])
    scale = likeliest_factor(logits, torch.from_numpy(item_indices([targets], item_ids=item_ids)[0]))
    model.weights.mul_(scale)
    model.item_vectors.mul_(scale**0.5)
