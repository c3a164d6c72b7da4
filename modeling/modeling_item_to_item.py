"""Item-to-item models: weights from the items of a history to the item that comes next, fitted in closed form."""

import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_item_to_item import ItemToItemConfig
from .genrec_folder import CheckpointMixin, ItemTokensMixin
from .genrec_lists import numbered
from .genrec_recommend import ItemScoresMixin, NoGenerationMixin, PredictionOutput


_TIE = 1e-6  # what the most popular item has ahead of one that is never taken, where no weight speaks for either
_PROJECTION = 64  # width of the vectors that stand for the rows of the table where lists shall be diverse


class ItemScorer(NoGenerationMixin, ItemScoresMixin, CheckpointMixin, ItemTokensMixin, PreTrainedModel):
    """Parent of models that score the whole catalog and are not trained by gradients."""

    base_model_prefix = "model"
    _auto_class = "AutoModel"  # saving takes the code along
    _made = "fitted in closed form"

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> PredictionOutput:
        """
        The log-probabilities of the item after each history, without a loss: `labels` are refused.

        Args: see [`ItemTokensMixin.is_item`].
        """
        if input_ids is None:
            raise ValueError("`input_ids` is needed.")
        if labels is not None:
            raise ValueError(f"`labels` are not taken: a {type(self).__name__} is {self._made}, not trained.")
        return PredictionOutput(logits=self.score_items(input_ids, attention_mask))


class ItemToItemForItemGeneration(ItemScorer):
    """
    Item tokens in, the next item out: the sum of the history items' weights, each times `decay ** age`.

    The strongest simple baseline, served like any other model. [`fit_item_to_item`] makes one from a log.

    Args:
        config ([`ItemToItemConfig`]): Sizes, token layout and the decay.

    Example:

    ```python
    >>> config = ItemToItemConfig(num_items=3, num_weights=2, decay=0.5)
    >>> model = ItemToItemForItemGeneration(config)
    >>> model.set_weights(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([0.75, 0.5]))
    >>> model.recommend(torch.tensor([[4, 5]]), top_k=3).item_tokens.tolist()  # items 0 and 1 say 1 and 2
    [[6, 5, 4]]

    ```
    """

    config: ItemToItemConfig
    config_class = ItemToItemConfig
    targets: torch.Tensor
    offsets: torch.Tensor
    item_shares: torch.Tensor

    def __init__(self, config: ItemToItemConfig):
        super().__init__(config)
        self.weights = nn.Parameter(torch.zeros(config.num_weights), requires_grad=False)
        self.item_vectors = nn.Parameter(torch.zeros(config.num_items, config.vector_dim), requires_grad=False)
        self.register_buffer("targets", torch.zeros(config.num_weights, dtype=torch.int32))
        self.register_buffer("offsets", torch.zeros(config.num_items + 1, dtype=torch.int64))
        self.register_buffer("item_shares", torch.zeros(config.num_items))
        self.register_items_digest()
        self.post_init()

    @torch.no_grad()
    def set_weights(self, items: torch.LongTensor, targets: torch.LongTensor, weights: torch.FloatTensor) -> None:
        """
        Fill the table.

        Args:
            items: History item of each weight `(num_weights,)`, indices in ascending order.
            targets: The item that it speaks for `(num_weights,)`, an index.
            weights: The weights `(num_weights,)`.
        """
        if not len(items) == len(targets) == len(weights) == self.config.num_weights:
            raise ValueError(
                f"The table holds {self.config.num_weights} weights, got {len(items)} items, {len(targets)} targets "
                f"and {len(weights)} weights."
            )
        if bool((items.diff() < 0).any()):
            raise ValueError("`items` must be in ascending order.")
        self.offsets[1:] = torch.bincount(items, minlength=self.config.num_items).cumsum(0)
        self.targets.copy_(targets)
        self.weights.copy_(weights)

    def item_logits(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        The sums; of items that no weight speaks for the more popular one has a trace more.

        Args: see [`ItemScoresMixin.item_logits`].
        """
        num_users, num_items = len(input_ids), self.config.num_items
        is_item = self.is_item(input_ids, attention_mask)
        ages = is_item.sum(1, keepdim=True) - is_item.long().cumsum(1)
        is_read = is_item & (ages < self.config.max_history_length)
        users, items = is_read.nonzero()[:, 0], input_ids[is_read] - self.config.first_item_token
        shares = torch.pow(float(self.config.decay), ages[is_read].float())
        logits = self.item_shares.float().mul(_TIE).repeat(num_users, 1)
        if self.config.num_weights:
            begin = self.offsets[items]
            read, numbers = numbered(self.offsets[items + 1] - begin)
            entries = begin[read] + numbers
            places = users[read] * num_items + self.targets[entries]
            logits.view(-1).index_add_(0, places, shares[read] * self.weights[entries].float())
        if self.config.vector_dim:
            vectors = self.item_vectors.float()
            histories = torch.zeros(num_users, vectors.shape[1], device=vectors.device)
            read = vectors[items]
            logits += histories.index_add_(0, users, shares.unsqueeze(1) * read) @ vectors.t()
            if not self.config.self_similarity:
                logits.index_put_((users, items), -shares * read.square().sum(1), accumulate=True)
        return logits

    def item_embeddings(self) -> torch.Tensor:
        """Text vectors, or random projections of the table's rows: items alike in what comes after them."""
        if self.config.vector_dim:
            return self.item_vectors.float()
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(self.config.num_items, _PROJECTION, generator=generator).to(self.offsets.device)
        rows = torch.arange(self.config.num_items, device=self.offsets.device).repeat_interleave(self.offsets.diff())
        projected = torch.zeros_like(directions)
        return projected.index_add_(0, rows, self.weights.float().unsqueeze(1) * directions[self.targets.long()])

    def history_bytes(self, history_length: int) -> int:
        """The entries of the table that a history reads, and their places."""
        per_item = -(-self.config.num_weights // self.config.num_items)
        return min(history_length, self.config.max_history_length) * (32 * per_item + 4 * self.config.vector_dim)


__all__ = ["ItemScorer", "ItemToItemForItemGeneration"]
