"""
RPG, and what it shares with ACERec: all codes of the next item predicted at once, item tokens in, a loss or
log-probabilities out.

RPG reads an item as the mean of its code embeddings, with GPT-2 blocks and one head per level of a long semantic ID.
A model of the family says how items become tokens of the encoder (`_merge`) and how a state is read (`_encode`). The
token table's rows for codes, the heads, the loss and the log-probabilities of codes are the same for all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init

from .configuration_rpg import RPGConfig
from .genrec_catalog import CatalogMixin
from .genrec_dense import ItemTable, ItemTableMixin, TwoScores
from .genrec_encoder import HistoryPreTrainedModel, PackedHistories
from .genrec_item_graph import item_scores
from .genrec_rank_codes import CodeRankingMixin
from .genrec_recommend import evaluation_mode


ITEMS_STEP = 64


@dataclass
class MergedItems:
    """Items as the encoder reads them."""

    tokens: torch.Tensor  # (num_items, tokens_per_item, d_model)
    vectors: torch.Tensor | None = None  # (num_items, d_model)
    code_tokens: torch.LongTensor | None = None  # (num_items, num_levels)


class CodeHeads(nn.Module):
    """`g_j(h) = h + SiLU(W_j h + b_j)`, one `W_j` and `b_j` per level or one for all. `W` starts at zero."""

    def __init__(self, config):
        super().__init__()
        num_heads = config.num_levels if config.projection == "separate" else 1
        self.weight = nn.Parameter(torch.zeros(num_heads, config.d_model, config.d_model))
        self.bias = nn.Parameter(torch.zeros(num_heads, config.d_model))


class ParallelPreTrainedModel(ItemTableMixin, CodeRankingMixin, CatalogMixin, HistoryPreTrainedModel):
    """
    A model that predicts all codes of an item at once.

    It supplies `_merge(code_tokens)`: how items, given as tokens of their codes `(num_items, num_levels)`, enter the
    encoder, as [`MergedItems`].
    """

    _merge: Callable[[torch.LongTensor], MergedItems]
    _predicts = "all codes of an item at once"

    def __init__(self, config):
        super().__init__(config)
        self.heads = CodeHeads(config) if config.projection != "none" else None

    def _finish_init(self) -> None:
        self.register_item_table()
        self.register_catalog()
        super()._finish_init()

    @torch.no_grad()
    def _init_weights(self, module):
        """GPT-2's initialisation; heads start as `h + SiLU(b)`."""
        super()._init_weights(module)
        if isinstance(module, CodeHeads):
            init.zeros_(module.weight)
            init.uniform_(module.bias, -(self.config.d_model**-0.5), self.config.d_model**-0.5)
        elif isinstance(module, ItemTable):
            module.init_weights(self.config.initializer_range)

    def code_embeddings(self) -> torch.Tensor:
        """The rows of the token table that stand for codes, `(num_levels, codebook_size, d_model)`: a view."""
        config = self.config
        rows = self.token_embeddings.weight[config.first_code_token :]
        return rows.view(config.num_levels, config.codebook_size, config.d_model)

    # --- what a model says of itself -----------------------------------------------------------------------------

    def _merge_items(self, tokens: torch.LongTensor) -> MergedItems:
        """Items, given as tokens `(num_items,)`, as they enter the encoder: their codes, and what the table adds."""
        merged = self._merge(self._code_tokens(tokens))
        if self.item_table is not None and (self.config.dense_rows or self.config.dense_text_dim):
            items = tokens - self.config.first_item_token  # below 0 for the user token
            own = self.item_table(items.clamp_min(0), None).masked_fill(items.unsqueeze(1) < 0, 0)
            merged.tokens = merged.tokens + own.unsqueeze(1)
        return merged

    def code_vectors(self, items: torch.LongTensor | None = None) -> torch.Tensor:
        """The part of the codes in the vectors of `items` `(n,)`, `None` for all: the mean of their embeddings."""
        return nn.functional.embedding_bag(self.code_tokens(items), self.token_embeddings.weight, mode="mean")

    def _merged_numbers(self) -> int:
        """How many numbers merging an item takes, beside the tokens of its codes."""
        return self.config.d_model

    def _encode(self, merged: MergedItems, places: torch.LongTensor, histories: PackedHistories, anchors=None):
        """States `(num_anchors, d_model)`; `places` says which of the merged items each packed one is."""
        return self.encoder(merged.tokens.index_select(0, places), histories, anchors=anchors).squeeze(1)

    def _other_losses(self, merged, states, targets, places) -> torch.Tensor | float:
        """What training adds to the prediction loss, summed over targets; `places` are those of the targets."""
        return 0.0

    def _code_tokens(self, tokens: torch.LongTensor) -> torch.LongTensor:
        """Tokens of the codes of items `(n, num_levels)`; the user token all along for the user token."""
        first = self.config.first_item_token
        code_tokens = self.code_tokens((tokens - first).clamp_min(0))
        return code_tokens.masked_fill((tokens < first).unsqueeze(1), self.config.user_token_id)

    # --- predictions ---------------------------------------------------------------------------------------------

    def code_log_probs(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Log-probability of every code at every level of the item that follows each history, `(batch_size, num_levels,
        codebook_size)`, float32. Levels are independent: the log-probability of an item is the sum over its codes.

        Args: see [`ItemTokensMixin.is_item`].
        """
        return self._code_log_probs(self._last_states(input_ids, attention_mask))

    def _last_states(self, input_ids, attention_mask) -> torch.Tensor:
        """States behind the histories `(batch_size, d_model)`."""
        if not len(input_ids):
            return self.token_embeddings.weight.new_zeros(0, self.config.d_model)
        histories = self._pack(input_ids, self._present(input_ids, attention_mask), attention_mask)
        distinct, places = histories.tokens.unique(return_inverse=True)
        return self._encode(self._merge_items(distinct), places, histories)

    def _code_log_probs(self, states: torch.Tensor) -> torch.FloatTensor:
        outputs = states.unsqueeze(0)  # (num_heads or 1, batch_size, d_model)
        if self.heads is not None:
            inner = torch.matmul(outputs, self.heads.weight.transpose(1, 2)) + self.heads.bias.unsqueeze(1)
            outputs = outputs + nn.functional.silu(inner)
        with torch.autocast(states.device.type, enabled=False):
            outputs, table = nn.functional.normalize(outputs.float(), dim=-1), self.code_embeddings().float()
            lengths = torch.linalg.vector_norm(table, dim=-1).clamp_min(1e-12) * self.config.temperature
            logits = (torch.matmul(outputs, table.transpose(1, 2)) / lengths.unsqueeze(1)).transpose(0, 1)
            return logits.log_softmax(-1)

    def _two_log_probs(self, input_ids, attention_mask) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        states = self._last_states(input_ids, attention_mask)
        return self._code_log_probs(states), self.log_probs_of_items(states)

    @torch.no_grad()
    def score_both(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        allowed: torch.BoolTensor | None = None,
        **search,
    ) -> TwoScores:
        """
        See [`ItemTableMixin`]: of all items; those that are not `allowed` have `-inf`, and nothing is searched for.

        Args: see [`DenseHeadMixin.score_both`].
        """
        with evaluation_mode(self):
            log_probs, dense = self._two_log_probs(input_ids, attention_mask)
        generated = item_scores(log_probs, self.item_codes)
        return TwoScores(generated if allowed is None else generated.masked_fill(~allowed, -float("inf")), dense)

    def history_bytes(self, history_length: int) -> int:
        """
        What `code_log_probs` takes per user, for the size of a chunk of users: one block of the encoder with its
        attention scores, what merging an item takes, and outputs and logits of all levels.
        """
        config, size = self.config, self.token_embeddings.weight.dtype.itemsize
        num_items = min(max(1, history_length), config.max_history_length)
        merging = num_items * (3 * 8 * config.num_levels + size * self._merged_numbers())
        outputs = config.num_levels * (2 * config.d_model * (size + 4) + 3 * 4 * config.codebook_size)
        return self._encoder_bytes(num_items) + merging + outputs

    def _loss(self, histories: PackedHistories, targets: torch.LongTensor, anchors: torch.LongTensor) -> torch.Tensor:
        """Cross-entropy, a mean over levels, with in training mode what a model adds to it."""
        distinct, places = torch.cat([histories.tokens, targets]).unique(return_inverse=True)
        places, target_places = places.split([len(histories.tokens), len(targets)])
        merged = self._merge_items(_rounded_up(distinct))
        states = self._encode(merged, places, histories, anchors)
        items = targets - self.config.first_item_token
        codes = self.item_codes[items].long()
        weight, bias = (None, None) if self.heads is None else (self.heads.weight, self.heads.bias)
        loss = code_loss(states, weight, bias, self.code_embeddings(), codes, temperature=self.config.temperature)
        if not self.training:
            return loss
        if self.item_table is not None:
            loss = loss + self.config.dense_loss_weight * self.dense_loss(states, items)
        return loss + self._other_losses(merged, states, targets, target_places)


def _rounded_up(items: torch.Tensor) -> torch.Tensor:
    """
    Some items again at the end, so that there is a multiple of `ITEMS_STEP` of them (fewer are left as they are).

    On a CPU each shape of a matrix product is compiled when it is first met and few are remembered; every batch having
    another number of distinct items costs ACERec a twentieth of its time.
    """
    if len(items) < ITEMS_STEP:
        return items
    return torch.cat([items, items[: -len(items) % ITEMS_STEP]])


class RPGForItemGeneration(ParallelPreTrainedModel):
    """
    Item tokens in, all codes of the next item at once: the log-probability of an item is the sum over its codes.

    Build it from a config, then give it the catalog with `set_catalog`; items may share their codes. `recommend()`
    returns ranked items.

    Args:
        config ([`RPGConfig`]): Sizes, token layout and options.

    Source: Hou et al. 2025 (https://huggingface.co/papers/2506.05781).

    Example:

    ```python
    >>> config = RPGConfig(num_items=3, num_levels=2, codebook_size=4, d_model=8, d_ff=16)
    >>> model = RPGForItemGeneration(config).eval()
    >>> model.set_catalog(torch.tensor([[0, 1], [0, 2], [3, 0]]))
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> model.code_log_probs(history).shape
    torch.Size([1, 2, 4])
    >>> sorted((model.recommend(history, top_k=3).item_tokens - config.first_item_token)[0].tolist())
    [0, 1, 2]

    ```
    """

    config: RPGConfig
    config_class = RPGConfig
    _auto_class = "AutoModel"  # saving takes the code along

    def __init__(self, config: RPGConfig):
        super().__init__(config)
        self._finish_init()

    def _merge(self, code_tokens: torch.LongTensor) -> MergedItems:
        vectors = nn.functional.embedding_bag(code_tokens, self.token_embeddings.weight, mode=self.config.item_pooling)
        return MergedItems(tokens=vectors.unsqueeze(1))


# --- the loss ----------------------------------------------------------------------------------------------------
#
# Written with separate operations, tensors of `num_positions * num_levels * d_model` and of `num_positions *
# num_levels * codebook_size` elements would go through memory a dozen times each; here one level after the other is
# computed forward and backward while it is in the cache. On an accelerator the loop is the same, some twenty kernels
# per level.


def code_loss(
    states: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    table: torch.Tensor,
    codes: torch.LongTensor,
    *,
    temperature: float,
) -> torch.Tensor:
    """
    Cross-entropy of parallel code predictions, summed over positions and averaged over levels.

    A head turns the state `h` into `g = h + SiLU(W h + b)`; the logits of a level are the cosines of `g` and the rows
    of the level's table over the temperature. Under autocast the matrix products run in its dtype, else in that of
    `states`; sums over many terms and the softmax are in float32 at least.

    Args:
        states: `(num_positions, d_model)`.
        weight: Of the heads, `(num_levels or 1, d_model, d_model)`: one per level or one for all; `None` for `g = h`.
        bias: Of the heads, `(num_levels or 1, d_model)`, where they have weights.
        table: `(num_levels, codebook_size, d_model)`.
        codes: `(num_positions, num_levels)`.
        temperature: Above 0.

    Returns a scalar, float32 at least, differentiable once with respect to all but `codes`.

    Source: Hou et al. 2025 (RPG), section 3.2 (https://huggingface.co/papers/2506.05781).

    >>> states, table = torch.tensor([[3.0, 0.0]]), torch.tensor([[[1.0, 0.0], [0.0, 5.0]]])
    >>> loss = code_loss(states, None, None, table, torch.tensor([[0]]), temperature=0.5)
    >>> round(loss.item(), 4)  # -log(e^2 / (e^2 + e^0))
    0.1269
    """
    device_type = states.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else states.dtype
    inputs = (states, weight, bias, table)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return _CodeLoss.apply(*inputs, codes, temperature, dtype)
    with torch.autocast(device_type, enabled=False):
        return _loss(*inputs, codes, temperature, dtype)


def _loss(states, weight, bias, table, codes, temperature: float, dtype: torch.dtype) -> torch.Tensor:
    """The loss alone."""
    wide = torch.promote_types(dtype, torch.float32)
    states = states.to(dtype)
    loss = states.new_zeros((), dtype=wide)
    for head, levels in _heads(weight, bias, len(table), dtype):
        _, outputs = _apply(head, states)
        scale = _inverse_norm(outputs, wide) / temperature
        for rows, targets in zip(table[levels], codes[:, levels].unbind(1), strict=True):
            units = (rows * _inverse_norm(rows, wide)).to(dtype)
            loss += nn.functional.cross_entropy(torch.mm(outputs, units.t()) * scale, targets, reduction="sum")
    return loss / len(table)


def _heads(
    weight: torch.Tensor | None, bias: torch.Tensor | None, num_levels: int, dtype: torch.dtype
) -> Iterator[tuple[tuple[torch.Tensor, torch.Tensor] | None, slice]]:
    """Matrix and bias of each head (`None` without heads) for the matrix products, and the levels that read it."""
    if weight is None or bias is None:
        yield None, slice(None)
    else:
        per_head = num_levels // len(weight)
        for index in range(len(weight)):
            yield (weight[index].to(dtype), bias[index].to(dtype)), slice(index * per_head, (index + 1) * per_head)


def _apply(head: tuple[torch.Tensor, torch.Tensor] | None, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into SiLU (unused without a head) and the head's output."""
    if head is None:
        return states, states
    inner = torch.addmm(head[1], states, head[0].t())
    return inner, nn.functional.silu(inner).add_(states)


def _inverse_norm(rows: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """One over the length of each row, with a last dimension of 1."""
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=wide).clamp_min_(1e-12).reciprocal_()


class _CodeLoss(torch.autograd.Function):
    """Computes the gradients with the loss; `backward` only scales them."""

    @staticmethod
    def forward(ctx, states, weight, bias, table, codes, temperature, dtype):
        ctx.save_for_backward(states, weight, bias, table, codes)
        ctx.settings = temperature, dtype
        with torch.autocast(states.device.type, enabled=False):
            loss, ctx.gradients = _loss_and_gradients(states, weight, bias, table, codes, temperature, dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # backward for a second time: the first gave the gradients away
            with torch.autocast(d_loss.device.type, enabled=False):
                _, gradients = _loss_and_gradients(*ctx.saved_tensors, *ctx.settings)
        scale = d_loss / (len(ctx.saved_tensors[3]) * ctx.settings[0])
        inputs = zip(gradients, ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        scaled = [gradient.mul_(scale).to(old.dtype) if needed else None for gradient, old, needed in inputs]
        return *scaled, None, None, None


def _loss_and_gradients(
    states, weight, bias, table, codes, temperature: float, dtype: torch.dtype
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """
    The loss, and `num_levels * temperature` times its gradients with respect to states, weight, bias and table, in
    float32 at least.
    """
    wide = torch.promote_types(dtype, torch.float32)
    states = states.to(dtype)
    d_states = torch.zeros_like(states, dtype=wide)
    d_weight, d_bias, d_table = (
        torch.empty_like(states[:0] if old is None else old, dtype=wide) for old in (weight, bias, table)
    )
    loss = states.new_zeros((), dtype=wide)
    for index, (head, levels) in enumerate(_heads(weight, bias, len(table), dtype)):
        inner, outputs = _apply(head, states)
        levels_loss, d_outputs = _score(outputs, table[levels], codes[:, levels], temperature, d_table[levels])
        loss += levels_loss
        if head is not None:
            d_inner = torch.ops.aten.silu_backward(d_outputs, inner)
            d_weight[index] = torch.mm(d_inner.t(), states)
            d_bias[index] = d_inner.sum(0)
            d_outputs = torch.addmm(d_outputs, d_inner, head[0])
        torch.add(d_states, d_outputs, out=d_states)  # twice as fast as `+=` where the types differ
    return loss / len(table), [d_states, d_weight, d_bias, d_table]


def _score(
    outputs: torch.Tensor, table: torch.Tensor, codes: torch.Tensor, temperature: float, d_table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The loss of the levels that read the same `outputs`, and its gradient with respect to those; that with respect to
    the rows of the table is written into `d_table`.

    With `u = g / |g|` of the output `g`, unit rows `t` and `e = softmax(u t / temperature) - target`, the gradient of
    `t` is `sum e u` and that of `g` is `(sum e t - u (u . sum e t)) / |g|`, both over `num_levels * temperature`, by
    which the caller divides. Both products take `e / |g|`, and `u . sum e t` is the sum of errors times cosines.
    """
    wide, dtype = d_table.dtype, outputs.dtype
    inverse = _inverse_norm(outputs, wide)
    loss, radial = outputs.new_zeros((), dtype=wide), torch.zeros_like(inverse)
    d_outputs = torch.empty_like(outputs)
    for level, (rows, d_rows) in enumerate(zip(table, d_table, strict=True)):
        inverse_rows = _inverse_norm(rows, wide)
        wide_units = rows * inverse_rows
        units, targets = wide_units.to(dtype), codes[:, level, None]
        logits = torch.mm(outputs, units.t()).to(wide).mul_(inverse / temperature)
        errors = torch.softmax(logits, dim=1)  # (num_positions, codebook_size), float32; becomes softmax - target
        # the largest probability is at least 1 / codebook_size, so it has a logarithm where the target's may not
        loss += (logits.amax(1) - errors.amax(1).log_()).sum() - logits.gather(1, targets).sum()
        errors.scatter_add_(1, targets, errors.new_full((1, 1), -1.0).expand_as(targets))
        radial.addcmul_(logits.mul_(errors).sum(1, keepdim=True), inverse, value=temperature)
        errors = errors.mul_(inverse).to(dtype)  # e / |g|, which both products below take
        d_level = torch.mm(errors, units)
        d_outputs = d_level if level == 0 else d_level.to(wide).add_(d_outputs)
        d_units = torch.mm(errors.t(), outputs).to(wide)
        d_units.addcmul_(wide_units, (wide_units * d_units).sum(1, keepdim=True), value=-1)
        torch.mul(d_units, inverse_rows, out=d_rows)
    radial = (radial * inverse).neg_().to(dtype)
    return loss, d_outputs.to(dtype).addcmul_(outputs, radial)


__all__ = ["CodeHeads", "MergedItems", "ParallelPreTrainedModel", "RPGForItemGeneration"]
