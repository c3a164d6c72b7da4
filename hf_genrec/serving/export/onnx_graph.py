"""
A recommender in, one ONNX graph out: histories of item rows in, the exact best items and their scores out.

What does not depend on the user is computed once and becomes a constant: how each item enters the encoder, and what
its state is compared with. The graph has no item ids, search or trie in it; [`OnnxRecommender`] runs it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_genrec.files import updated_folder, write_json, write_table
from hf_genrec.modeling.genrec_folder import items_fingerprint
from hf_genrec.modeling.modeling_rpg import MergedItems
from hf_genrec.serving.folder import ITEMS_NAME
from hf_genrec.serving.recommender import Recommender


GRAPH_NAME, QUANTIZED_NAME, CONFIG_NAME = "model.onnx", "model_int8.onnx", "onnx_config.json"
_EXAMPLE_USERS, _EXAMPLE_ITEMS = 3, 5  # sizes that the graph is traced with; both are free in it


class _Rows:
    """What an encoder asks of [`PackedHistories`], of rows of one width with their padding: no shape is data."""

    def __init__(self, lengths: torch.Tensor, width: int) -> None:
        self.lengths, self.width, self.num_rows = lengths, width, lengths.shape[0]
        self.columns = torch.arange(width).unsqueeze(0).expand(self.num_rows, width).flatten()
        self.last = torch.arange(self.num_rows) * width + lengths - 1

    def to_rows(self, packed: torch.Tensor) -> torch.Tensor:
        return packed.reshape(self.num_rows, self.width, *packed.shape[1:])

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.flatten(0, 1)


class RankingGraph(nn.Module):
    """
    The network that is exported; it can be called in torch too.

    Args:
        model: A SASRec, RPG or ACERec, or another model with a dense head, which alone ranks then.
        top_k (`int`): Items of a list.
        code_weight (`float`): Weight of the codes' log-probabilities, for models with heads for codes.
        dense_weight (`float`): Weight of the dense head's.
    """

    order: torch.Tensor
    closed: torch.Tensor
    inputs: torch.Tensor
    codes: torch.Tensor
    outputs: torch.Tensor

    def __init__(self, model: Any, *, top_k: int, code_weight: float, dense_weight: float) -> None:
        super().__init__()
        self.model, self.top_k, self.code_weight, self.dense_weight = model, top_k, code_weight, dense_weight
        config = model.config
        self.kind = (
            "sasrec" if config.model_type == "sasrec" else "codes" if hasattr(model, "code_log_probs") else "t5"
        )
        order = model.item_order if config.has_codes else None
        self.register_buffer("order", torch.arange(config.num_items) if order is None else order)
        is_open = model.open_items  # `None` where all are
        self.register_buffer("closed", torch.zeros(config.num_items) if is_open is None else (~is_open).float())
        with torch.no_grad():
            self.register_buffer("inputs", self._inputs())
            if code_weight:
                starts = config.codebook_size * torch.arange(config.num_levels)
                self.register_buffer("codes", (model.item_codes.long() + starts)[self.order])
            if dense_weight:
                outputs = model.item_embeddings() if self.kind == "sasrec" else model.item_vectors()
                self.register_buffer("outputs", outputs.float()[self.order].t().contiguous())

    def _inputs(self) -> torch.Tensor:
        """How items enter the encoder, `(num_items + 1, tokens_per_item, d_model)`; the last row is the user token."""
        model, config = self.model, self.model.config
        tokens = config.first_item_token + torch.arange(config.num_items)
        tokens = torch.cat([tokens, torch.tensor([config.user_token_id])])
        if self.kind == "sasrec":
            scale = config.d_model**0.5 if config.scale_embeddings else 1.0
            return scale * model.token_embeddings(tokens).unsqueeze(1)
        if self.kind == "codes":
            return model._merge_items(tokens).tokens
        vectors = torch.cat(
            [model.item_vectors(), model.shared.weight[config.user_token_id : config.user_token_id + 1]]
        )
        return vectors.unsqueeze(1)

    def forward(self, history: torch.Tensor, excluded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The best items.

        Args:
            history (`torch.LongTensor` of shape `(batch_size, history_length)`):
                Item rows from 0, oldest first, padded on the right with -1; at most `max_history_length`.
            excluded (`torch.LongTensor` of shape `(batch_size, num_excluded)`):
                Item rows that may not be recommended, padded with -1.

        Returns:
            `(torch.LongTensor, torch.FloatTensor)`, both of shape `(batch_size, top_k)`: item rows, best first, and
            log-probabilities; `-inf` where there are fewer items.
        """
        scores = self._scores(history)
        num_items = self.order.shape[0]
        spare = torch.where(excluded < 0, num_items, excluded)  # padding falls into an extra column
        closed = torch.zeros(history.shape[0], num_items + 1).scatter(1, spare, 1.0)[:, :num_items] + self.closed
        scores = scores.masked_fill(closed[:, self.order] > 0, -float("inf"))
        best, places = scores.topk(self.top_k, dim=1)  # of equal scores the first one, in ONNX
        return self.order[places], best

    def _scores(self, history: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of all items in `order`, `(batch_size, num_items)`."""
        states = self._t5_states(history) if self.kind == "t5" else self._block_states(history)
        parts = []
        if self.code_weight:
            log_probs = self.model._code_log_probs(states).flatten(1)
            generated = log_probs[:, self.codes[:, 0]]
            for level in range(1, self.codes.shape[1]):
                generated = generated + log_probs[:, self.codes[:, level]]
            parts.append(self.code_weight * generated)
        if self.dense_weight:
            logits = (states.float() @ self.outputs).masked_fill(self.closed[self.order] > 0, -float("inf"))
            parts.append(self.dense_weight * logits.log_softmax(-1))
        return sum(parts[1:], parts[0])

    def _block_states(self, history: torch.Tensor) -> torch.Tensor:
        """What the model's own encoder makes of rows; an empty history is the user token."""
        rows = torch.where(history < 0, self.inputs.shape[0] - 1, history).flatten()
        histories: Any = _Rows((history >= 0).sum(1).clamp(min=1), history.shape[1])
        if self.kind == "sasrec":
            return self.model.encoder(self.inputs[rows], histories).squeeze(1)
        return self.model._encode(MergedItems(tokens=self.inputs), rows, histories)

    def _t5_states(self, history: torch.Tensor) -> torch.Tensor:
        """The user token, then the items, causally; the state of the last item."""
        lengths = (history >= 0).sum(1)
        rows = torch.where(history < 0, self.inputs.shape[0] - 1, history)
        user = self.inputs[-1:].expand(history.shape[0], 1, -1)
        embeddings = torch.cat([user, self.inputs[rows].squeeze(2)], dim=1)
        place = torch.arange(history.shape[1] + 1)
        is_later = (place.unsqueeze(0) > place.unsqueeze(1))[None, None]
        mask = torch.zeros(is_later.shape).masked_fill(is_later, torch.finfo(torch.float32).min)
        states = self.model.encoder(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        return states[torch.arange(history.shape[0]), lengths]


def export_onnx(
    recommender: Recommender,
    output: str | os.PathLike[str],
    *,
    top_k: int = 100,
    int8: bool = False,
) -> Path:
    """
    Write a recommender as one ONNX graph that ranks the whole catalog, and its items beside it.

    For models that score all items: SASRec, RPG, ACERec, and whatever has a dense head. Of a model that writes codes
    one by one and has a dense head, that head alone is exported.

    Args:
        recommender ([`Recommender`]): What to export.
        output (`str` or `Path`): The folder to write: `model.onnx`, `items.parquet`, `onnx_config.json`.
        top_k (`int`, *optional*, defaults to 100): Items of a list, at most those of the catalog.
        int8 (`bool`, *optional*, defaults to `False`):
            Also write `model_int8.onnx`, whose matrix products are of 8-bit numbers.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: If the model can only be searched code by code.
        ImportError: If the packages of the extra `[onnx]` are missing.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'ONNX needs onnx, onnxruntime and onnxscript: pip install "hf-genrec[onnx]" ({error}).'
        ) from error
    graph = ranking_graph(recommender, top_k=top_k)
    config = recommender.model.config
    described = {
        "architecture": config.model_type,
        "top_k": graph.top_k,
        "max_history_length": config.max_history_length,
        "exclude_seen": recommender.config.exclude_seen,
        "items_fingerprint": items_fingerprint(recommender.item_ids),
    }
    with updated_folder(output) as folder:
        _write_graph(graph, folder / GRAPH_NAME)
        if int8:
            _quantize(folder / GRAPH_NAME, folder / QUANTIZED_NAME)
        write_table(recommender.items, folder / ITEMS_NAME)
        write_json(described, folder / CONFIG_NAME)
    return Path(output)


def ranking_graph(recommender: Recommender, *, top_k: int) -> RankingGraph:
    """
    The network of a recommender that `export_onnx` writes.

    Args:
        recommender ([`Recommender`]): What to export.
        top_k (`int`): Items of a list.
    """
    model, config = recommender.model, recommender.model.config
    if config.model_type in ("rpg", "acerec"):
        is_dense = recommender.decoding == "dense"
        weights = {
            "code_weight": 0.0 if is_dense else 1.0,
            "dense_weight": 1.0 if is_dense else recommender.config.dense_weight if config.dense_head else 0.0,
        }
    elif config.model_type == "sasrec" or getattr(config, "dense_head", False):
        weights = {"code_weight": 0.0, "dense_weight": 1.0}
    else:
        raise ValueError(
            f"A {type(model).__name__} without a dense head is searched code by code, which is no single graph: train "
            "it with `dense_head`, or export a SASRec, RPG or ACERec."
        )
    if config.model_type == "latte" and config.history_attention != "causal":
        raise ValueError("Only encoders with `history_attention='causal'` can be exported.")
    return RankingGraph(model, top_k=min(top_k, config.num_items), **weights).eval()


def _write_graph(graph: RankingGraph, path: Path) -> None:
    length = min(_EXAMPLE_ITEMS, graph.model.config.max_history_length)
    history = torch.arange(_EXAMPLE_USERS * length).view(_EXAMPLE_USERS, length) % graph.order.shape[0]
    users, items, others = torch.export.Dim("users"), torch.export.Dim("items"), torch.export.Dim("others", min=0)
    attention = graph.model.config._attn_implementation
    if graph.kind == "t5":  # the fused kernel's output has strides that the exporter cannot follow
        graph.model.encoder.set_attn_implementation("eager")
    with warnings.catch_warnings(), _quiet(logging.getLogger("torch.onnx")):
        warnings.simplefilter("ignore")  # names of axes, and what is deprecated inside torch
        torch.onnx.export(
            graph,
            (history, history[:, :2].clone()),
            path,
            dynamo=True,
            input_names=["history", "excluded"],
            output_names=["items", "scores"],
            dynamic_shapes=({0: users, 1: items}, {0: users, 1: others}),
            external_data=False,
            verbose=False,
        )
    if graph.kind == "t5":
        graph.model.encoder.set_attn_implementation(attention)


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    before, logger.level = logger.level, logging.ERROR
    try:
        yield
    finally:
        logger.level = before


def _quantize(path: Path, quantized: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, quantized, weight_type=QuantType.QInt8)
