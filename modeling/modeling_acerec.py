"""
ACERec: items enter as a few merged tokens with an intent token behind them; heads and scorer are RPG's.

Mergers take the embeddings of an item's codes and return a few tokens that stand for the item in a history,
`(num_items, num_merged_tokens, d_model)`. A model merges each distinct item of a batch once, however often it occurs.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init
from transformers.utils import logging

from .configuration_acerec import ACERecConfig
from .genrec_encoder import BlockEncoder
from .modeling_rpg import MergedItems, ParallelPreTrainedModel


logger = logging.get_logger(__name__)


MAX_REBUILT_ITEMS = 256  # of a batch, drawn at random: rebuilding all of them would cost a fifth of a training step


class ACERecForItemGeneration(ParallelPreTrainedModel):
    """
    RPG with another encoder: the codes of an item are merged into a few tokens, and predictions are read at an intent
    token behind them, which sees them and everything earlier.

    In training two losses join that of the codes: an alignment of the state with the vector of the next item against
    the other targets of the batch, corrected for popularity (`set_item_counts`), and a reconstruction of the code
    embeddings from the merged tokens. In evaluation mode the loss is that of the codes alone.

    Args:
        config ([`ACERecConfig`]): Sizes, token layout and options.

    Source: ACERec (https://huggingface.co/papers/2602.13573).

    Example:

    ```python
    >>> config = ACERecConfig(num_items=3, num_levels=4, codebook_size=5, num_merged_tokens=2, d_model=8, d_ff=16)
    >>> model = ACERecForItemGeneration(config).eval()
    >>> model.set_catalog(torch.tensor([[0, 1, 4, 2], [0, 2, 3, 3], [3, 0, 1, 1]]))
    >>> model.set_item_counts(torch.tensor([7, 0, 2]))
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> model.code_log_probs(history).shape
    torch.Size([1, 4, 5])

    ```
    """

    config: ACERecConfig
    config_class = ACERecConfig
    _auto_class = "AutoModel"  # saving takes the code along
    item_counts: torch.Tensor

    def __init__(self, config: ACERecConfig):
        super().__init__(config)
        self.item_vector: Any = None
        if config.anchor == "intent" or config.merger == "attentive" or config.alignment_weight:
            self.item_vector = ItemVector(config)
        self.merger: Any = AttentiveMerger(config) if config.merger == "attentive" else GroupMerger(config)
        self.anchor_mlp: Any = None
        if config.anchor == "mlp":
            width = config.d_model
            inner = nn.Linear(config.num_merged_tokens * width, width)
            self.anchor_mlp = nn.Sequential(inner, nn.GELU(approximate="tanh"), nn.Linear(width, width))
        self.reconstruction: Any = Reconstruction(config) if config.reconstruction_weight else None
        self._finish_init()

    def _make_encoder(self) -> BlockEncoder:
        config = self.config
        return BlockEncoder(config, tokens_per_item=config.tokens_per_item, has_intent=config.anchor == "intent")

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, AttentiveMerger):
            init.normal_(module.level_embedding, mean=0.0, std=self.config.initializer_range)

    # --- the encoder ---------------------------------------------------------------------------------------------

    def _merge(self, code_tokens: torch.LongTensor) -> MergedItems:
        weight, config = self.token_embeddings.weight, self.config
        vectors = None
        if self.item_vector is not None:
            vectors = self.item_vector(nn.functional.embedding_bag(code_tokens, weight, mode=config.item_pooling))
        if config.merger == "attentive":
            merged = self.merger(*self._normed_rows(code_tokens), vectors)
        else:
            merged = self.merger(nn.functional.embedding(code_tokens, weight))
        tokens = merged
        if config.anchor == "intent":
            tokens = torch.cat([merged, vectors.to(merged.dtype).unsqueeze(1)], dim=1)
        return MergedItems(tokens, vectors, code_tokens)

    def _normed_rows(self, code_tokens: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Code embeddings as the attentive merger reads them, and which of them each item has."""
        weight, config = self.token_embeddings.weight, self.config
        levels = torch.arange(config.num_levels, device=weight.device)
        if len(code_tokens) < config.codebook_size:
            rows = self.merger.normed(nn.functional.embedding(code_tokens, weight), levels)
            return rows.flatten(0, 1), torch.arange(code_tokens.numel(), device=levels.device).view_as(code_tokens)
        table = self.merger.normed(self.code_embeddings(), levels.unsqueeze(1)).flatten(
            0, 1
        )  # a row serves many items
        places = code_tokens - config.first_code_token
        is_user = places < 0
        if bool(is_user.any()):
            places = torch.where(is_user, len(table) + levels, places)
            table = torch.cat([table, self.merger.normed(weight[config.user_token_id], levels)])
        return table, places

    def _merged_numbers(self) -> int:
        config = self.config
        if config.merger == "attentive":  # queries, and what each head of each of them reads
            return config.num_merged_tokens * config.d_model * (4 + 3 * config.num_heads)
        return config.d_model * (2 * config.num_levels + 3 * config.num_merged_tokens)

    def _encode(self, merged, places, histories, anchors=None):
        anchor, num_tokens = self.config.anchor, self.config.tokens_per_item
        first_read = num_tokens - 1 if anchor in ("intent", "last") else 0
        tokens = merged.tokens.index_select(0, places)
        states = self.encoder(tokens, histories, anchors=anchors, first_read=first_read)
        return self.anchor_mlp(states.flatten(1)) if anchor == "mlp" else states.mean(1)

    # --- the other losses ----------------------------------------------------------------------------------------

    def _other_losses(self, merged, states, targets, places) -> torch.Tensor | float:
        config = self.config
        loss = 0.0
        if config.alignment_weight and len(targets):
            loss = config.alignment_weight * self._alignment(merged.vectors, states, targets, places)
        if config.reconstruction_weight:
            tokens, code_tokens = merged.tokens[:, : config.num_merged_tokens], merged.code_tokens
            if len(tokens) > MAX_REBUILT_ITEMS:
                chosen = torch.randperm(len(tokens), device=tokens.device)[:MAX_REBUILT_ITEMS]
                tokens, code_tokens = tokens[chosen], code_tokens[chosen]
            rows = nn.functional.embedding(code_tokens, self.token_embeddings.weight.detach())
            loss = loss + config.reconstruction_weight * len(targets) * self.reconstruction(tokens, rows)
        return loss

    def _alignment(self, vectors, states, targets, places) -> torch.Tensor:
        """
        Cross-entropy, summed over targets, of finding the vector of each target among those of all targets of the
        batch. Other targets count as often as they occur; other occurrences of a position's own target do not.
        """
        items, index, occurrences = targets.unique(return_inverse=True, return_counts=True)
        first_place = torch.empty_like(items).scatter_(0, index, places)  # equal targets have equal places
        vectors = nn.functional.normalize(vectors[first_place], dim=-1)
        logits = nn.functional.normalize(states, dim=-1) @ vectors.t().to(states.dtype)
        logits = logits.float() / self.config.alignment_temperature
        logits = logits - self._popularity(items - self.config.first_item_token)
        own = logits.gather(1, index.unsqueeze(1))
        logits = (logits + occurrences.log()).scatter(1, index.unsqueeze(1), own)
        return nn.functional.cross_entropy(logits, index, reduction="sum")

    def _popularity(self, items) -> torch.Tensor:
        """What the logits of items lose: `popularity_correction` for the most popular one, 0 for counts of 0 and 1."""
        if self.config.popularity_correction and not bool(self.item_counts.any()):
            logger.warning_once(
                "`popularity_correction` has no effect: tell the model how often items occur with `set_item_counts`."
            )
        logs = self.item_counts.clamp_min(1).log()
        return self.config.popularity_correction * logs[items] / logs.max().clamp_min(1e-6)


class ItemVector(nn.Module):
    """
    One vector of an item, `u + MLP(u)` of the normalised pooled embeddings `u` of its codes.

    It makes the queries of the attentive merger, is what an intent token starts as and what the alignment looks for.
    """

    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.mlp = _mlp(config.d_model, config.d_model, config.d_model)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Takes `pooled` `(num_items, d_model)`. Returns the same shape."""
        unit = self.norm(pooled)
        return unit + self.mlp(unit)


class AttentiveMerger(nn.Module):
    """
    Queries made from the item itself attend to its codes: one layer, residual, with a feed-forward layer behind it.

    Codes are read with an embedding of their level and normalised. The projections of keys and values are applied to
    the few queries and to the few results instead of to the many codes, which is the same sum in another order.

    Source: the attentive token merger of ACERec (https://huggingface.co/papers/2602.13573); residuals, norms and the
        inner sizes are ours.
    """

    def __init__(self, config):
        super().__init__()
        width, self.num_heads = config.d_model, config.num_heads
        self.num_merged_tokens = config.num_merged_tokens
        self.level_embedding = nn.Parameter(torch.zeros(config.num_levels, width))
        self.code_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.queries = nn.Linear(width, config.num_merged_tokens * width)
        self.query_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.mlp = _mlp(width, width, width)

    def forward(self, table: torch.Tensor, places: torch.LongTensor, vectors: torch.Tensor) -> torch.Tensor:
        """
        From code embeddings `(num_rows, d_model)` as `normed` returns them, which of these rows each item has
        `(num_items, num_levels)`, and the items' vectors `(num_items, d_model)` to `(num_items, num_merged_tokens,
        d_model)`.
        """
        queries = self.queries(vectors).view(len(vectors), self.num_merged_tokens, -1)
        merged = queries + self.output(self._attend(self.query_norm(queries), table, places))
        return merged + self.mlp(self.mlp_norm(merged))

    def normed(self, rows: torch.Tensor, levels: torch.Tensor | slice) -> torch.Tensor:
        """Code embeddings `(..., d_model)` as the attention reads them; `levels` are those of the rows."""
        return self.code_norm(rows + self.level_embedding[levels])

    def _attend(self, queries, table, places) -> torch.Tensor:
        """Multi-head attention of `queries` to the items' rows, `(num_items, num_merged_tokens, d_model)`."""
        shape, num_heads = queries.shape, self.num_heads
        keys = self.key.weight.unflatten(0, (num_heads, -1))  # (num_heads, head_width, d_model)
        values = self.value.weight.unflatten(0, (num_heads, -1))
        heads = queries.flatten(0, 1).unflatten(1, (num_heads, -1)).transpose(0, 1)
        heads = torch.bmm(heads * heads.shape[-1] ** -0.5, keys)  # (num_heads, num_items * num_merged_tokens, d_model)
        heads = heads.unflatten(1, shape[:2]).transpose(0, 1).flatten(1, 2)
        mixed = attend_to_rows(heads, table, places)
        mixed = mixed.unflatten(1, (num_heads, -1)).transpose(0, 1).flatten(1, 2)
        return torch.bmm(mixed, values.transpose(1, 2)).transpose(0, 1).reshape(shape)


class GroupMerger(nn.Module):
    """
    Neighbouring codes together: their mean, a convolution whose kernel is as wide as its stride, or an MLP over them.

    Where `num_merged_tokens` does not divide `num_levels` the groups differ in size by one.

    Source: ablations of ACERec (https://huggingface.co/papers/2602.13573); the inner forms are ours.
    """

    def __init__(self, config):
        super().__init__()
        self.num_merged_tokens, width = config.num_merged_tokens, config.d_model
        group = -(-config.num_levels // config.num_merged_tokens)
        self.transform: nn.Module | None = None
        if config.merger == "conv":
            self.transform = nn.Linear(group * width, width)
        elif config.merger == "mlp":
            self.transform = _mlp(group * width, width, width)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Takes `rows` `(num_items, num_levels, d_model)`. Returns `(num_items, num_merged_tokens, d_model)`."""
        grouped, is_code = level_groups(rows, self.num_merged_tokens)
        if self.transform is None:
            return grouped.sum(2) / is_code.sum(1, keepdim=True)
        return self.transform(grouped.flatten(2))


class Reconstruction(nn.Module):
    """
    Rebuilds the embeddings of an item's codes from its merged tokens, each token those of one group of codes.

    Source: the second version of ACERec (https://huggingface.co/papers/2602.13573); the decoder's inner form is ours.
    """

    def __init__(self, config):
        super().__init__()
        group = -(-config.num_levels // config.num_merged_tokens)
        self.decoder = _mlp(config.d_model, -(-config.d_model // 2), group * config.d_model)

    def forward(self, merged: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """
        One minus the mean cosine, in [0, 2], between the code embeddings `(num_items, num_levels, d_model)` and those
        rebuilt from `merged` `(num_items, num_merged_tokens, d_model)`. No gradient goes into the former: they
        are not to become easy to rebuild.
        """
        rows, is_code = level_groups(rows.detach(), merged.shape[1])
        rebuilt = self.decoder(merged).view(rows.shape)
        wide = torch.promote_types(rebuilt.dtype, torch.float32)
        rows = nn.functional.normalize(rows.to(wide), dim=-1).to(rebuilt.dtype)
        lengths = torch.linalg.vector_norm(rebuilt, dim=-1, dtype=wide).clamp_min(1e-8)
        cosines = (rebuilt * rows).sum(-1, dtype=wide) / lengths
        return 1 - cosines.sum() / (len(rows) * is_code.sum())  # the filling of small groups is 0 and so its cosines


def level_groups(rows: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.BoolTensor]:
    """
    Levels in groups of neighbours of almost equal size.

    Args:
        rows: Something for each level, `(num_items, num_levels, width)`.
        num_groups: At most `num_levels`.

    Returns `(num_items, num_groups, group_size, width)` with zeros at the end of the smaller groups, and which places
    are taken, `(num_groups, group_size)`.

    Example:

    ```python
    >>> groups, is_level = level_groups(torch.tensor([[[1.0], [2.0], [3.0], [4.0], [5.0]]]), 2)
    >>> groups.squeeze(-1).tolist(), is_level.tolist()
    ([[[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]], [[True, True, False], [True, True, True]])

    ```
    """
    num_levels = rows.shape[1]
    bounds = torch.arange(num_groups + 1, device=rows.device) * num_levels // num_groups
    levels = bounds[:-1, None] + torch.arange(-(-num_levels // num_groups), device=rows.device)
    is_level = levels < bounds[1:, None]
    if num_levels % num_groups == 0:
        return rows.unflatten(1, levels.shape), is_level
    rows = nn.functional.pad(rows, (0, 0, 0, 1))
    levels = torch.where(is_level, levels, num_levels)
    return rows.index_select(1, levels.flatten()).unflatten(1, levels.shape), is_level


def _mlp(num_inputs: int, num_inner: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, num_inner), nn.GELU(approximate="tanh"), nn.Linear(num_inner, num_outputs)
    )


# --- attention of items to their rows of a table -----------------------------------------------------------------


ITEMS_PER_BLOCK = 32  # on a CPU: 32 items with 32 rows of 448 numbers in bfloat16 are 0.9 MB


def attend_to_rows(queries: torch.Tensor, table: torch.Tensor, places: torch.LongTensor) -> torch.Tensor:
    """
    Each query attends to its item's rows, which are keys and values at once: `softmax(q rows^T) rows`.

    Under autocast the matrix products and the gradients of the rows are in its dtype, else in that of `queries`.

    Gathering the rows of all items of a batch takes `num_items * num_rows_per_item * d_model` numbers, which would go
    through memory a dozen times; here a block of items is gathered, used and forgotten while it is in the cache, and
    gathered again in the backward pass.

    Args:
        queries: `(num_items, num_queries, d_model)`.
        table: `(num_rows, d_model)`.
        places: `(num_items, num_rows_per_item)`: which rows of `table` each item has.

    Example:

    ```python
    >>> table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    >>> attend_to_rows(torch.tensor([[[50.0, 0.0], [0.0, 0.0]]]), table, torch.tensor([[0, 1]]))
    tensor([[[1.0000, 0.0000],
             [0.5000, 0.5000]]])

    ```
    """
    device_type = queries.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else queries.dtype
    with torch.autocast(device_type, enabled=False):
        return _RowAttention.apply(queries.to(dtype), table, places)


class _RowAttention(torch.autograd.Function):
    """Keeps the attention weights, not the rows."""

    @staticmethod
    def forward(ctx, queries, table, places):
        rows_of = table.to(queries.dtype)
        weights = queries.new_empty(*queries.shape[:2], places.shape[1])
        mixed = torch.empty_like(queries)
        for block in _blocks(queries):
            rows = nn.functional.embedding(places[block], rows_of)
            weights[block] = torch.bmm(queries[block], rows.transpose(1, 2)).softmax(-1)
            mixed[block] = torch.bmm(weights[block], rows)
        ctx.save_for_backward(queries, table, places, weights)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx, d_mixed):
        queries, table, places, weights = ctx.saved_tensors
        rows_of = table.to(queries.dtype)
        d_queries = torch.empty_like(queries)
        d_rows = queries.new_empty(*places.shape, table.shape[1])
        for block in _blocks(queries):
            rows = nn.functional.embedding(places[block], rows_of)
            part, d_part = weights[block], d_mixed[block]
            d_scores = torch.bmm(d_part, rows.transpose(1, 2))
            d_scores = part * (d_scores - (part * d_scores).sum(-1, keepdim=True))
            d_queries[block] = torch.bmm(d_scores, rows)
            # the rows as values and as keys, in one product
            left = torch.cat([part, d_scores], dim=1).transpose(1, 2)
            d_rows[block] = torch.bmm(left, torch.cat([d_part, queries[block]], dim=1))
        return d_queries, _sum_by_place(d_rows.flatten(0, 1), places.flatten(), len(table)).to(table.dtype), None


def _blocks(items: torch.Tensor) -> list[slice]:
    """Slices of the first axis: what fits into a CPU's cache, all at once elsewhere."""
    size = ITEMS_PER_BLOCK if items.device.type == "cpu" else max(1, len(items))
    return [slice(start, start + size) for start in range(0, len(items), size)]


def _sum_by_place(rows: torch.Tensor, places: torch.Tensor, num_places: int) -> torch.Tensor:
    """
    The sum of the rows of each place, `(num_places, width)`.

    Sorting the places makes this a sum of bags, ten times faster on a CPU than adding row by row.
    """
    order = places.argsort(stable=True)
    starts = torch.searchsorted(places[order], torch.arange(num_places, device=places.device))
    return nn.functional.embedding_bag(order, rows, starts, mode="sum")


__all__ = ["ACERecForItemGeneration"]
