"""BERT4Rec: masked items are filled in from both sides, and a mask behind the history asks for the next item."""

from dataclasses import replace

import torch
from torch import nn

from .configuration_bert4rec import BERT4RecConfig
from .genrec_encoder import BlockEncoder, PackedHistories, item_loss
from .genrec_item_rows import ItemRowsModel


class TwoSidedEncoder(BlockEncoder):
    """Blocks in which every item sees all others, with one position more, and the layer that predicts."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__(config)
        self.wpe = nn.Embedding(config.max_history_length + 1, config.d_model)
        self.head = nn.Linear(config.d_model, config.d_model)

    def forward(self, *args, **kwargs) -> torch.Tensor:
        """See [`BlockEncoder.forward`]; then equation 7 of the paper up to the product with the items."""
        return nn.functional.gelu(self.head(super().forward(*args, **kwargs)))

    def _mask(self, histories: PackedHistories, device: torch.device) -> torch.BoolTensor:
        """All items of a history, for each history `(batch_size, 1, 1, width)`."""
        return (torch.arange(histories.width, device=device) < histories.lengths.unsqueeze(1))[:, None, None]


class BERT4RecForItemGeneration(ItemRowsModel):
    """
    Item tokens in, the next item out: the baseline that learns by filling in masked items, without semantic IDs.

    In training mode a row is its items and the last label; items are masked at random, and the loss is that of the
    masked ones, weighted so that a row counts by the number of its labels as in other models. In evaluation mode the
    target is never read: it is what stands at a mask behind the items before it, and the loss is that of each label
    after its own prefix. The mask is the token of an unknown item. One table serves as input and output, without the
    bias that the paper has for each item.

    Args:
        config ([`BERT4RecConfig`]): Sizes, token layout and options.

    Source: Sun et al. 2019, sections 3.2 to 3.6 (https://arxiv.org/abs/1904.06690), with layer norms before attention
    as in GPT-2.

    Example:

    ```python
    >>> config = BERT4RecConfig(num_items=3, d_model=8)
    >>> model = BERT4RecForItemGeneration(config).eval()
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> model.score_items(history).exp().sum().round(decimals=4).item()
    1.0

    ```
    """

    config: BERT4RecConfig
    config_class = BERT4RecConfig
    _auto_class = "AutoModel"  # saving takes the code along

    def _make_encoder(self) -> nn.Module:
        return TwoSidedEncoder(self.config)

    def history_bytes(self, history_length: int) -> int:
        """See [`ItemVectorsModel.history_bytes`]; the mask is one item more."""
        return self._encoder_bytes(min(max(1, history_length), self.config.max_history_length) + 1)

    def _loss(self, histories: PackedHistories, targets: torch.LongTensor, anchors: torch.LongTensor) -> torch.Tensor:
        if not self.training:
            return super()._loss(histories, targets, anchors)
        is_last = torch.isin(anchors, histories.last)
        whole = _continued(histories, histories.rows[anchors[is_last]], targets[is_last])
        is_masked = self._draw_masks(whole)
        read = replace(whole, tokens=whole.tokens.masked_fill(is_masked, self.config.unk_token_id))
        states = super()._encode(read, is_masked.nonzero()[:, 0])
        loss = item_loss(states, self.item_embeddings(), whole.tokens[is_masked] - self.config.first_item_token)
        return loss * (len(targets) / max(1, len(states)))

    def _draw_masks(self, whole: PackedHistories) -> torch.BoolTensor:
        """Which items are masked `(num_packed,)`: at least one of each row."""
        config, device = self.config, whole.tokens.device
        is_masked = torch.rand(len(whole.tokens), device=device) < config.mask_share
        is_last_alone = torch.rand(len(whole.lengths), device=device) < config.last_share
        is_masked &= ~is_last_alone[whole.rows]
        has_none = torch.zeros_like(whole.lengths).index_add(0, whole.rows, is_masked.long()) == 0
        is_masked[whole.last] |= has_none
        return is_masked & (whole.tokens >= config.first_item_token)

    def _encode(self, histories: PackedHistories, anchors: torch.LongTensor | None = None) -> torch.Tensor:
        """States of masks behind the histories, or behind their parts up to the `anchors`."""
        if anchors is not None:
            histories = _prefixes(histories, anchors)
        rows = torch.arange(len(histories.lengths), device=histories.tokens.device)
        return super()._encode(_continued(histories, rows, torch.full_like(rows, self.config.unk_token_id)))


def _prefixes(histories: PackedHistories, anchors: torch.LongTensor) -> PackedHistories:
    """The part of a history up to each packed item `anchors` `(num_anchors,)`, as a history of its own."""
    lengths = histories.columns[anchors] + 1
    rows = torch.arange(len(anchors), device=anchors.device).repeat_interleave(lengths)
    columns = torch.arange(len(rows), device=anchors.device) - (lengths.cumsum(0) - lengths)[rows]
    places = (anchors - lengths + 1)[rows] + columns
    mask = None if histories.mask is None else histories.mask[places]
    return PackedHistories(histories.tokens[places], rows, columns, lengths, mask)


def _continued(histories: PackedHistories, rows: torch.LongTensor, tokens: torch.LongTensor) -> PackedHistories:
    """Some of the histories, `rows` `(n,)`, with a token `(n,)` more each, whose time is unknown."""
    order = torch.cat([histories.rows, rows]).argsort(stable=True)
    columns = torch.cat([histories.columns, histories.lengths[rows]])[order]
    lengths = histories.lengths.index_add(0, rows, torch.ones_like(rows))
    mask = None if histories.mask is None else torch.cat([histories.mask, torch.ones_like(rows)])[order]
    tokens = torch.cat([histories.tokens, tokens])[order]
    return PackedHistories(tokens, torch.cat([histories.rows, rows])[order], columns, lengths, mask)


__all__ = ["BERT4RecForItemGeneration"]
