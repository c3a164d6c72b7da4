"""
A recommender in, ONNX graphs out; [`OnnxRecommender`] runs them.

Models that score every item become one graph: histories of item rows in, the exact best items and their scores out.
What does not depend on the user is computed once and becomes a constant: how each item enters the encoder, and what
its state is compared with. Models that write semantic IDs code by code become two, see `onnx_steps.py`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_genrec.files import updated_folder, write_json, write_table, write_text
from hf_genrec.modeling.genrec_folder import items_fingerprint
from hf_genrec.modeling.modeling_rpg import MergedItems
from hf_genrec.serving.export.onnx_readme import README
from hf_genrec.serving.export.onnx_steps import (
    HISTORY_INPUTS,
    HISTORY_OUTPUTS,
    STEP_INPUTS,
    STEP_OUTPUTS,
    HistoryGraph,
    StepGraph,
    trie_arrays,
)
from hf_genrec.serving.folder import ITEMS_NAME
from hf_genrec.serving.recommender import Recommender
from hf_genrec.serving.times import has_times


logger = logging.getLogger(__name__)

CONFIG_NAME, TRIE_NAME, README_NAME = "onnx_config.json", "trie.npz", "README.md"
# options that only the search in torch knows
_UNKNOWN = ("prior_correction", "num_rescored", "num_groups", "diversity", "sample_seed")
_OF_SEARCH = (
    "decoder_start_token_id", "first_latent_token", "first_code_token", "codebook_size", "num_levels",
    "num_latent_tokens", "num_paths", "normalization",
)  # fmt: skip
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
        model: A SASRec, HSTU, GRU4Rec, RPG or ACERec, or another model with a dense head, which alone ranks then.
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
        has_rows = hasattr(config, "text_dim")
        self.kind = "rows" if has_rows else "codes" if hasattr(model, "code_log_probs") else "t5"
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
                outputs = model.item_embeddings() if self.kind == "rows" else model.item_vectors()
                self.register_buffer("outputs", outputs.float()[self.order].t().contiguous())

    def _inputs(self) -> torch.Tensor:
        """How items enter the encoder, `(num_items + 1, tokens_per_item, d_model)`; the last row is the user token."""
        model, config = self.model, self.model.config
        tokens = config.first_item_token + torch.arange(config.num_items)
        tokens = torch.cat([tokens, torch.tensor([config.user_token_id])])
        if self.kind == "rows":
            scale = config.d_model**0.5 if config.scale_embeddings else 1.0
            return scale * model._vectors_of(tokens).unsqueeze(1)
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
        if self.kind == "rows":
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
    Write a recommender as ONNX graphs, with its items, its settings and a README that says how they are run.

    | model | graphs |
    |---|---|
    | SASRec, HSTU, GRU4Rec, RPG, ACERec, or `decoding="dense"` | `model.onnx` ranks the whole catalog |
    | Latte, PSID, TIGER | `encoder.onnx` and `decoder.onnx`, and the trie for the search between their calls |
    | one of these with a dense head | all three; `model.onnx` is the dense head alone |

    Args:
        recommender ([`Recommender`]): What to export.
        output (`str` or `Path`): The folder to write.
        top_k (`int`, *optional*, defaults to 100): Items of a list of `model.onnx`, at most those of the catalog.
        int8 (`bool`, *optional*, defaults to `False`):
            Also write each graph as `..._int8.onnx`, whose matrix products are of 8-bit numbers.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: If there is no graph for the model, or for an option that the recommender is set to.
        ImportError: If the packages of the extra `[onnx]` are missing.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'ONNX needs onnx, onnxruntime and onnxscript: pip install "hf-genrec[onnx]" ({error}).'
        ) from error
    model, config = recommender.model, recommender.model.config
    _check(recommender)
    is_searched = config.model_type == "latte" and recommender.decoding == "beam"
    described = {
        "architecture": config.model_type,
        "decoding": "beam" if is_searched else recommender.decoding,
        "max_history_length": config.max_history_length,
        "exclude_seen": recommender.config.exclude_seen,
        "items_fingerprint": items_fingerprint(recommender.item_ids),
    }
    with updated_folder(output) as folder:
        if is_searched:
            described |= search_settings(recommender)
            _write_steps(model, folder)
            np.savez(folder / TRIE_NAME, **trie_arrays(model))  # type: ignore[arg-type]
        if not is_searched or config.dense_head:
            graph = ranking_graph(recommender, top_k=top_k)
            described["top_k"] = graph.top_k
            _write_ranking(graph, folder / "model.onnx")
        if int8:
            for path in sorted(folder.glob("*.onnx")):
                _quantize(path, path.with_name(f"{path.stem}_int8.onnx"))
        write_table(recommender.items, folder / ITEMS_NAME)
        write_json(described, folder / CONFIG_NAME)
        write_text(README, folder / README_NAME)
    return Path(output)


def _check(recommender: Recommender) -> None:
    """Whether there is a graph for the model and for what it is set to."""
    model, config = recommender.model, recommender.model.config
    if config.model_type not in ("latte", "rpg", "acerec", "sasrec", "hstu", "gru4rec"):
        remedy = "; its `members` can be, each as a `Recommender(member, items)`" if hasattr(model, "members") else ""
        raise ValueError(f"There is no ONNX graph for {type(model).__name__}{remedy}.")
    if has_times(config):
        raise ValueError("There is no ONNX graph for a model with `history_gap_buckets`: it has no input for times.")
    changed = [name for name in _UNKNOWN if name in recommender.config.changed()]
    if changed:
        raise ValueError(
            f"The exported search does not know `{changed[0]}`, which this recommender is set to: load it with the "
            f"default, or remove it from recommend_config.json."
        )
    if model.new_items is not None:
        logger.warning("Exported lists keep no places for new items: these stand where their scores put them.")


def search_settings(recommender: Recommender) -> dict[str, Any]:
    """
    What [`CodeSearch`] must know of a recommender.

    Args:
        recommender ([`Recommender`]): Its model writes semantic IDs code by code.
    """
    config, options = recommender.model.config, recommender.config
    settings = {name: getattr(config, name) for name in _OF_SEARCH}
    settings |= {name: getattr(options, name) for name in ("num_beams", "latent_aggregation", "dense_weight")}
    return settings | {"cache_width": StepGraph(recommender.model).cache_width}


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
    elif hasattr(config, "text_dim") or getattr(config, "dense_head", False):
        weights = {"code_weight": 0.0, "dense_weight": 1.0}
    else:
        raise ValueError(f"A {type(model).__name__} without a dense head is searched code by code: no single graph.")
    return RankingGraph(model, top_k=min(top_k, config.num_items), **weights).eval()


def _write_ranking(graph: RankingGraph, path: Path) -> None:
    history = _example_histories(graph.model, graph.order.shape[0])
    users, items, others = torch.export.Dim("users"), torch.export.Dim("items"), torch.export.Dim("others", min=0)
    with _eager_encoder(graph.model if graph.kind == "t5" else None):
        _write_graph(
            graph,
            (history, history[:, :2].clone()),
            path,
            names=(["history", "excluded"], ["items", "scores"]),
            shapes=({0: users, 1: items}, {0: users, 1: others}),
        )


def _write_steps(model: Any, folder: Path) -> None:
    """Write both graphs of a model that is searched."""
    reads, step = HistoryGraph(model).eval(), StepGraph(model).eval()
    history = _example_histories(model, model.config.num_items)
    names = ["users", "items", "beams", "parents", "steps", "tokens"]
    users, items, beams, parents, steps, tokens = (torch.export.Dim(name) for name in names)
    with _eager_encoder(model):
        outputs = [*HISTORY_OUTPUTS, *(["dense"] if model.config.dense_head else [])]
        _write_graph(
            reads, (history,), folder / "encoder.onnx", names=(HISTORY_INPUTS, outputs), shapes=({0: users, 1: items},)
        )
        with torch.no_grad():
            memory = reads(history)[: len(HISTORY_OUTPUTS)]
    chosen = torch.zeros(len(history), 4, dtype=torch.long)
    example = (chosen, chosen.clone(), torch.zeros(len(history), 5, 2, step.cache_width), *memory)
    choice = {0: users, 1: beams}
    of_history = ({0: users, 3: tokens}, {0: users, 3: tokens}, {0: users, 1: tokens}, {0: users})
    _write_graph(
        step,
        example,
        folder / "decoder.onnx",
        names=(STEP_INPUTS, STEP_OUTPUTS),
        shapes=(choice, choice, {0: users, 1: parents, 2: steps}, *of_history),
    )


def _example_histories(model: Any, num_items: int) -> torch.Tensor:
    length = min(_EXAMPLE_ITEMS, model.config.max_history_length)
    return torch.arange(_EXAMPLE_USERS * length).view(_EXAMPLE_USERS, length) % num_items


@contextlib.contextmanager
def _eager_encoder(model: Any) -> Iterator[None]:
    """The fused kernel of a T5's attention has outputs whose strides the exporter cannot follow."""
    if model is None:
        yield
        return
    attention = model.config._attn_implementation
    model.encoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.encoder.set_attn_implementation(attention)


def _write_graph(
    graph: nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    *,
    names: tuple[Sequence[str], Sequence[str]],
    shapes: tuple[Any, ...],
) -> None:
    with warnings.catch_warnings(), _quiet(logging.getLogger("torch.onnx")):
        warnings.simplefilter("ignore")  # names of axes, and what is deprecated inside torch
        torch.onnx.export(
            graph,
            example,
            path,
            dynamo=True,
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    before, logger.level = logger.level, logging.ERROR
    try:
        yield
    finally:
        logger.level = before


def _quantize(path: Path, quantized: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(logging.getLogger()):  # advice about graphs of other exporters
        quantize_dynamic(path, quantized, weight_type=QuantType.QInt8)
