"""
Layers that transformers lacks: dropout that is cheap on a CPU, and two kinds of attention that copy nothing.

[`ByteDropout`] draws its random numbers eight at a time; drawing them singly takes a quarter of a training step.
[`shared_history_attention`] lets many decoder rows (targets in training, beams in decoding) read one user's history.
[`attend_to_rows`] lets items attend to their rows of a shared table, as ACERec's merger does: gathering the rows of
all items of a batch takes `num_items * num_rows_per_item * d_model` elements, which would go through memory a dozen
times; here a block of items is gathered, used and forgotten while it is in the cache, and gathered again in the
backward pass.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask


class ByteDropout(nn.Dropout):
    """
    Dropout that draws one random byte per element on a CPU; elsewhere it is `nn.Dropout`.

    torch draws a CPU mask number by number from one thread. Here each 64-bit draw serves eight elements, so the
    probability is rounded to a multiple of 1/256 (0.1 becomes 0.1016); kept elements are scaled by what was really
    kept, so the expectation is exact. The bytes come from torch's generator: a seed fixes them.

    `p`: probability of an element to be zeroed, in [0, 1).

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


SHARED_HISTORY_ATTENTION = "genrec_shared_history"
MAX_DIRECT_KEYS = 8  # with at most so many keys, a beam's own past, products by hand beat a kernel call: half the time


def shared_history_attention(
    module, query, key, value, attention_mask, position_bias=None, **kwargs
) -> tuple[torch.Tensor, None]:
    """
    Scaled-dot-product attention in which `group` rows of queries may share one row of keys.

    Where queries come from more rows than keys (cross-attention of several targets or beams per user), the rows of a
    user are laid end to end as one longer query, so keys and values are neither computed nor stored more than once.

    Takes `query` `(num_users * group, num_heads, length, width)`, `key` `(num_users, num_heads, num_keys, width)`,
    `value` (same shape). `position_bias`: T5's bias; cross-attention has none, so it is dropped with a group. Returns
    `(num_users * group, length, num_heads, width)` and no weights.
    """
    num_rows, num_heads, length, width = query.shape
    num_users = key.shape[0]
    if num_rows == num_users and length == 1 and key.shape[2] <= MAX_DIRECT_KEYS and not module.training:
        return _attend_from_one_position(query, key, value, attention_mask, position_bias, **kwargs), None
    if num_rows == num_users:
        return sdpa_attention_forward(module, query, key, value, attention_mask, position_bias=position_bias, **kwargs)
    group = num_rows // num_users
    query = query.view(num_users, group, num_heads, length, width).transpose(1, 2)
    query = query.reshape(num_users, num_heads, group * length, width)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output.reshape(num_rows, length, num_heads, width), None


def _attend_from_one_position(
    query, key, value, attention_mask, position_bias=None, scaling=None, **kwargs
) -> torch.Tensor:
    """Attention of one query a row to a handful of keys, without a matrix product per row and head."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query.float() * key.float()).sum(-1) * scaling  # (num_rows, num_heads, num_keys)
    if position_bias is not None:
        scores = scores + position_bias[..., 0, :]
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask[..., 0, :], torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask[..., 0, :]
    weights = scores.softmax(-1).to(value.dtype).unsqueeze(-1)
    return (weights * value).sum(2).unsqueeze(1)


AttentionInterface.register(SHARED_HISTORY_ATTENTION, shared_history_attention)
AttentionMaskInterface.register(SHARED_HISTORY_ATTENTION, sdpa_mask)


ITEMS_PER_BLOCK = 32  # on a CPU: 32 items with 32 rows of 448 numbers in bfloat16 are 0.9 MB


def attend_to_rows(queries: torch.Tensor, table: torch.Tensor, places: torch.LongTensor) -> torch.Tensor:
    """
    Each query attends to its item's rows, which are keys and values at once: `softmax(q rows^T) rows`.

    Under autocast the matrix products and the gradients of the rows are in its dtype, else in that of `queries`.

    Takes `queries` `(num_items, num_queries, d_model)`, `table` `(num_rows, d_model)`, `places`
    `(num_items, num_rows_per_item)`.

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


__all__ = [
    "SHARED_HISTORY_ATTENTION",
    "ByteDropout",
    "attend_to_rows",
    "shared_history_attention",
    "use_byte_dropout",
]
