"""
Models without a search: each scores every item of the catalog for each history, and `recommend()` ranks these scores.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .genrec_folder import CheckpointMixin, ItemTokensMixin
from .genrec_lists import first_of_the_best, gumbel_noise, user_keys
from .genrec_recommend import Ranking, RankRequest, RecommendMixin, UserBatch, evaluation_mode


SCORE_BYTES = 40  # per item and user: logit, log-probability, what is ranked, noise, and the places of the best


@dataclass
class ScorerOutput(ModelOutput):
    """
    What a forward pass returns.

    Args:
        loss (*optional*): Always `None`: these models are not trained by gradients.
        logits (`torch.FloatTensor` of shape `(batch_size, num_items)`, *optional*):
            Log-probability of each item to follow each history.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class ItemScorer(RecommendMixin, CheckpointMixin, ItemTokensMixin, PreTrainedModel):
    """
    Parent of models that score the whole catalog and are not trained by gradients. A subclass supplies `item_logits`
    and `_logits_bytes`; the softmax of the logits over the catalog are the probabilities.
    """

    base_model_prefix = "model"
    _auto_class = "AutoModel"  # saving takes the code along
    _made = "fitted in closed form"

    def item_logits(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Scores of all items, not normalised.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_items)`: float32.
        """
        raise NotImplementedError

    def _logits_bytes(self, history_length: int) -> int:
        raise NotImplementedError

    @torch.no_grad()
    def score_items(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Log-probability of every item to follow each history.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_items)`: log-probabilities, which sum to one over the items.
        """
        with evaluation_mode(self):
            return self.item_logits(input_ids, attention_mask).log_softmax(-1)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> ScorerOutput:
        """
        The log-probabilities of the item after each history.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.
            labels: Not taken: there is no loss.
            **kwargs: Not used.

        Returns:
            [`ScorerOutput`]

        Raises:
            ValueError: If there is no `input_ids`, or there are `labels`.
        """
        if input_ids is None:
            raise ValueError("`input_ids` is needed.")
        if labels is not None:
            raise ValueError(f"`labels` are not taken: a {type(self).__name__} is {self._made}, not trained.")
        return ScorerOutput(logits=self.score_items(input_ids, attention_mask))

    @classmethod
    def can_generate(cls) -> bool:
        """`False`: there are no tokens to be written one by one."""
        return False

    def generate(self, *args, **kwargs):
        """Not for these models. Raises `NotImplementedError` always; use `recommend`."""
        raise NotImplementedError(
            f"{type(self).__name__} scores items and writes no tokens one by one: call `recommend()` instead of "
            "`generate()`."
        )

    def item_embeddings(self) -> torch.Tensor | None:
        """What `diversity` compares items by unless a call gives vectors; `None` where there is nothing."""
        return None

    def _ranking_bytes(self, request: RankRequest, history_length: int) -> tuple[int, int]:
        if request.options.diversity and request.item_embeddings is None:
            request.item_embeddings = self.item_embeddings()
            if request.item_embeddings is None:
                raise ValueError(
                    f"`diversity` compares items by vectors, which a {type(self).__name__} does not have: give "
                    "`item_embeddings`."
                )
        return self._logits_bytes(history_length) + SCORE_BYTES * self.config.num_items, 0

    def _users_logits(self, users: UserBatch) -> torch.FloatTensor:
        """What ranks the lists of some users; of a model whose scores depend on the rules, more than `item_logits`."""
        return self.item_logits(users.input_ids, users.attention_mask)

    def _rank_batch(self, users: UserBatch, request: RankRequest) -> Ranking:
        """Nothing is searched for; of equal logits the lower item index stands first."""
        logits, infinity = self._users_logits(users), float("inf")
        ranked = logits if request.penalty is None else logits - request.penalty
        if request.options.sample_seed is not None:
            numbers = torch.arange(users.first_user, users.first_user + len(logits), device=logits.device)
            catalog = torch.arange(self.config.num_items, device=logits.device)
            ranked = ranked + gumbel_noise(user_keys(request.options.sample_seed, numbers), catalog)
        if users.allowed is not None:
            ranked = ranked.masked_fill(~users.allowed, -infinity)
        items = first_of_the_best(ranked, request.num_pooled())
        scores, ranked = logits.log_softmax(1).gather(1, items), ranked.gather(1, items)
        items, scores = items.masked_fill(ranked == -infinity, -1), scores.masked_fill(ranked == -infinity, -infinity)
        return Ranking(*request.picked(items, scores, ranked, item_codes=None))


__all__ = ["ItemScorer", "ScorerOutput"]
