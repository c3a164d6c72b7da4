"""
One step of a search through the decoder of a T5, for the beams of many users at once.

Embeddings of the last tokens of all beams come in, decoder states go out. It computes what the blocks of transformers
do, with their modules, but keeps keys and values where they were written: a beam knows the rows of its past, a user's
history lies there once, and nothing is put together again at every step.
"""

from typing import Any

import torch


ROWS_AT_A_TIME = 2048  # that a processor takes through a layer


class T5SearchCache:
    """
    Keys and values of a search: of histories once per user, of each step a row per beam of that step.

    - `history`: per layer keys and values `(num_users * num_heads, num_history_tokens, width)`.
    - `bias` `(num_users * num_heads, 1, num_history_tokens)`: 0, or the least number at padding; `None` without any.
    - `steps`: per step and layer keys and values `(num_beams of all users then, num_heads * width)`.
    - `rows`: per step which of these rows is the past of each beam now.
    """

    def __init__(self):
        self.history: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.bias: torch.Tensor | None = None
        self.steps: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        self.rows: list[torch.Tensor] = []

    def of_beams(self, rows: torch.LongTensor) -> "T5SearchCache":
        """What these beams go on with; what they write is not seen by this cache."""
        part = T5SearchCache()
        part.history, part.bias, part.steps = self.history, self.bias, list(self.steps)
        part.rows = [past[rows] for past in self.rows]
        return part

    def read(self, decoder: Any, states: torch.Tensor, is_token: torch.BoolTensor) -> None:
        """Keys and values of the histories `(num_users, num_history_tokens, d_model)`."""
        for block in decoder.block:
            attention = block.layer[1].EncDecAttention
            parts = (project(states).unflatten(-1, (attention.n_heads, -1)) for project in (attention.k, attention.v))
            keys, values = (part.transpose(1, 2).flatten(0, 1).contiguous() for part in parts)
            self.history.append((keys, values))
        bias = torch.zeros(is_token.shape, dtype=states.dtype, device=states.device)
        bias.masked_fill_(~is_token, torch.finfo(states.dtype).min)
        self.bias = bias.repeat_interleave(decoder.config.num_heads, dim=0).unsqueeze(1)
        if states.device.type == "cpu" and bool(is_token.all()):  # an accelerator is not asked: it would have to wait
            self.bias = None


def t5_step(decoder: Any, embeddings: torch.Tensor, cache: T5SearchCache) -> torch.Tensor:
    """Decoder states of `embeddings` `(num_users, num_beams, d_model)`, which `cache` holds the past of."""
    num_users, num_beams, _ = embeddings.shape
    states, length = embeddings.flatten(0, 1).clone(), len(cache.steps)
    first = decoder.block[0].layer[0].SelfAttention
    position_bias = first.compute_bias(1, length + 1, past_seen_tokens=length)[0, :, 0]  # (num_heads, length + 1)
    cache.steps.append([])
    cache.rows.append(torch.arange(len(states), device=states.device))
    parts = [slice(0, None)]
    # what is computed in between then stays in the cache of the processor; traced, it would fix the number of rows
    if states.device.type == "cpu" and not torch.compiler.is_compiling():
        size = num_beams * max(1, ROWS_AT_A_TIME // num_beams)
        parts = [slice(start, start + size) for start in range(0, len(states), size)]
    for layer, block in enumerate(decoder.block):
        own, cross, feed_forward = block.layer
        normed = own.layer_norm(states)
        cache.steps[-1].append((own.SelfAttention.k(normed), own.SelfAttention.v(normed)))
        for rows in parts:
            some = states[rows]
            some += _attend_to_own(own.SelfAttention, normed, cache, layer, rows, position_bias)
            queries = cross.EncDecAttention.q(cross.layer_norm(some)).unflatten(0, (-1, num_beams))
            some += cross.EncDecAttention.o(_attend_to_history(queries, cache, layer, rows.start // num_beams))
            some += feed_forward.DenseReluDense(feed_forward.layer_norm(some))
    return decoder.final_layer_norm(states).view_as(embeddings)


def _attend_to_own(attention, normed, cache: T5SearchCache, layer: int, rows: slice, position_bias) -> torch.Tensor:
    """What beams, `normed[rows]` being the last token of each, take from what they have written, that included."""
    *past, new = (step[layer] for step in cache.steps)
    if not past:
        return attention.o(new[1][rows])  # the only token has all the weight
    keys, values = (
        [part[which].index_select(0, index[rows]) for part, index in zip(past, cache.rows, strict=False)]
        + [new[which][rows]]
        for which in (0, 1)
    )
    queries, heads = attention.q(normed[rows]), (attention.n_heads, -1)
    # products by hand: a matrix product per row and head, each of a handful of keys, takes twice the time
    scores = torch.stack([(queries * key).unflatten(-1, heads).sum(-1) for key in keys], dim=-1)
    weights = (scores.float() + position_bias).softmax(-1).to(normed.dtype).unsqueeze(-1)
    mixed = values[0].unflatten(-1, heads) * weights[:, :, 0]
    for place, value in enumerate(values[1:], start=1):
        mixed.addcmul_(value.unflatten(-1, heads), weights[:, :, place])
    return attention.o(mixed.flatten(1))


def _attend_to_history(queries, cache: T5SearchCache, layer: int, first_user: int) -> torch.Tensor:
    """
    What beams `(num_users, num_beams, num_heads * width)` take from the histories of their users, of which the first
    has this number: `(num_users * num_beams, num_heads * width)`.
    """
    (keys, values), width = cache.history[layer], cache.history[layer][0].shape[-1]
    num_users, num_beams, inner = queries.shape
    places = slice(first_user * inner // width, (first_user + num_users) * inner // width)
    keys, values = keys[places], values[places]
    queries = queries.unflatten(-1, (-1, width)).transpose(1, 2).reshape(-1, num_beams, width)
    if cache.bias is None:
        scores = torch.bmm(queries, keys.transpose(1, 2))
    else:
        scores = torch.baddbmm(cache.bias[places], queries, keys.transpose(1, 2))
    mixed = torch.bmm(scores.softmax(-1, dtype=torch.float32).to(values.dtype), values)
    return mixed.unflatten(0, (num_users, -1)).transpose(1, 2).reshape(-1, inner)
