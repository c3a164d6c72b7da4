"""
The two networks of a model that writes semantic IDs code by code, as they are exported: one reads histories, one does
a step of the search. The trie and the beams stay outside, see [`CodeSearch`].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.models.t5.modeling_t5 import T5Attention


HISTORY_INPUTS, HISTORY_OUTPUTS = ["history"], ["keys", "values", "mask", "state"]
STEP_INPUTS = ["tokens", "parents", "cache", *HISTORY_OUTPUTS]
STEP_OUTPUTS = ["logits", "new_cache"]


class HistoryGraph(nn.Module):
    """
    Histories in; what a step of the decoder reads of them out.

    Args:
        model ([`LatteForConditionalGeneration`]): The model.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    closed: torch.Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, config = model, model.config
        self.is_causal = config.history_attention == "causal"
        with torch.no_grad():
            if config.history_unit == "item":
                items = model.item_vectors() if config.dense_head else model.code_vectors()
                items = items.unsqueeze(1)
            else:
                items = model.shared.weight[model.code_tokens()]
            # (num_items + 1, tokens_per_item, d_model); the last row is padding
            padding = model.shared.weight[config.pad_token_id].expand(1, items.shape[1], -1)
            self.register_buffer("inputs", torch.cat([items, padding]).clone())
            if config.dense_head:
                self.register_buffer("outputs", model.item_vectors().float().t().contiguous())
            closed = torch.zeros(config.num_items) if model.open_items is None else (~model.open_items).float()
            self.register_buffer("closed", closed)

    def forward(self, history: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Keys and values for the decoder's attention to the history.

        Args:
            history (`torch.LongTensor` of shape `(num_users, history_length)`):
                Item rows from 0, oldest first, padded on the right with -1; at most `max_history_length`.

        Returns:
            `tuple`: `keys` and `values`, `(num_users, num_decoder_layers, num_heads, num_tokens, d_kv)`; `mask`
            `(num_users, num_tokens)`, 0 at tokens and the least number at padding; `state` `(num_users, d_model)`,
            that of the latest item; with a dense head its log-probabilities of all items `(num_users, num_items)`.
        """
        config, shared = self.model.config, self.model.shared.weight
        num_users, num_tokens = history.shape[0], 1 + self.inputs.shape[1] * (history >= 0).sum(1)
        rows = torch.where(history < 0, self.inputs.shape[0] - 1, history)
        user = shared[config.user_token_id].expand(num_users, 1, -1)
        embeddings = torch.cat([user, self.inputs[rows].flatten(1, 2)], dim=1)
        if not self.is_causal:  # a token behind the last item
            embeddings = torch.cat([embeddings, shared[config.pad_token_id].expand(num_users, 1, -1)], dim=1)
        place = torch.arange(embeddings.shape[1])
        if not self.is_causal:
            is_end = (place == num_tokens.unsqueeze(1)).unsqueeze(-1)
            embeddings = torch.where(is_end, shared[config.end_of_history_token_id], embeddings)
            num_tokens = num_tokens + 1
        least = torch.finfo(torch.float32).min
        mask = torch.zeros(embeddings.shape[:2]).masked_fill(place >= num_tokens.unsqueeze(1), least)
        if self.is_causal:
            is_later = (place.unsqueeze(0) > place.unsqueeze(1))[None, None]
            attention = torch.zeros(is_later.shape).masked_fill(is_later, least)
        else:
            attention = mask[:, None, None, :].expand(-1, 1, embeddings.shape[1], -1)
        states = self.model.encoder(inputs_embeds=embeddings, attention_mask=attention).last_hidden_state
        last = states[torch.arange(num_users), num_tokens - 1]
        blocks = [block.layer[1].EncDecAttention for block in self.model.decoder.block]
        keys = torch.stack([_heads(layer.k(states), layer).transpose(1, 2) for layer in blocks], dim=1)
        values = torch.stack([_heads(layer.v(states), layer).transpose(1, 2) for layer in blocks], dim=1)
        if not config.dense_head:
            return keys, values, mask, last
        logits = (last.float() @ self.outputs).masked_fill(self.closed > 0, -float("inf"))
        return keys, values, mask, last, logits.log_softmax(-1)


class StepGraph(nn.Module):
    """
    The beams that a search has chosen in; what may follow each of them out.

    Args:
        model ([`LatteForConditionalGeneration`]): The model.
    """

    distances: torch.Tensor
    num_marked: int

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, config = model, model.config
        self.num_marked = 0
        if config.history_attention == "causal":
            is_all = config.marked_tokens == "all"
            self.num_marked = config.num_decoding_steps if is_all else 2 if config.num_latent_tokens else 1
        first = model.decoder.block[0].layer[0].SelfAttention
        bucket = T5Attention._relative_position_bucket(
            -torch.arange(config.num_decoding_steps),
            bidirectional=False,
            num_buckets=first.relative_attention_num_buckets,
            max_distance=first.relative_attention_max_distance,
        )
        with torch.no_grad():  # (num_decoding_steps, num_heads), of keys so many tokens back
            self.register_buffer("distances", first.relative_attention_bias(bucket).clone())

    @property
    def cache_width(self) -> int:
        """`int`: numbers that the cache holds of a token: keys and values of all layers."""
        config = self.model.config
        return 2 * config.num_decoder_layers * config.num_heads * config.d_kv

    def forward(
        self,
        tokens: torch.Tensor,
        parents: torch.Tensor,
        cache: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
        state: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        A step for `num_beams` beams of each user.

        Args:
            tokens (`torch.LongTensor` of shape `(num_users, num_beams)`): The latest token of each beam.
            parents (same shape): Which beam of the step before each beam continues.
            cache (`torch.FloatTensor` of shape `(num_users, beams of the step before, steps before, cache_width)`):
                What that step returned; in the first step one beam of no steps.
            keys: Of [`HistoryGraph`] for the users.
            values: The same.
            mask: The same.
            state: The same.

        Returns:
            `tuple`: `logits` `(num_users, num_beams, vocab_size)`, log-probabilities where the model's are relative to
            the whole vocabulary; and `new_cache`.
        """
        model, config = self.model, self.model.config
        num_users, num_beams = tokens.shape
        rows = torch.arange(num_users).unsqueeze(1) * cache.shape[1] + parents
        cache = cache.flatten(0, 1)[rows.flatten()].unflatten(0, (num_users, num_beams))
        hidden = model.shared(tokens)
        place = torch.arange(cache.shape[2] + 1)
        hidden = hidden + (place[-1:] < self.num_marked).to(hidden.dtype) * state.unsqueeze(1)
        bias = self.distances[place.flip(0)]  # (steps, heads)
        made, width = [], config.num_heads * config.d_kv
        for number, block in enumerate(model.decoder.block):
            own, other, feed_forward = block.layer
            attention, normed = own.SelfAttention, own.layer_norm(hidden)
            made += [attention.k(normed), attention.v(normed)]
            seen = [
                torch.cat(
                    [cache[..., (2 * number + kind) * width :][..., :width], made[-2 + kind].unsqueeze(2)], dim=2
                )
                for kind in (0, 1)
            ]
            own_keys, own_values = (_heads(part, attention) for part in seen)  # (B, W, steps, heads, d_kv)
            query = _heads(attention.q(normed), attention)
            weights = ((query.unsqueeze(2) * own_keys).sum(-1) + bias).softmax(2)
            hidden = hidden + attention.o((weights.unsqueeze(-1) * own_values).sum(2).flatten(2))
            attention = other.EncDecAttention
            query = _heads(attention.q(other.layer_norm(hidden)), attention).transpose(1, 2)
            scores = query @ keys[:, number].transpose(2, 3) + mask[:, None, None, :]
            hidden = hidden + attention.o((scores.softmax(-1) @ values[:, number]).transpose(1, 2).flatten(2))
            hidden = feed_forward(hidden)
        logits = model._logits(model.decoder.final_layer_norm(hidden)).float()
        if config.normalization == "vocabulary":
            logits = logits.log_softmax(-1)
        return logits, torch.cat([cache, torch.cat(made, dim=-1).unsqueeze(2)], dim=2)


def _heads(numbers: torch.Tensor, attention: Any) -> torch.Tensor:
    return numbers.unflatten(-1, (attention.n_heads, attention.key_value_proj_dim))


def trie_arrays(model: Any) -> dict[str, NDArray[Any]]:
    """
    The catalog as a search in NumPy reads it, by name. For each level `L` from 0: `codes_L` and `first_child_L`, where
    the children of node `n` are the nodes `first_child_L[n]` to `first_child_L[n + 1]` of the next depth, and
    `codes_L` is the code that leads to each; for each depth `D` from 1 `first_item_D`, where the items under node `n`
    are `items[first_item_D[n] : first_item_D[n + 1]]`; `item_codes`, of all items.

    Args:
        model ([`LatteForConditionalGeneration`]): The model. Closed items are not in the trie.
    """
    catalog = model.catalog
    arrays = {"items": catalog.items_in_order, "item_codes": model.item_codes}
    for level in range(catalog.num_levels):
        arrays[f"codes_{level}"] = catalog._codes[level]
        arrays[f"first_child_{level}"] = catalog._first_child[level]
        arrays[f"first_item_{level + 1}"] = catalog.first_item(level + 1)
    return {name: values.cpu().numpy().astype(np.int64) for name, values in arrays.items()}
