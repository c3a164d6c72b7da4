"""
A model for another state of its catalog that shares all parameters with the one before.

Nothing is trained and nothing that exists is written to: the copy has tables with more rows, or other closed rows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_genrec.modeling.genrec_folder import catalog_fingerprint
from hf_genrec.modeling.genrec_lists import ranges_of, rows_of
from hf_genrec.serving.catalog.learned_rows import parts_of


def why_not_growable(model: Any) -> str | None:
    """
    Why a model cannot recommend items that come after training; `None` if it can.

    Args:
        model: A model of the library.
    """
    coded = [part for _, part in parts_of(model) if part.config.has_codes]
    if len({part.config.catalog_fingerprint for part in coded}) > 1:
        return "its members have different semantic IDs, and a new item gets one; sum up members with the same ids"
    return None


def with_items(model: Any, num_new: int, columns: Mapping[str, torch.Tensor]) -> Any:
    """
    The model with further items behind those that it has, which its config counts as new.

    Own rows of a dense head that also reads codes or vectors are zero for them. In the tables of a ridge or of item
    neighbours nothing speaks for a new item.

    Args:
        model: A model of the library.
        num_new (`int`): How many.
        columns (`Mapping[str, torch.Tensor]`):
            What [`coded_rows`] says of them: `codes`, and with the prefix of a part `vector` and `row`.
    """
    twin = _grown(model, num_new, columns, prefix="")
    if hasattr(model, "members"):
        members = twin._modules["members"] = _shared_copy(model.members)
        configs: list[dict[str, Any]] = []
        for (prefix, member), config in zip(parts_of(model), model.config.members, strict=True):
            grown = _grown(member, num_new, columns, prefix=prefix)
            members._modules[str(len(configs))] = grown
            changed = {"num_items": grown.config.num_items, "catalog_fingerprint": grown.config.catalog_fingerprint}
            configs.append(config | {name: value for name, value in changed.items() if value is not None})
        twin.config.members = configs
    return twin


def _grown(model: Any, num_new: int, columns: Mapping[str, torch.Tensor], *, prefix: str) -> Any:
    """One part with further items."""
    twin = _shared_copy(model)
    config = twin.config = copy.copy(model.config)
    config.num_items += num_new
    is_new = rows_of(config.new_items, config.num_items)
    is_new[-num_new:] = True
    config.new_items = ranges_of(is_new)
    row, vector = columns.get(f"{prefix}row"), columns.get(f"{prefix}vector")
    if config.has_codes:
        _append(twin, "item_codes", columns["codes"])
        _append(twin, "item_counts", torch.zeros(num_new))
        config.catalog_fingerprint = catalog_fingerprint(twin.item_codes)
        if model.item_table is not None:
            _grow_item_table(twin, num_new, row=row, vector=vector)
        twin._catalog = twin._item_order = None
    elif hasattr(config, "text_dim"):
        _grow_embedding(twin, "token_embeddings", row)
        if config.text_dim:  # the row is that of the whole vector, texts and all
            _append(twin, "text_vectors", torch.zeros(num_new, config.text_dim))
    elif config.model_type == "item_to_item":
        _append(twin, "offsets", twin.offsets[-1:].expand(num_new))
        _append(twin, "item_shares", torch.zeros(num_new))
        fresh = torch.zeros(num_new, 0) if row is None else row
        twin._parameters["item_vectors"] = _longer(twin.item_vectors, fresh)
    twin._open_items = None
    return twin


def _grow_item_table(twin: Any, num_new: int, *, row: torch.Tensor | None, vector: torch.Tensor | None) -> None:
    table = twin._modules["item_table"] = _shared_copy(twin.item_table)
    if table.text_projection is not None:
        _append(table, "text_vectors", vector)
    if table.rows is not None:
        _grow_embedding(table, "rows", torch.zeros(num_new, table.rows.embedding_dim) if row is None else row)


def _grow_embedding(module: Any, name: str, rows: Any) -> None:
    """More rows behind those of an `nn.Embedding`."""
    table = module._modules[name] = _shared_copy(getattr(module, name))
    table._parameters["weight"] = _longer(table.weight, rows)
    table.num_embeddings += len(rows)


def _longer(weight: torch.Tensor, rows: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat([weight.detach(), rows.to(weight)]), weight.requires_grad)


def with_closed(model: Any, closed: torch.Tensor) -> Any:
    """
    The model with other items closed.

    Args:
        model: A model of the library.
        closed (`torch.BoolTensor` of shape `(num_items,)`): The items that may not be recommended.
    """
    twin = _shared_copy(model)
    twin.config = copy.copy(model.config)
    if hasattr(model, "members"):
        members = twin._modules["members"] = _shared_copy(model.members)
        for name, member in model.members._modules.items():
            members._modules[name] = with_closed(member, closed)
    twin.close_items(closed)
    return twin


def _append(module: nn.Module, name: str, rows: Any) -> None:
    old: Any = module._buffers[name]
    module._buffers[name] = torch.cat([old, rows.to(device=old.device, dtype=old.dtype)])


def _shared_copy(module: Any) -> Any:
    """The same tensors and parts in containers of their own."""
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(module.__dict__[name])
    return twin
