"""SASRec: a row of a table for each item, GPT-2 blocks over the history, and a softmax over the catalog."""

import torch
from torch import nn

from .configuration_sasrec import SASRecConfig
from .genrec_encoder import HistoryPreTrainedModel, PackedHistories, item_loss
from .genrec_recommend import ItemScoresMixin


class SASRecForItemGeneration(ItemScoresMixin, HistoryPreTrainedModel):
    """
    Item tokens in, the next item out, without semantic IDs: the baseline for models that have them.

    One table serves as input and output: the logit of an item is the inner product of its row and the state behind
    the history. The loss is the cross-entropy over the whole catalog.

    Args:
        config ([`SASRecConfig`]): Sizes, token layout and options.

    Source: Kang and McAuley 2018 (https://arxiv.org/abs/1808.09781); with the full cross-entropy instead of one
    negative item it ranks far better, see Klenitskiy and Vasilev 2023 (https://arxiv.org/abs/2309.07602).

    Example:

    ```python
    >>> config = SASRecConfig(num_items=3, d_model=8)
    >>> model = SASRecForItemGeneration(config).eval()
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> model.score_items(history).exp().sum().round(decimals=4).item()
    1.0
    >>> sorted((model.recommend(history, top_k=3).item_tokens - config.first_item_token)[0].tolist())
    [0, 1, 2]

    ```
    """

    config: SASRecConfig
    config_class = SASRecConfig
    _auto_class = "AutoModel"  # saving takes the code along
    _predicts = "the next item with a score for each"
    text_vectors: torch.Tensor  # where `config.text_dim` is set

    def __init__(self, config: SASRecConfig):
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

    def item_logits(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Inner products of the states behind the histories with the rows of the items.

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
        vectors = self.token_embeddings(histories.tokens)
        if self.text_projection is not None:
            items = histories.tokens - self.config.first_item_token  # below 0: the token of an empty history
            texts = self._projected(self.text_vectors[items.clamp_min(0)])
            vectors = vectors + texts.masked_fill((items < 0).unsqueeze(1), 0)
        if self.config.scale_embeddings:
            vectors = vectors * self.config.d_model**0.5
        return self.encoder(vectors.unsqueeze(1), histories, anchors=anchors).squeeze(1)


__all__ = ["SASRecForItemGeneration"]
