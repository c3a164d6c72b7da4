"""
A model for another state of its catalog that shares all parameters with the one before.

Nothing is trained and nothing that exists is written to: the copy has tables with more rows, or other closed rows.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from hf_genrec.modeling.genrec_folder import catalog_fingerprint


def why_not_growable(model: Any) -> str | None:
    """
    Why a model cannot recommend items that come after training; `None` if it can.

    Args:
        model: A model of the library.
    """
    config, name = model.config, type(model).__name__
    if not config.has_codes:
        return (
            f"a {name} scores items by what it learned of each of them, and has learned nothing of new ones; models "
            "with semantic IDs can take new items"
        )
    if getattr(config, "dense_head", False) and not (config.dense_codes or config.dense_text_dim):
        return "its dense head knows items by learned rows alone: train with `dense_codes` or with vectors"
    return None


def with_items(model: Any, codes: torch.Tensor, *, text_vectors: torch.Tensor | None = None) -> Any:
    """
    The model with further items behind those that it has. Own rows of a dense head are zero for them.

    Args:
        model: A model with semantic IDs.
        codes (`torch.Tensor` of shape `(num_new, num_levels)`): Their semantic IDs.
        text_vectors (`torch.Tensor` of shape `(num_new, dense_text_dim)`, *optional*): What a dense head reads.
    """
    twin, num_new = _shared_copy(model), len(codes)
    twin.config = copy.copy(model.config)
    twin.config.num_items += num_new
    _append(twin, "item_codes", codes)
    _append(twin, "item_counts", torch.zeros(num_new))
    twin.config.catalog_fingerprint = catalog_fingerprint(twin.item_codes)
    if getattr(model, "item_table", None) is not None:
        table = twin._modules["item_table"] = _shared_copy(model.item_table)
        if table.text_projection is not None:
            _append(table, "text_vectors", torch.zeros(0) if text_vectors is None else text_vectors)
        if table.rows is not None:
            rows = table._modules["rows"] = _shared_copy(table.rows)
            fresh = torch.zeros(num_new, rows.embedding_dim, dtype=rows.weight.dtype, device=rows.weight.device)
            rows._parameters["weight"] = nn.Parameter(
                torch.cat([rows.weight.detach(), fresh]), rows.weight.requires_grad
            )
            rows.num_embeddings += num_new
    twin._catalog = twin._item_order = twin._open_items = None
    if hasattr(twin, "_item_graph"):
        twin._item_graph = None  # it does not lead to the new items
    return twin


def with_closed(model: Any, closed: torch.Tensor) -> Any:
    """
    The model with other items closed.

    Args:
        model: A model of the library.
        closed (`torch.BoolTensor` of shape `(num_items,)`): The items that may not be recommended.
    """
    twin = _shared_copy(model)
    twin.config = copy.copy(model.config)
    twin.close_items(closed)
    return twin


def _append(module: nn.Module, name: str, rows: torch.Tensor) -> None:
    old: Any = module._buffers[name]
    module._buffers[name] = torch.cat([old, rows.to(device=old.device, dtype=old.dtype)])


def _shared_copy(module: Any) -> Any:
    """The same tensors and parts in containers of their own."""
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(module.__dict__[name])
    return twin
