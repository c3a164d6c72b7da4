"""GRU4Rec: a recurrent network over items, and a softmax over the catalog."""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_gru4rec import GRU4RecConfig
from .genrec_encoder import PackedHistories
from .genrec_gaps import gap_embedding
from .genrec_item_rows import ItemRowsModel


class RecurrentEncoder(nn.Module):
    """`torch.nn.GRU` over the items of a history, from a state of zeros, and a linear layer."""

    def __init__(self, config: GRU4RecConfig):
        super().__init__()
        self.gaps = gap_embedding(config)
        self.drop = nn.Dropout(config.dropout_rate)
        between = config.dropout_rate if config.num_layers > 1 else 0.0
        self.gru = nn.GRU(config.d_model, config.d_model, config.num_layers, batch_first=True, dropout=between)
        self.output = nn.Linear(config.d_model, config.d_model)

    def forward(
        self, tokens: torch.Tensor, histories: PackedHistories, *, anchors: torch.LongTensor | None = None
    ) -> torch.Tensor:
        """See [`BlockEncoder.forward`], with one token per item."""
        read = tokens.squeeze(1)
        if self.gaps is not None:
            read = read + self.gaps(torch.ones_like(histories.tokens) if histories.mask is None else histories.mask)
        states, _ = self.gru(histories.to_rows(self.drop(read)))  # padding stands behind the items: none reads it
        states = histories.from_rows(states)[histories.last if anchors is None else anchors]
        return self.output(self.drop(states)).unsqueeze(1)

    @torch.no_grad()
    def init_weights(self, config: GRU4RecConfig) -> None:
        """Uniform weights by the width of the states, as in torch."""
        for weight in self.gru.parameters():
            init.uniform_(weight, -(config.d_model**-0.5), config.d_model**-0.5)

    def numbers(self, num_items: int) -> int:
        """See [`BlockEncoder.numbers`]."""
        return num_items * 8 * self.gru.hidden_size


class GRU4RecForItemGeneration(ItemRowsModel):
    """
    Item tokens in, the next item out: the recurrent baseline, without semantic IDs.

    One table serves as input and output, as in [`SASRecForItemGeneration`]; the loss is the cross-entropy over the
    whole catalog, of which the ranking losses of the papers sample some items.

    Args:
        config ([`GRU4RecConfig`]): Sizes, token layout and options.

    Source: Hidasi et al. 2016, section 3 (https://arxiv.org/abs/1511.06939); Hidasi and Karatzoglou 2018
    (https://arxiv.org/abs/1706.03847).

    Example:

    ```python
    >>> config = GRU4RecConfig(num_items=3, d_model=8)
    >>> model = GRU4RecForItemGeneration(config).eval()
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> model.score_items(history).exp().sum().round(decimals=4).item()
    1.0

    ```
    """

    config: GRU4RecConfig
    config_class = GRU4RecConfig
    _auto_class = "AutoModel"  # saving takes the code along
    supports_gradient_checkpointing = False

    def _make_encoder(self) -> nn.Module:
        return RecurrentEncoder(self.config)


__all__ = ["GRU4RecForItemGeneration"]
