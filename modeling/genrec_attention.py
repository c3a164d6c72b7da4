"""Attention in which many decoder rows (targets in training, beams in decoding) read one user's history."""

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask


SHARED_HISTORY_ATTENTION = "genrec_shared_history"
MAX_DIRECT_KEYS = 8  # with at most so many keys, a beam's own past, products by hand beat a kernel call: half the time


def shared_history_attention(
    module, query, key, value, attention_mask, position_bias=None, **kwargs
) -> tuple[torch.Tensor, None]:
    """
    Scaled-dot-product attention in which `group` rows of queries may share one row of keys.

    Where queries come from more rows than keys (cross-attention of several targets or beams per user), the rows of a
    user are laid end to end as one longer query, so keys and values are neither computed nor stored more than once.

    Args:
        module: The attention module.
        query (`torch.Tensor` of shape `(num_users * group, num_heads, length, width)`): Queries, a user's rows
        adjacent.
        key (`torch.Tensor` of shape `(num_users, num_heads, num_keys, width)`): Keys.
        value (`torch.Tensor`, same shape as `key`): Values.
        attention_mask (`torch.Tensor` broadcastable to `(num_users, 1, group * length, num_keys)`, *optional*): Mask.
        position_bias (`torch.Tensor`, *optional*): T5's bias; cross-attention has none, so it is dropped with a group.
        **kwargs: Passed on to the attention of transformers (`dropout`, `scaling`, ...).

    Returns:
        `tuple[torch.Tensor, None]`: `(num_users * group, length, num_heads, width)` and no weights.
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

__all__ = ["SHARED_HISTORY_ATTENTION", "shared_history_attention"]
