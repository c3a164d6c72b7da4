"""
From a history to ranked items, for models that have a log-probability for every item at once.

A model that mixes in `ItemRecommendMixin` supplies `item_log_probs`, `history_bytes`, `item_embeddings` and `config`.
Every item is scored, so nothing is searched for; of equal scores the lower item index stands first.
"""

import torch

from .genrec_choice import first_of_the_best, gumbel_noise, user_keys
from .genrec_diversity import diversify
from .genrec_ranking import item_penalties
from .genrec_recommend import MEMORY_BUDGET, RULE_BYTES, RecommendOutput
from .genrec_rules import allowed_items, check_rule, rule_rows
from .genrec_scoring import evaluation_mode
from .genrec_search_options import SearchOptions


SCORE_BYTES = 24  # per item and user: logit, log-probability, what is ranked, and its place while the best are found
NOISE_BYTES = 44  # and for a sample: hashes, uniform numbers and the noise


class ItemRecommendMixin:
    """`recommend()` and `score_items()` for models with `item_log_probs`."""

    default_decoding = "exact"

    @torch.no_grad()
    def score_items(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Exact log-probability of every item, for catalogs small enough that a number per user and item can be held.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`): Item tokens, oldest first.
            attention_mask (`torch.Tensor`, same shape, *optional*): 1 at items that count; `None` for all.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_items)`: log-probabilities, which sum to one over the items.
        """
        with evaluation_mode(self):
            return self.item_log_probs(input_ids, attention_mask)

    @torch.no_grad()
    def recommend(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        top_k: int = 10,
        num_beams: int = 50,
        latent_aggregation: str = "max",
        exclude_items: torch.Tensor | None = None,
        allow_items: torch.Tensor | None = None,
        prior_correction: float = 0.0,
        item_prior: torch.Tensor | None = None,
        diversity: float = 0.0,
        item_embeddings: torch.Tensor | None = None,
        sample_seed: int | None = None,
        memory_budget: int = MEMORY_BUDGET,
        decoding: str = "exact",
    ) -> RecommendOutput:
        """
        The `top_k` best items for each history, by exact scores of the whole catalog.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`):
                Item tokens, oldest first, padded on either side. Special and unknown tokens are ignored.
            attention_mask (`torch.Tensor`, same shape, *optional*): 1 at items that count; `None` for all.
            top_k (`int`, defaults to 10): Length of the lists, at most `num_items`.
            num_beams (`int`, defaults to 50):
                Number of items that `diversity` picks from, if that is more than `top_k`. Nothing else depends on it.
            latent_aggregation (`str`, defaults to `"max"`):
                `"max"` or `"sum"`, for calls that serve other models too: without latents both are the same.
            exclude_items (`torch.Tensor`, *optional*):
                Items that must not be recommended: item tokens `(n,)` for all users or `(batch_size, n)` padded with
                the pad token, or a boolean mask over items, `(num_items,)` or `(batch_size, num_items)`.
            allow_items (`torch.Tensor`, *optional*):
                The only items that may be recommended, in the same forms, less those excluded; `None` for all. Where
                fewer than `top_k` are left the list is filled up with padding, to the last place if none is.
            prior_correction (`float`, defaults to 0.0):
                Share of the log-prior of an item that is subtracted in ranking. The lists are in the order of
                corrected scores; the scores returned are log-probabilities without it.
            item_prior (`torch.Tensor` of shape `(num_items,)`, *optional*):
                Probability of each item whoever the user is, above zero; normalised to a sum of 1.
            diversity (`float`, defaults to 0.0):
                From 0, the best items in their order, to 1, the best one and then the least similar ones; see `mmr`.
            item_embeddings (`torch.Tensor` of shape `(num_items, dimension)`, *optional*):
                What `diversity` compares items by, with the cosine; `None` for the model's own.
            sample_seed (`int`, *optional*):
                Draw items at random, in proportion to their probabilities and without replacement, in the order
                drawn, instead of taking the best ones. What is drawn depends on the seed and on the user's place in
                the batch, not on the other users, the device or the memory.
            memory_budget (`int`, defaults to 2 GiB):
                Bytes by which users are chunked, by an estimate; at least one user at a time.
            decoding (`str`, defaults to `"exact"`): Only that: there are no codes to search.

        Returns:
            [`RecommendOutput`]

        Raises:
            ValueError: If an argument is out of range or two do not go together.
        """
        options = SearchOptions(
            top_k=top_k,
            num_beams=num_beams,
            latent_aggregation=latent_aggregation,
            beams_per_latent=None,
            latents_per_prefix=None,
            num_rescored=0,
            level_temperature=None,
            prior_correction=prior_correction,
            num_groups=1,
            group_penalty=0.0,
            diversity=diversity,
            item_embeddings=item_embeddings,
            sample_seed=sample_seed,
            memory_budget=memory_budget,
            return_paths=False,
        )
        if decoding != "exact":
            raise ValueError(
                f"`decoding` must be 'exact', got {decoding!r}: {type(self).__name__} scores all items and has no "
                "codes to search."
            )
        options.check(self.config, item_prior)
        rules = {"exclude_items": exclude_items, "allow_items": allow_items}
        for name, rule in rules.items():
            check_rule(name, rule, config=self.config, batch_size=len(input_ids))
        penalty = None
        if item_prior is not None:
            item_prior = item_prior.to(input_ids.device)
            penalty = item_penalties(item_prior, prior_correction, num_items=self.config.num_items)
        self._prepare(options, input_ids, has_rules=any(rule is not None for rule in rules.values()))
        lists = []
        with evaluation_mode(self):
            for rows in options.chunks(len(input_ids), 0) or [slice(0, 0)]:
                mask = None if attention_mask is None else attention_mask[rows]
                log_probs = self.item_log_probs(input_ids[rows], mask)
                parts = {name: rule_rows(rule, rows) for name, rule in rules.items()}
                allowed = allowed_items(self.config, **parts, device=log_probs.device)
                lists.append(self._best(log_probs, allowed, penalty, options, first_user=rows.start))
        items, scores = (torch.cat(parts) for parts in zip(*lists, strict=True))
        return RecommendOutput(
            item_tokens=torch.where(items >= 0, items + self.config.first_item_token, self.config.pad_token_id),
            scores=scores,
        )

    def _prepare(self, options: SearchOptions, input_ids: torch.LongTensor, *, has_rules: bool) -> None:
        """Tell `options` what a user takes."""
        per_item = SCORE_BYTES + (RULE_BYTES if has_rules else 0)
        per_item += NOISE_BYTES if options.sample_seed is not None else 0
        per_user = self.history_bytes(input_ids.shape[1]) + per_item * self.config.num_items
        if options.diversity and options.item_embeddings is None:
            options.item_embeddings = self.item_embeddings()
        options.prepare(self.config, bytes_per_user=per_user, bytes_per_beam=0, device=input_ids.device)

    def _best(
        self, log_probs, allowed, penalty, options: SearchOptions, *, first_user: int
    ) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """Items and scores `(batch_size, top_k)` of some users; -1 and `-inf` where fewer are allowed."""
        ranked, infinity = log_probs, float("inf")
        if penalty is not None:
            ranked = ranked - penalty
        if options.sample_seed is not None:
            users = torch.arange(first_user, first_user + len(log_probs), device=log_probs.device)
            catalog = torch.arange(self.config.num_items, device=log_probs.device)
            ranked = ranked + gumbel_noise(user_keys(options.sample_seed, users), catalog)
        if allowed is not None:
            ranked = ranked.masked_fill(~allowed, -infinity)
        items = first_of_the_best(ranked, options.num_pooled(self.config, options.beams(self.config)))
        scores, ranked = log_probs.gather(1, items), ranked.gather(1, items)
        is_none = ranked == -infinity
        items, scores = items.masked_fill(is_none, -1), scores.masked_fill(is_none, -infinity)
        if options.diversity:
            items, scores = diversify(
                items,
                scores,
                top_k=options.top_k,
                diversity=options.diversity,
                item_codes=None,
                item_embeddings=options.item_embeddings,
                ranked=ranked,
            )
        return items, scores


__all__ = ["ItemRecommendMixin"]
