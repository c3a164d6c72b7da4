"""SASRec: a row of a table for each item, GPT-2 blocks over the history, and a softmax over the catalog."""

import torch

from .configuration_sasrec import SASRecConfig
from .genrec_encoder import HistoryPreTrainedModel, PackedHistories
from .genrec_item_loss import item_loss
from .genrec_lists import first_of_the_best, gumbel_noise
from .genrec_recommend import Ranking, RankRequest, RecommendMixin, UserBatch, evaluation_mode


SCORE_BYTES = 24  # per item and user: logit, log-probability, what is ranked, and its place while the best are found
NOISE_BYTES = 44  # and for a sample: hashes, uniform numbers and the noise


class SASRecForItemGeneration(RecommendMixin, HistoryPreTrainedModel):
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

    def __init__(self, config: SASRecConfig):
        super().__init__(config)
        # filled in when the model is saved: the ids of the items whose rows the token table holds
        self.register_buffer("items_digest", torch.zeros(8, dtype=torch.uint8))
        self._finish_init()

    def item_embeddings(self) -> torch.Tensor:
        """
        The rows of the token table that stand for items.

        Returns:
            `torch.Tensor` of shape `(num_items, d_model)`: a view.
        """
        return self.token_embeddings.weight[self.config.first_item_token :]

    def item_log_probs(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Log-probability of every item to follow each history, with gradients and, in training mode, dropout.

        Args: see [`ItemTokensMixin.is_item`].

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_items)`: float32.
        """
        if not len(input_ids):
            return torch.zeros(0, self.config.num_items, dtype=torch.float32, device=input_ids.device)
        states = self._encode(self._pack(input_ids, self._present(input_ids, attention_mask)))
        with torch.autocast(states.device.type, enabled=False):
            return torch.matmul(states.float(), self.item_embeddings().float().t()).log_softmax(-1)

    def history_bytes(self, history_length: int) -> int:
        """What the encoder takes per user, for the size of a chunk of users."""
        return self._encoder_bytes(min(max(1, history_length), self.config.max_history_length))

    @torch.no_grad()
    def score_items(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        [`item_log_probs`] without gradients and dropout, under the name that all architectures have.

        Args: see [`ItemTokensMixin.is_item`].

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_items)`: log-probabilities, which sum to one over the items.
        """
        with evaluation_mode(self):
            return self.item_log_probs(input_ids, attention_mask)

    def _ranking_bytes(self, request: RankRequest, history_length: int) -> tuple[int, int]:
        if request.options.diversity and request.item_embeddings is None:
            request.item_embeddings = self.item_embeddings()  # there are no codes to compare items by
        per_item = SCORE_BYTES + (NOISE_BYTES if request.options.sample_seed is not None else 0)
        return self.history_bytes(history_length) + per_item * self.config.num_items, 0

    def _rank_batch(self, users: UserBatch, request: RankRequest) -> Ranking:
        """Every item is scored, so nothing is searched for; of equal scores the lower item index stands first."""
        log_probs, infinity = self.item_log_probs(users.input_ids, users.attention_mask), float("inf")
        ranked = log_probs if request.penalty is None else log_probs - request.penalty
        if request.options.sample_seed is not None:
            catalog = torch.arange(self.config.num_items, device=log_probs.device)
            ranked = ranked + gumbel_noise(users.keys(request.options.sample_seed), catalog)
        if users.allowed is not None:
            ranked = ranked.masked_fill(~users.allowed, -infinity)
        items = first_of_the_best(ranked, request.num_pooled())
        scores, ranked = log_probs.gather(1, items), ranked.gather(1, items)
        items, scores = items.masked_fill(ranked == -infinity, -1), scores.masked_fill(ranked == -infinity, -infinity)
        return Ranking(*request.picked(items, scores, ranked, item_codes=None))

    def _log_probs(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.FloatTensor:
        return self.item_log_probs(input_ids, attention_mask)

    def _loss(self, histories: PackedHistories, targets: torch.LongTensor, anchors: torch.LongTensor) -> torch.Tensor:
        """Cross-entropy over the whole catalog."""
        states = self._encode(histories, anchors)
        return item_loss(states, self.item_embeddings(), targets - self.config.first_item_token)

    def _encode(self, histories: PackedHistories, anchors: torch.LongTensor | None = None) -> torch.Tensor:
        """States `(num_anchors, d_model)`; without anchors those behind the last items."""
        vectors = self.token_embeddings(histories.tokens)
        if self.config.scale_embeddings:
            vectors = vectors * self.config.d_model**0.5
        return self.encoder(vectors.unsqueeze(1), histories, anchors=anchors).squeeze(1)


__all__ = ["SASRecForItemGeneration"]
