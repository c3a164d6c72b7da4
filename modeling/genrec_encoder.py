"""
How a network reads histories: GPT-2 blocks over packed items, which RPG, ACERec and SASRec share; and the loss over
all items of a catalog.

A batch of item tokens comes in, padded on either side; the items that are read go through the blocks packed, all items
of all users in one list without padding, and states come out behind those items where something is predicted. How an
item is read and what is predicted is up to the model. [`ByteDropout`] draws its random numbers eight at a time;
drawing them singly takes a quarter of a training step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import GPT2Config, PreTrainedModel
from transformers import initialization as init
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block
from transformers.pytorch_utils import Conv1D

from .genrec_folder import CheckpointMixin, ItemTokensMixin
from .genrec_gaps import GapEmbedding, gap_embedding
from .genrec_recommend import NoGenerationMixin, PredictionOutput


@dataclass
class PackedHistories:
    """
    The items of a batch of histories, one after the other, oldest first.

    - `tokens` `(num_packed,)`: item token, or the user token of an empty history.
    - `rows` (same shape): which history each belongs to, ascending.
    - `columns` (same shape): its place there, from 0 without gaps.
    - `lengths` `(batch_size,)`: tokens of each history, at least 1.
    - `mask` (shape of `tokens`): the attention mask at each, see `genrec_gaps`; `None` for ones.
    """

    tokens: torch.LongTensor
    rows: torch.LongTensor
    columns: torch.LongTensor
    lengths: torch.LongTensor
    mask: torch.Tensor | None = None

    def __post_init__(self):
        self.width = int(self.lengths.max()) if len(self.lengths) else 0
        self.is_full = len(self.tokens) == len(self.lengths) * self.width  # nothing to pad
        self.places = self.rows * self.width + self.columns

    @property
    def last(self) -> torch.LongTensor:
        """`torch.LongTensor` of shape `(batch_size,)`: where the last item of each history stands in the list."""
        return self.lengths.cumsum(0) - 1

    def to_rows(self, packed: torch.Tensor) -> torch.Tensor:
        """From `(num_packed, ...)` to `(batch_size, width, ...)`, with zeros behind the items."""
        shape = (len(self.lengths), self.width, *packed.shape[1:])
        if self.is_full:
            return packed.reshape(shape)
        return packed.new_zeros(shape).flatten(0, 1).index_copy(0, self.places, packed).view(shape)

    def from_rows(self, rows: torch.Tensor, anchors: torch.LongTensor | None = None) -> torch.Tensor:
        """The way back; only of the packed items `anchors` `(num_anchors,)` where these are given."""
        flat = rows.flatten(0, 1)
        if anchors is None and self.is_full:
            return flat
        return flat.index_select(0, self.places if anchors is None else self.places[anchors])


class BlockEncoder(nn.Module):
    """
    Causal transformer over blocks of tokens, a block per item.

    Tokens of a block see each other and all earlier blocks; with `has_intent` the last token of a block is seen by
    itself and by later blocks only. With blocks of one token this is GPT-2; parameters have the names and shapes of
    `GPT2Model`, without its token embeddings.
    """

    gradient_checkpointing = False  # of all blocks but the last, which computes only what is read
    _gradient_checkpointing_func: Any = None  # set by transformers

    def __init__(self, config, *, tokens_per_item: int = 1, has_intent: bool = False):
        super().__init__()
        gpt2_config = GPT2Config(
            vocab_size=1,
            n_positions=config.max_history_length,
            n_embd=config.d_model,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.d_ff,
            activation_function="gelu_pytorch_tanh",  # the same function as "gelu_new", as one kernel
            resid_pdrop=config.residual_dropout,
            attn_pdrop=config.attention_dropout,
            layer_norm_epsilon=config.layer_norm_epsilon,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.num_heads = config.num_heads
        self.tokens_per_item = tokens_per_item
        self.has_intent = has_intent
        self.wpe = nn.Embedding(config.max_history_length, config.d_model)
        self.places = nn.Embedding(tokens_per_item, config.d_model) if tokens_per_item > 1 else None
        self.gaps = gap_embedding(config)
        self.drop = nn.Dropout(config.embedding_dropout)
        self.h = nn.ModuleList([GPT2Block(gpt2_config, layer_idx=layer) for layer in range(config.num_layers)])
        self.ln_f = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(
        self,
        tokens: torch.Tensor,
        histories: PackedHistories,
        *,
        anchors: torch.LongTensor | None = None,
        first_read: int = 0,
    ) -> torch.Tensor:
        """
        Takes `tokens` `(num_packed, tokens_per_item, d_model)`.
        - `anchors` `(num_anchors,)`: the items behind which states are read; `None` for the last of each history.
        - `first_read`: the first of the tokens of a block that are read; the rest follow.
        Returns `(num_anchors or batch_size, tokens_per_item - first_read, d_model)`.
        """
        states = tokens + self.wpe(histories.columns).unsqueeze(1)
        if self.places is not None:
            states = states + self.places.weight
        if self.gaps is not None:
            mask = torch.ones_like(histories.tokens) if histories.mask is None else histories.mask
            states = states + self.gaps(mask).unsqueeze(1)
        states = self.drop(states)
        mask = self._mask(histories, states.device)
        blocks: list = list(self.h)
        for block in blocks[:-1]:
            if self.gradient_checkpointing and self.training:
                states = self._gradient_checkpointing_func(self._whole_block, block, states, histories, mask)
            else:
                states = self._whole_block(block, states, histories, mask)
        # the last block computes queries only where states are read; keys and values it needs of all tokens
        block = blocks[-1]
        normed = block.ln_1(states)
        if anchors is None or torch.equal(anchors, histories.last):
            last, width = histories.last, histories.width
            queries, keys_values = self._project(block, normed[last, first_read:], normed)
            is_item = torch.arange(width, device=states.device) < histories.lengths.unsqueeze(1)
            mask = is_item.repeat_interleave(self.tokens_per_item, 1)[:, None, None]  # all of an item read is seen
            mixed = self._attend(block, queries.unsqueeze(1), histories.to_rows(keys_values), mask).squeeze(1)
            states = states[last, first_read:]
        else:
            queries, keys_values = self._project(block, normed[:, first_read:], normed)
            if first_read:  # rows of the mask are queries: of each item those of the tokens that are read
                mask = mask.view(-1, self.tokens_per_item, mask.shape[-1])[:, first_read:].flatten(0, 1)
            mixed = self._attend(block, histories.to_rows(queries), histories.to_rows(keys_values), mask)
            mixed, states = histories.from_rows(mixed, anchors), states[:, first_read:].index_select(0, anchors)
        return self.ln_f(_add(block, states, mixed))

    @torch.no_grad()
    def init_weights(self, config) -> None:
        """What differs from `initializer_range`: positions, and what is summed over the depth."""
        for positions in (self.wpe, self.places):
            if positions is not None:
                init.normal_(positions.weight, mean=0.0, std=config.position_std)
        for module in self.modules():
            if isinstance(module, GPT2Attention | GPT2MLP):
                std = config.initializer_range * (2 * config.num_layers) ** -0.5
                init.normal_(module.c_proj.weight, mean=0.0, std=std)

    def numbers(self, num_items: int) -> int:
        """Numbers that one block holds of a history of so many items, with its attention scores."""
        first: Any = self.h[0]
        num_tokens, d_ff = num_items * self.tokens_per_item, first.mlp.c_fc.nf
        return num_tokens * (8 * self.wpe.embedding_dim + 2 * d_ff + 2 * self.num_heads * num_tokens)

    def _whole_block(self, block, states, histories, mask) -> torch.Tensor:
        normed = block.ln_1(states)
        queries, keys_values = self._project(block, normed, normed)
        mixed = self._attend(block, histories.to_rows(queries), histories.to_rows(keys_values), mask)
        return _add(block, states, histories.from_rows(mixed))

    def _mask(self, histories: PackedHistories, device: torch.device) -> torch.BoolTensor:
        """What each token of a full row sees: `(width * tokens_per_item, width * tokens_per_item)`."""
        size = self.tokens_per_item
        place = torch.arange(histories.width * size, device=device)
        item = place // size
        sees = item.unsqueeze(1) >= item
        if self.has_intent:
            is_intent = place % size == size - 1
            sees &= ~is_intent | (item.unsqueeze(1) > item) | (place.unsqueeze(1) == place)
        return sees

    def _project(self, block, reading, read) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries of the tokens that read; keys and values, side by side, of those that are read."""
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        width = len(weight)
        queries = _affine(reading, weight[:, :width], bias[:width])
        return queries, _affine(read, weight[:, width:], bias[width:])

    def _attend(self, block, queries, keys_values, mask) -> torch.Tensor:
        """
        Attention from `(batch_size, num_items, num_tokens, d_model)` to `(batch_size, width, tokens_per_item,
        2 * d_model)`; the result has the shape of the queries.
        """
        shape = queries.shape
        # (batch_size, num_heads, all tokens of a user, head_width)
        queries = queries.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        keys, values = keys_values.flatten(1, 2).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = block.attn.attn_dropout
        is_dropping = self.training and dropout.p > 0
        bias = torch.zeros(mask.shape, dtype=queries.dtype, device=mask.device).masked_fill_(~mask, -float("inf"))
        if is_dropping and queries.device.type == "cpu":  # the kernel for CPUs knows no dropout
            scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5 + bias
            mixed = dropout(scores.softmax(-1)) @ values
        else:
            mixed = nn.functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=bias, dropout_p=dropout.p if is_dropping else 0.0
            )
        return mixed.transpose(1, 2).reshape(shape)


def _affine(states, weight, bias) -> torch.Tensor:
    return torch.addmm(bias, states.flatten(0, -2), weight).view(*states.shape[:-1], -1)


def _add(block, states, mixed) -> torch.Tensor:
    """The rest of a GPT-2 block behind its attention."""
    states = states + block.attn.resid_dropout(block.attn.c_proj(mixed))
    return states + block.mlp(block.ln_2(states))


class HistoryPreTrainedModel(NoGenerationMixin, CheckpointMixin, ItemTokensMixin, PreTrainedModel):
    """
    A model that reads histories of items with a [`BlockEncoder`], or with what else its `_make_encoder` returns; it
    supplies `_log_probs` and `_loss`.
    """

    _log_probs: Callable[..., torch.FloatTensor]  # (input_ids, attention_mask): what `forward` returns without labels
    _loss: Callable[..., torch.Tensor]  # (histories, targets, anchors): summed over target items behind packed items
    encoder: Any  # what `_make_encoder` returns
    base_model_prefix = "model"
    _input_embed_layer = "token_embeddings"  # its rows are also what predictions are compared with
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config):
        super().__init__(config)
        self.token_embeddings = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = self._make_encoder()

    def _finish_init(self) -> None:
        use_byte_dropout(self)
        self.post_init()

    def _make_encoder(self) -> nn.Module:
        return BlockEncoder(self.config)

    @torch.no_grad()
    def _init_weights(self, module):
        """GPT-2's initialisation."""
        super()._init_weights(module)
        if isinstance(module, Conv1D):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, GapEmbedding):
            module.init_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As in transformers; then what differs from `initializer_range`."""
        super().initialize_weights()
        self.encoder.init_weights(self.config)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> PredictionOutput:
        """
        With `labels` the loss, a mean over targets; without, log-probabilities of what follows each history.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.
            labels (`torch.LongTensor`, same shape as `input_ids`, *optional*):
                At each position the item token that follows, or -100 for none; each is predicted from the items up to
                its position.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Number of targets the loss is divided by under gradient accumulation; `None` for this batch's.
            **kwargs: Options that transformers passes along; not used.
        """
        if input_ids is None:
            raise ValueError("`input_ids` is needed.")
        if labels is None:
            return PredictionOutput(logits=self._log_probs(input_ids, attention_mask))
        present = self._present(input_ids, attention_mask)
        targets, anchors = self._targets(input_ids, present, labels)
        loss = self._loss(self._pack(input_ids, present, attention_mask), targets, anchors)
        num_targets = max(1, len(targets)) if num_items_in_batch is None else num_items_in_batch
        return PredictionOutput(loss=loss / num_targets)

    # --- histories and targets -----------------------------------------------------------------------------------

    def _present(self, input_ids, attention_mask) -> torch.BoolTensor:
        """
        Which tokens are read, `(batch_size, 1 + history_length)`: the last `max_history_length` items of each row, or
        the user token in the additional first column where there is none.
        """
        is_read = self.is_read(input_ids, attention_mask)
        return torch.cat([~is_read.any(1, keepdim=True), is_read], dim=1)

    def _pack(self, input_ids, present, attention_mask=None) -> PackedHistories:
        tokens = nn.functional.pad(input_ids, (1, 0), value=self.config.user_token_id)
        columns = present.long().cumsum(1) - 1
        rows = torch.arange(len(present), device=present.device).unsqueeze(1).expand_as(present)
        has_times = self.config.history_gap_buckets and attention_mask is not None
        mask = nn.functional.pad(attention_mask.long(), (1, 0), value=1)[present] if has_times else None
        return PackedHistories(tokens[present], rows[present], columns[present], present.sum(1), mask)

    def _targets(self, input_ids, present, labels) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Item tokens of the targets, and the packed items behind which they follow."""
        is_target = self.is_target(input_ids, labels)
        if bool((is_target & (present.long().cumsum(1)[:, 1:] == 0)).any()):
            raise ValueError(
                "`labels` has a target where no item is read: none stands before it in a row that has items, or the "
                f"row goes on for more than `max_history_length` {self.config.max_history_length} items behind it. "
                "Cut long sequences into windows."
            )
        number = present.flatten().long().cumsum(0).view(present.shape) - 1
        return labels[is_target], number[:, 1:][is_target]

    def _encoder_bytes(self, num_items: int) -> int:
        """Bytes that the encoder takes of a history of so many items."""
        return self.token_embeddings.weight.dtype.itemsize * self.encoder.numbers(num_items)


# --- a layer that transformers lacks -----------------------------------------------------------------------------


class ByteDropout(nn.Dropout):
    """
    Dropout that draws one random byte per element on a CPU; elsewhere it is `nn.Dropout`.

    torch draws a CPU mask number by number from one thread. Here each 64-bit draw serves eight elements, so the
    probability is rounded to a multiple of 1/256 (0.1 becomes 0.1016); kept elements are scaled by what was really
    kept, so the expectation is exact. The bytes come from torch's generator: a seed fixes them.

    Example:

    ```python
    >>> dropout = ByteDropout(0.25)
    >>> sorted(set(dropout(torch.ones(1000)).tolist()))
    [0.0, 1.3333333730697632]
    >>> dropout.eval()(torch.ones(3)).tolist()
    [1.0, 1.0, 1.0]

    ```
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns the same shape: in training with zeros at random places, else `input` itself."""
        threshold = min(255, round(self.p * 256))
        if not self.training:
            return input
        if threshold == 0 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        draws = torch.empty(-(-input.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        is_kept = (draws.view(torch.uint8)[: input.numel()] >= threshold).view(input.shape)
        return input * is_kept.to(input.dtype).mul_(256 / (256 - threshold))


def use_byte_dropout(module: nn.Module) -> None:
    """Replace every `nn.Dropout` below a module by [`ByteDropout`] of the same probability."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p))


# --- the loss of models that score every item ----------------------------------------------------------------------


# Logits that exist at a time. With 12,101 items and a width of 64 a core is fastest at this number, by a fifth over a
# quarter or four times as many.
LOGITS_AT_A_TIME = 1 << 21
ACCELERATOR_LOGITS_AT_A_TIME = 1 << 26


def item_loss(states: torch.Tensor, table: torch.Tensor, items: torch.LongTensor) -> torch.Tensor:
    """
    Cross-entropy of items whose logits are the inner products of a state and their rows, summed over targets.

    The logits, a number per target and item, are the largest tensor of such a model by far; here they exist for a few
    targets at a time. Under autocast the matrix products run in its dtype, else in that of `states`; the softmax is
    in float32 at least.

    Takes `states` `(num_targets, d_model)`, `table` `(num_items, d_model)` and the targets' indices `items`
    `(num_targets,)`. Returns a scalar, float32 at least, differentiable once with respect to `states` and `table`.

    >>> states, table = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    >>> round(item_loss(states, table, torch.tensor([0])).item(), 4)  # -log(e^2 / (e^2 + e^0))
    0.1269
    """
    device_type = states.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else states.dtype
    with torch.autocast(device_type, enabled=False):
        return _ItemLoss.apply(states, table, items, dtype)


def sampled_item_loss(
    states: torch.Tensor,
    target_rows: torch.Tensor,
    drawn_rows: torch.Tensor,
    items: torch.LongTensor,
    drawn: torch.LongTensor,
    *,
    num_items: int,
) -> torch.Tensor:
    """
    An estimate of `item_loss` from some of the items, drawn uniformly without replacement, the same for all targets.

    The drawn items stand for all but the target: each counts `(num_items - 1) / n` times, `n` being the number of
    those that are not the target. With all items drawn it is the full loss.

    `target_rows` `(num_targets, d_model)` and `drawn_rows` `(num_drawn, d_model)` are the embeddings of the targets
    `items` and of `drawn`, both indices.

    Source: sampled softmax, Bengio and Senecal 2008, with uniform draws (https://doi.org/10.1109/TNN.2007.912312).

    >>> states, table = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    >>> items, drawn = torch.tensor([0]), torch.tensor([1, 0])
    >>> round(sampled_item_loss(states, table[items], table[drawn], items, drawn, num_items=2).item(), 4)
    0.1269
    """
    own = (states * target_rows).sum(-1, keepdim=True)
    others = states @ drawn_rows.t()
    wide = torch.promote_types(others.dtype, torch.float32)
    is_own = items.unsqueeze(1) == drawn
    num_others = len(drawn) - is_own.sum(1, keepdim=True)
    others = others.to(wide).masked_fill(is_own, -float("inf")) + ((num_items - 1) / num_others).log()
    return (torch.cat([own.to(wide), others], dim=1).logsumexp(1) - own.to(wide)[:, 0]).sum()


class _ItemLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, table, items, dtype):
        wide = torch.promote_types(dtype, torch.float32)
        rows, inputs = table.to(dtype), states.to(dtype)
        loss = torch.zeros((), dtype=wide, device=states.device)
        needs_gradient = any(ctx.needs_input_grad)
        if needs_gradient:
            state_gradient = torch.empty_like(inputs)
            table_gradient = torch.zeros(table.shape, dtype=wide, device=table.device)
        num_logits = LOGITS_AT_A_TIME if states.device.type == "cpu" else ACCELERATOR_LOGITS_AT_A_TIME
        size = max(1, num_logits // len(table))
        for start in range(0, len(items), size):
            part, targets = inputs[start : start + size], items[start : start + size].unsqueeze(1)
            log_probs = torch.mm(part, rows.t()).log_softmax(1, dtype=wide)
            target_log_probs = log_probs.gather(1, targets)
            loss -= target_log_probs.sum()
            if needs_gradient:
                error = log_probs.exp_().scatter_(1, targets, target_log_probs.expm1()).to(dtype)
                torch.mm(error, rows, out=state_gradient[start : start + size])
                table_gradient += torch.mm(error.t(), part)
        if needs_gradient:
            ctx.save_for_backward(state_gradient.to(states.dtype), table_gradient.to(table.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        states, table = ctx.saved_tensors
        return states * gradient, table * gradient, None, None
