"""
Attention of many beams to one prompt, for any causal language model whose layers use transformers' AttentionInterface.

A model whose attention is `SHARED_PROMPT_ATTENTION` works as with `"sdpa"`, but within [`reading`]: then the tokens of
a call are beams that continue the prompts of some users. The cache of the call holds the beams' own keys and values;
those of the prompt lie where they are, once per user, and are neither repeated when beams are opened nor moved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .genrec_beams import HistoryOutput


# Of this copy of the file: folders loaded as remote code bring copies of their own, and each knows its own prompts.
SHARED_PROMPT_ATTENTION = f"genrec_shared_prompt_{__name__.replace('.', '_')}"


@dataclass
class PromptOutput(HistoryOutput):
    """Prompts that were read: the state behind each, `(batch_size, 1, d_model)`, and their keys and values."""

    keys: tuple[torch.Tensor, ...] | None = None  # per layer (batch_size, num_key_heads, num_prompt_tokens, width)
    values: tuple[torch.Tensor, ...] | None = None

    def of_users(self, rows: torch.LongTensor) -> "PromptOutput":
        """The prompts of some users."""
        keys, values = (tuple(layer[rows] for layer in layers) for layers in (self.keys, self.values))
        return PromptOutput(self.last_hidden_state[rows], self.attention_mask[rows], keys, values)


_read: ContextVar[PromptOutput | None] = ContextVar("prompts that the beams of this thread read", default=None)


@contextmanager
def reading(prompts: PromptOutput) -> Iterator[None]:
    """Let the rows of the model's next call be beams of these users, a user's rows adjacent."""
    token = _read.set(prompts)
    try:
        yield
    finally:
        _read.reset(token)


def shared_prompt_attention(
    module, query, key, value, attention_mask, scaling=None, sliding_window=None, **kwargs
) -> tuple[torch.Tensor, None]:
    """
    Attention of beams to the prompt of their user and to their own tokens, with one softmax over both.

    `query` `(num_users * num_beams, num_heads, length, width)`, `key` and `value` `(num_users * num_beams,
    num_key_heads, num_own, width)`: what the beams have written so far, these `length` tokens last. Returns
    `(num_users * num_beams, length, num_heads, width)` and no weights.
    """
    prompts = _read.get()
    if prompts is None:
        more = {} if sliding_window is None else {"sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more, **kwargs)
    keys, values, is_token = prompts.keys[module.layer_idx], prompts.values[module.layer_idx], prompts.attention_mask
    num_rows, num_heads, length, width = query.shape
    num_users, num_key_heads, num_prompt, _ = keys.shape
    num_beams, group, num_own = num_rows // num_users, num_heads // num_key_heads, key.shape[2]
    scaling = width**-0.5 if scaling is None else scaling
    # heads that share keys, and the beams of a user, are laid end to end as one longer query
    query = query.reshape(num_users, num_beams, num_key_heads, group * length, width)
    of_prompt = query.transpose(1, 2).reshape(num_users, num_key_heads, -1, width)
    of_prompt = (of_prompt @ keys.transpose(2, 3)).view(num_users, num_key_heads, num_beams, group, length, num_prompt)
    own = query.flatten(0, 1) @ key.transpose(2, 3)
    own = own.view(num_users, num_beams, num_key_heads, group, length, num_own).transpose(1, 2)
    place = torch.arange(num_own - length, num_own, device=query.device).unsqueeze(1)  # of a query among own tokens
    is_seen = torch.arange(num_own, device=query.device) <= place  # (length, num_own)
    is_read = is_token[:, None, None, None, None, :]
    if sliding_window is not None:
        is_seen &= torch.arange(num_own, device=query.device) > place - sliding_window
        distance = is_token.sum(1)[:, None, None] + place - torch.arange(num_prompt, device=query.device)
        is_read = is_read & (distance < sliding_window)[:, None, None, None]
    scores = torch.cat(
        [of_prompt.masked_fill(~is_read, -float("inf")), own.masked_fill(~is_seen, -float("inf"))], dim=-1
    )
    weights = (scores * scaling).softmax(-1, dtype=torch.float32).to(value.dtype)
    read = weights[..., :num_prompt].reshape(num_users, num_key_heads, -1, num_prompt) @ values
    read = read.view(num_users, num_key_heads, num_beams, group * length, width).transpose(1, 2).flatten(0, 1)
    own_weights = weights[..., num_prompt:].transpose(1, 2).reshape(num_rows, num_key_heads, -1, num_own)
    output = (read + own_weights @ value).reshape(num_rows, num_heads, length, width)
    return output.transpose(1, 2).contiguous(), None


def _prompt_mask(*args, **kwargs) -> torch.Tensor | None:
    """As for sdpa; beams need none."""
    return sdpa_mask(*args, **kwargs) if _read.get() is None else None


AttentionInterface.register(SHARED_PROMPT_ATTENTION, shared_prompt_attention)
AttentionMaskInterface.register(SHARED_PROMPT_ATTENTION, _prompt_mask)
