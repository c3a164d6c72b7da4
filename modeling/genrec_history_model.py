"""
What models share that read histories with GPT-2 blocks: a token table, histories without padding, and targets.

A batch of item tokens comes in, padded on either side; the items that are read come out in one list, with the targets
that follow them. How an item is read and what is predicted is up to the model.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention
from transformers.pytorch_utils import Conv1D

from .genrec_block_encoder import BlockEncoder, PackedHistories
from .genrec_checkpoint import CheckpointMixin
from .genrec_dropout import use_byte_dropout
from .genrec_item_tokens import ItemTokensMixin


class HistoryPreTrainedModel(CheckpointMixin, ItemTokensMixin, PreTrainedModel):
    """
    A model that reads histories of items with a [`BlockEncoder`].

    Args:
        config ([`RPGConfig`] or [`SASRecConfig`]): Sizes, token layout and options.
    """

    base_model_prefix = "model"
    _supports_sdpa = True
    _predicts = "the next item"  # what it says of itself where somebody asks it to write tokens

    def __init__(self, config):
        super().__init__(config)
        self.token_embeddings = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = self._make_encoder()

    def _finish_init(self) -> None:
        use_byte_dropout(self)
        self.post_init()

    def _make_encoder(self) -> BlockEncoder:
        return BlockEncoder(self.config)

    @torch.no_grad()
    def _init_weights(self, module):
        """GPT-2's initialisation."""
        super()._init_weights(module)
        if isinstance(module, Conv1D):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            init.zeros_(module.bias)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As in transformers; then what differs from `initializer_range`: positions, and sums over the depth."""
        super().initialize_weights()
        config = self.config
        for positions in (self.encoder.wpe, self.encoder.places):
            if positions is not None:
                init.normal_(positions.weight, mean=0.0, std=config.position_std)
        for module in self.encoder.modules():
            if isinstance(module, GPT2Attention | GPT2MLP):
                std = config.initializer_range * (2 * config.num_layers) ** -0.5
                init.normal_(module.c_proj.weight, mean=0.0, std=std)

    def get_input_embeddings(self) -> nn.Embedding:
        """`nn.Embedding`: the token table; its rows are also what predictions are compared with."""
        return self.token_embeddings

    def set_input_embeddings(self, new_embeddings: nn.Embedding) -> None:
        """Replace the token table."""
        self.token_embeddings = new_embeddings

    def generate(self, *args, **kwargs):
        """
        Not for these models.

        Args:
            *args: Not used.
            **kwargs: Not used.

        Raises:
            NotImplementedError: Always; use `recommend`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} predicts {self._predicts} and writes no tokens one by one: call `recommend()` "
            "instead of `generate()`."
        )

    # --- histories and targets -----------------------------------------------------------------------------------

    def _present(self, input_ids, attention_mask) -> torch.BoolTensor:
        """
        Which tokens are read, `(batch_size, 1 + history_length)`: the last `max_history_length` items of each row, or
        the user token in the additional first column where there is none.
        """
        is_item = self.is_item(input_ids, attention_mask)
        number = is_item.long().cumsum(1)
        lengths = is_item.sum(1, keepdim=True)
        is_item &= number > lengths - self.config.max_history_length
        return torch.cat([lengths == 0, is_item], dim=1)

    def _pack(self, input_ids, present) -> PackedHistories:
        tokens = nn.functional.pad(input_ids, (1, 0), value=self.config.user_token_id)
        columns = present.long().cumsum(1) - 1
        rows = torch.arange(len(present), device=present.device).unsqueeze(1).expand_as(present)
        return PackedHistories(tokens[present], rows[present], columns[present], present.sum(1))

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
        """What one block of the encoder takes for a history of so many items, with its attention scores."""
        config = self.config
        num_tokens = num_items * self.encoder.tokens_per_item
        numbers = num_tokens * (8 * config.d_model + 2 * config.d_ff + 2 * config.num_heads * num_tokens)
        return self.token_embeddings.weight.dtype.itemsize * numbers


__all__ = ["HistoryPreTrainedModel"]
