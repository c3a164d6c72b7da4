"""
Attention to rows of a table: queries of items and the rows that belong to each item in, a mixture of those rows out.

The rows of an item are its code embeddings, a few of a table that all items share. Gathering them for all items of a
batch takes `num_items * num_rows_per_item * d_model` elements, which would go through memory a dozen times; here a
block of items is gathered, used and forgotten while it is in the cache, and gathered again in the backward pass.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable


ITEMS_PER_BLOCK = 32  # on a CPU: 32 items with 32 rows of 448 numbers in bfloat16 are 0.9 MB


def attend_to_rows(queries: torch.Tensor, table: torch.Tensor, places: torch.LongTensor) -> torch.Tensor:
    """
    Each query attends to its item's rows, which are keys and values at once: `softmax(q rows^T) rows`.

    Under autocast the matrix products and the gradients of the rows are in its dtype, else in that of `queries`.

    Args:
        queries (`torch.Tensor` of shape `(num_items, num_queries, d_model)`): Scaled as they should be.
        table (`torch.Tensor` of shape `(num_rows, d_model)`): Rows.
        places (`torch.LongTensor` of shape `(num_items, num_rows_per_item)`): Which rows each item has.

    Returns:
        `torch.Tensor` of the shape of `queries`, in the dtype of the matrix products; differentiable once with respect
        to `queries` and `table`.

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


__all__ = ["attend_to_rows"]
