"""HSTU: gated attention without a softmax, whose weights know how far apart two items are in places and in time."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_hstu import HSTUConfig
from .genrec_encoder import PackedHistories
from .genrec_item_rows import ItemRowsModel


def time_buckets(histories: PackedHistories, num_buckets: int) -> torch.LongTensor:
    """
    Buckets of the time between each item of a history and each earlier one, `(batch_size, width, width)`, row after
    column; 0 is an unknown time, and later columns mean nothing.

    A mask names the bucket of the time since the item before alone (see `genrec_gaps`), so times between items that
    are farther apart are sums of times from the middle of their buckets, less than a second being none: the bucket
    that comes out is the true one or a neighbour of it. One unknown time on the way makes the sum unknown.

    Args:
        histories ([`PackedHistories`]): Their `mask` holds the buckets.
        num_buckets (`int`): Number of buckets; a longer time counts as the last one's.

    >>> mask = torch.tensor([1, 2, 6, 6])  # unknown; less than a second; 8 to 15 seconds, twice
    >>> items = torch.arange(4)
    >>> histories = PackedHistories(items + 9, torch.zeros_like(items), items, torch.tensor([4]), mask)
    >>> time_buckets(histories, 9)[0].tril().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [5, 5, 1, 0], [6, 6, 5, 1]]
    """
    mask = torch.ones_like(histories.tokens) if histories.mask is None else histories.mask
    bucket = histories.to_rows(mask) - 1
    seconds = torch.where(bucket > 1, 1.5 * torch.exp2((bucket - 2).double()), 0.0)
    sums, unknown = seconds.cumsum(1), (bucket <= 0).cumsum(1)
    between = (sums.unsqueeze(2) - sums.unsqueeze(1)).clamp_min(0).floor()
    is_unknown = unknown.unsqueeze(2) != unknown.unsqueeze(1)
    return (1 + between.frexp().exponent.long()).clamp_max(num_buckets - 1).masked_fill(is_unknown, 0)


class RelativeBias(nn.Module):
    """What is added to the attention between two items: a number for their distance in places, one for the time."""

    def __init__(self, config: HSTUConfig):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(config.max_history_length))
        self.times = nn.Parameter(torch.zeros(config.history_gap_buckets)) if config.history_gap_buckets else None

    def forward(self, width: int, times: torch.LongTensor | None) -> torch.Tensor:
        """`(batch_size or 1, width, width)`; of later columns it means nothing."""
        place = torch.arange(width, device=self.places.device)
        bias = self.places[(place.unsqueeze(1) - place).clamp_min(0)].unsqueeze(0)
        return bias if self.times is None else bias + self.times[times]


class HSTULayer(nn.Module):
    """Equations 1 to 3: projection, attention and gate in one layer, with nothing behind them."""

    def __init__(self, config: HSTUConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.projection = nn.Linear(config.d_model, 4 * config.d_model)
        self.relative_bias = RelativeBias(config)
        self.mixed_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.drop = nn.Dropout(config.dropout_rate)
        self.output = nn.Linear(config.d_model, config.d_model)

    def forward(self, states: torch.Tensor, histories: PackedHistories, times: torch.LongTensor | None):
        """From packed states `(num_packed, d_model)` to the same shape; `times` as of [`time_buckets`]."""
        gate, values, queries, keys = nn.functional.silu(self.projection(self.norm(states))).chunk(4, dim=-1)
        # (batch_size, num_heads, width, head_width)
        values, queries, keys = (
            histories.to_rows(part).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (values, queries, keys)
        )
        bias = self.relative_bias(histories.width, times).unsqueeze(1).to(queries.dtype)
        weights = nn.functional.silu(queries @ keys.transpose(-1, -2) + bias).tril()  # of no sum: items are counted
        mixed = histories.from_rows((weights @ values).transpose(1, 2).flatten(-2))
        return states + self.output(self.drop(gate * self.mixed_norm(mixed)))


class HSTUEncoder(nn.Module):
    """Layers over the items of a history, and a layer norm."""

    def __init__(self, config: HSTUConfig):
        super().__init__()
        self.num_buckets = config.history_gap_buckets
        self.drop = nn.Dropout(config.dropout_rate)
        self.layers = nn.ModuleList([HSTULayer(config) for _ in range(config.num_layers)])
        self.last_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(
        self, tokens: torch.Tensor, histories: PackedHistories, *, anchors: torch.LongTensor | None = None
    ) -> torch.Tensor:
        """See [`BlockEncoder.forward`], with one token per item."""
        states = self.drop(tokens.squeeze(1))
        times = time_buckets(histories, self.num_buckets) if self.num_buckets else None
        for layer in self.layers:
            states = layer(states, histories, times)
        return self.last_norm(states[histories.last if anchors is None else anchors]).unsqueeze(1)

    @torch.no_grad()
    def init_weights(self, config: HSTUConfig) -> None:
        """Places on the scale of all weights; times at zero, as if there were none."""
        for layer in self.layers:
            init.normal_(layer.relative_bias.places, mean=0.0, std=config.initializer_range)
            if layer.relative_bias.times is not None:
                init.zeros_(layer.relative_bias.times)

    def numbers(self, num_items: int) -> int:
        """See [`BlockEncoder.numbers`]."""
        layer: Any = self.layers[0]
        numbers = num_items * (8 * layer.output.in_features + 2 * layer.num_heads * num_items)
        return numbers + (8 * num_items * num_items if self.num_buckets else 0)  # times, in 64 bits


class HSTUForItemGeneration(ItemRowsModel):
    """
    Item tokens in, the next item out: HSTU as a ranker of the whole catalog, without semantic IDs.

    One table serves as input and output, as in [`SASRecForItemGeneration`], which differs from it in the layers: there
    attention is normalised by a softmax and feed-forward layers follow. As in the tables of RPG and Latte, the loss is
    the cross-entropy over the whole catalog. Times are those between the items of a history; when the next one comes
    is no input, other than in the published code.

    Args:
        config ([`HSTUConfig`]): Sizes, token layout and options.

    Source: Zhai et al. 2024, "Actions Speak Louder than Words", section 3, equations 1 to 3
    (https://arxiv.org/abs/2402.17152).

    Example:

    ```python
    >>> config = HSTUConfig(num_items=3, d_model=8)
    >>> model = HSTUForItemGeneration(config).eval()
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> model.score_items(history).exp().sum().round(decimals=4).item()
    1.0
    >>> sorted((model.recommend(history, top_k=3).item_tokens - config.first_item_token)[0].tolist())
    [0, 1, 2]

    ```
    """

    config: HSTUConfig
    config_class = HSTUConfig
    _auto_class = "AutoModel"  # saving takes the code along
    supports_gradient_checkpointing = False

    def _make_encoder(self) -> nn.Module:
        return HSTUEncoder(self.config)


__all__ = ["HSTUForItemGeneration"]
