"""
Models that score every item: a state behind the history, a vector for each item, and a softmax over the catalog.

A batch of item tokens comes in, and scores of all items or a loss come out. How a history is read is up to the
encoder (`_make_encoder`), what an item's vector is made of up to [`ItemVectorsModel.item_embeddings`]; in
[`ItemRowsModel`], the parent of all models without codes, it is a row of a table.
"""

from collections.abc import Callable

import torch
from torch import nn

from .genrec_encoder import HistoryPreTrainedModel, PackedHistories, item_loss
from .genrec_recommend import ItemScoresMixin


class ItemVectorsModel(ItemScoresMixin, HistoryPreTrainedModel):
    """
    A model whose logits are the inner products of the states behind histories with vectors of the items. It supplies
    `item_embeddings`, these vectors, and `_vectors_of`, with which items enter the encoder.
    """

    _vectors_of: Callable[[torch.LongTensor], torch.Tensor]  # item or user tokens (n,): vectors (n, d_model)
    compiled_parts = ("encoder",)
    _predicts = "the next item with a score for each"

    def item_logits(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Inner products of the states behind the histories with the vectors of the items.

        Args: see [`ItemScoresMixin.item_logits`].
        """
        if not len(input_ids):
            return torch.zeros(0, self.config.num_items, dtype=torch.float32, device=input_ids.device)
        states = self._last_states(input_ids, attention_mask)
        with torch.autocast(states.device.type, enabled=False):
            return torch.matmul(states.float(), self.item_embeddings().float().t())

    def _last_states(self, input_ids, attention_mask) -> torch.Tensor:
        return self._encode(self._pack(input_ids, self._present(input_ids, attention_mask), attention_mask))

    def history_bytes(self, history_length: int) -> int:
        """What the encoder takes per user, for the size of a chunk of users."""
        return self._encoder_bytes(min(max(1, history_length), self.config.max_history_length))

    def _loss(self, histories: PackedHistories, targets: torch.LongTensor, anchors: torch.LongTensor) -> torch.Tensor:
        """Cross-entropy over the whole catalog."""
        states = self._encode(histories, anchors)
        return item_loss(states, self.item_embeddings(), targets - self.config.first_item_token)

    def _encode(self, histories: PackedHistories, anchors: torch.LongTensor | None = None) -> torch.Tensor:
        """States `(num_anchors, d_model)`; without anchors those behind the last items."""
        vectors = self._vectors_of(histories.tokens)
        if self.config.scale_embeddings:
            vectors = vectors * self.config.d_model**0.5
        return self.encoder(vectors.unsqueeze(1), histories, anchors=anchors).squeeze(1)


class ItemRowsModel(ItemVectorsModel):
    """A model that knows an item by a row of its token table, and where there are texts by a projection of them."""

    text_vectors: torch.Tensor  # where `config.text_dim` is set

    def __init__(self, config):
        super().__init__(config)
        self.text_projection = None
        if config.text_dim:
            self.text_projection = nn.Linear(config.text_dim, config.d_model, bias=False)
            vectors = torch.zeros(config.num_items, config.text_dim, dtype=torch.float16)
            self.register_buffer("text_vectors", vectors)
        self.register_items_digest()
        self._finish_init()

    def set_text_vectors(self, vectors) -> None:
        """
        Write the vectors that are projected into the model; they travel in the checkpoint.

        Args:
            vectors (`torch.Tensor` or `np.ndarray` of shape `(num_items, text_dim)`): Best of a mean length of 1.
        """
        wanted = (self.config.num_items, self.config.text_dim)
        if tuple(vectors.shape) != wanted:
            raise ValueError(
                f"`vectors` must have shape (num_items, text_dim) = {wanted}, got {tuple(vectors.shape)}."
            )
        self.text_vectors.copy_(torch.as_tensor(vectors))

    def item_embeddings(self) -> torch.Tensor:
        """The rows of the token table that stand for items, `(num_items, d_model)`, and what their texts add."""
        rows = self.token_embeddings.weight[self.config.first_item_token :]
        return rows if self.text_projection is None else rows + self._projected(self.text_vectors)

    def _projected(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.text_projection(vectors.to(self.text_projection.weight.dtype))

    def _vectors_of(self, tokens: torch.LongTensor) -> torch.Tensor:
        vectors = self.token_embeddings(tokens)
        if self.text_projection is None:
            return vectors
        items = tokens - self.config.first_item_token  # below 0: the token of an empty history
        texts = self._projected(self.text_vectors[items.clamp_min(0)])
        return vectors + texts.masked_fill((items < 0).unsqueeze(1), 0)
