"""Ensembles: several recommenders over one catalog in one model, whose scores are added up."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .configuration_ensemble import EnsembleConfig
from .genrec_kept import histories_read_once, vectors_of
from .genrec_recommend import UserBatch
from .modeling_acerec import ACERecForItemGeneration
from .modeling_bert4rec import BERT4RecForItemGeneration
from .modeling_decoder import DecoderForItemGeneration
from .modeling_gru4rec import GRU4RecForItemGeneration
from .modeling_hstu import HSTUForItemGeneration
from .modeling_item_to_item import ItemScorer, ItemToItemForItemGeneration
from .modeling_latte import LatteForConditionalGeneration
from .modeling_rpg import RPGForItemGeneration
from .modeling_sasrec import SASRecForItemGeneration
from .modeling_vqrec import VQRecForItemGeneration


MEMBERS = {
    kind.config_class.model_type: kind
    for kind in (
        LatteForConditionalGeneration,
        DecoderForItemGeneration,
        RPGForItemGeneration,
        ACERecForItemGeneration,
        SASRecForItemGeneration,
        HSTUForItemGeneration,
        VQRecForItemGeneration,
        GRU4RecForItemGeneration,
        BERT4RecForItemGeneration,
        ItemToItemForItemGeneration,
    )
}
RANK_OFFSET = 60  # Cormack et al. 2009
MEMBER_BYTES = 32  # per item and user: a member's scores, what becomes of them and the sum


class EnsembleForItemGeneration(ItemScorer):
    """
    Item tokens in, the next item out: the weighted sum of what the members say about each item.

    Members that score every item do so; one that searches with beams lists its best, and all other items lie
    `listing_floor` nats under the last of them. So the candidates are always the whole catalog: what a member has
    missed another one can bring in. Members are parts of this model, and one folder holds them all.

    Args:
        config ([`EnsembleConfig`]): The members' configs, weights, and what is added up.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_sasrec import SASRecConfig
    >>> members = [SASRecForItemGeneration(SASRecConfig(num_items=3, d_model=8)) for _ in range(2)]
    >>> ensemble = EnsembleForItemGeneration.of(members, weights=[0.5, 1.5])
    >>> ensemble.recommend(torch.tensor([[4, 6]]), top_k=3).item_tokens.shape
    torch.Size([1, 3])

    ```
    """

    config: EnsembleConfig
    config_class = EnsembleConfig
    _made = "made of its members"
    members: Any  # a `ModuleList`, of models

    def __init__(self, config: EnsembleConfig):
        super().__init__(config)
        if not config.members:
            raise ValueError("`members` is empty: an ensemble needs the config of one member at least.")
        self.members = nn.ModuleList(MEMBERS[member.model_type](member) for member in config.member_configs())
        for member in self.members:
            member.config.closed_items = config.closed_items
        self.register_items_digest()
        self.post_init()
        # `post_init` does not look for tied weights inside a list of models
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    @classmethod
    def of(cls, members: Sequence[Any], **settings) -> "EnsembleForItemGeneration":
        """
        An ensemble of models, in evaluation mode.

        Args:
            members: Models over the same items in the same order; their weights are copied.
            **settings: Fields of [`EnsembleConfig`] such as `weights`.
        """
        configs = [{"model_type": member.config.model_type, **member.config.to_diff_dict()} for member in members]
        model = cls(EnsembleConfig(num_items=members[0].config.num_items, members=configs, **settings))
        for own, member in zip(model.members, members, strict=True):
            own.load_state_dict(member.state_dict())
        return model.eval()

    def _finish_loading(self, source, where) -> None:
        super()._finish_loading(source, where)
        for member in self.members:
            if member.config.has_codes:
                member.check_catalog()

    def close_items(self, closed: torch.BoolTensor) -> None:
        """As for every model; its members leave these items out too."""
        super().close_items(closed)
        for member in self.members:
            member.close_items(closed)

    def item_logits(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        The weighted sums, by the weights for lists in which items of the history may stand.

        Args: see [`ItemScoresMixin.item_logits`].
        """
        leaves_out = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return self._sums(input_ids, attention_mask, leaves_out)

    def _users_logits(self, users: UserBatch) -> torch.FloatTensor:
        """By the weights for the list of each user: whether a rule leaves out the whole history, or not."""
        is_item = self.is_item(users.input_ids, users.attention_mask)
        leaves_out = torch.zeros(len(is_item), dtype=torch.bool, device=is_item.device)
        if users.rules is not None:
            items = (users.input_ids - self.config.first_item_token).masked_fill(~is_item, 0)
            may_stand = users.rules.expand(len(items), -1).gather(1, items) & is_item
            leaves_out = is_item.any(1) & ~may_stand.any(1)
        return self._sums(users.input_ids, users.attention_mask, leaves_out)

    def _sums(self, input_ids, attention_mask, leaves_out: torch.BoolTensor) -> torch.FloatTensor:
        """Each row by one of the two lists of weights."""
        config, device = self.config, input_ids.device
        both = torch.tensor([config.weights_with_seen or config.weights, config.weights], device=device)
        weights = both[leaves_out.long()]  # (B, number of scores)
        parts = self.member_scores(input_ids, attention_mask, weights=weights.sum(0).tolist())
        total = torch.zeros(len(input_ids), config.num_items, device=device)
        with histories_read_once():
            for number, scores in enumerate(parts):
                if scores is not None:
                    total += weights[:, number, None] * scores
        return total

    def member_scores(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        weights: Sequence[float] | None = None,
    ):
        """
        What is added up, before it is weighted.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.
            weights: Scores with a weight of 0 are not computed, and `None` stands for them.

        Returns:
            An iterator over tensors `(batch_size, num_items)`, float32, in the order of `config.scores`; 0 for closed
            items, which count in no mean and no scale.
        """
        is_item, number = self.is_item(input_ids, attention_mask), 0
        for member in self.members:
            config = member.config
            tokens = input_ids - self.config.first_item_token + config.first_item_token
            tokens = tokens.masked_fill(~is_item, config.pad_token_id)
            ways = [self._listed if "beam" in member.decodings else _exact]
            if getattr(config, "dense_head", False):
                ways.append(_dense)
            for find in ways:
                is_wanted = weights is None or weights[number] != 0
                yield self._combined(*find(member, tokens)) if is_wanted else None
                number += 1

    def _combined(self, log_probs: torch.FloatTensor, listed: torch.FloatTensor | None) -> torch.FloatTensor:
        """Log-probabilities of all items, and those whose scale counts, to what is added up."""
        is_open = self.open_items
        if is_open is None:
            return self._of_open(log_probs, listed)
        found = self._of_open(log_probs[:, is_open], listed)
        return torch.zeros_like(log_probs).masked_scatter_(is_open.expand_as(log_probs), found)

    def _of_open(self, log_probs: torch.FloatTensor, listed: torch.FloatTensor | None) -> torch.FloatTensor:
        """The same for items that are all open; `listed` is `None` where that is all of them."""
        if self.config.combination == "log_probability":
            return log_probs
        if self.config.combination == "standardised":
            scale = (log_probs if listed is None else listed).std(1, keepdim=True)
            return (log_probs - log_probs.mean(1, keepdim=True)) / scale.clamp_min(1e-6)
        best = log_probs.topk(min(self.config.num_candidates, log_probs.shape[1]), dim=1).indices
        ranks = torch.arange(RANK_OFFSET, RANK_OFFSET + best.shape[1], device=best.device, dtype=log_probs.dtype)
        return torch.zeros_like(log_probs).scatter_(1, best, ranks.reciprocal().expand_as(best))

    def _listed(self, member, tokens) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        """Beams: scores of the items listed, the others under the last of them. The scale is that of the list."""
        num_items, is_open = self.config.num_items, self.open_items
        length = min(self.config.num_candidates, num_items if is_open is None else int(is_open.sum()))
        alike = {"num_new_items": 0, "new_item_margin": 0.0}
        options: dict[str, Any] = {"dense_weight": 0.0} if "dense_weight" in member.recommend_options else {}
        found = member.recommend(tokens, top_k=length, num_beams=length, decoding="beam", **alike, **options)
        is_none = found.scores == -float("inf")
        last = found.scores.masked_fill(is_none, float("inf")).amin(1, keepdim=True)
        floor = torch.where(last.isinf(), 0, last) - self.config.listing_floor
        listed = torch.where(is_none, floor, found.scores.float())
        places = (found.item_tokens - member.config.first_item_token).masked_fill(is_none, num_items)
        log_probs = floor.expand(-1, num_items + 1).scatter(1, places, listed)[:, :num_items]
        return log_probs, torch.cat([listed, floor], dim=1)

    def item_embeddings(self) -> torch.Tensor | None:
        """Unit vectors of the members side by side, so items are as alike as the members find them on average."""
        found = [vectors for vectors in map(vectors_of, self.members) if vectors is not None]
        return torch.cat([nn.functional.normalize(vectors.float(), dim=1) for vectors in found], 1) if found else None

    def history_bytes(self, history_length: int) -> int:
        """What the members take that score every item."""
        reading = sum(
            member.history_bytes(history_length) for member in self.members if hasattr(member, "history_bytes")
        )
        return MEMBER_BYTES * self.config.num_items + reading


def _exact(member, tokens) -> tuple[torch.FloatTensor, None]:
    return member.score_items(tokens).float(), None


def _dense(member, tokens) -> tuple[torch.FloatTensor, None]:
    return member.dense_scores(tokens).float(), None


__all__ = ["EnsembleForItemGeneration"]
