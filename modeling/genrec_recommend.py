"""
From a history to ranked items: the search over the catalog, rules, latents and exact re-scoring in one call.

A model that mixes in `RecommendMixin` supplies `encode_history`, `decode_states`, `path_states`, `score_tokens` and
`decoding_bytes`. Scores are log-probabilities, exact sums over the generated tokens, not divided by length. What a
probability is relative to is `config.normalization`: the whole vocabulary, or the tokens that the catalog allows.

The search is for semantic IDs, the lists are of items. Where several items share an id they share its score, and it
gives way to all of them that the rules allow, the lowest index first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .genrec_beam_search import Beams, HistoryOutput, beam_search
from .genrec_diversity import DiverseGroups, GumbelTopK, diversify
from .genrec_ranking import (
    BeamPath,
    describe_paths,
    list_items,
    num_distinct_items,
    prior_penalties,
    rank_ids,
    reordered,
    sampled_items,
)
from .genrec_rules import allowed_items, check_rule, rule_rows
from .genrec_scoring import ScoringMixin, evaluation_mode
from .genrec_search_options import SearchOptions


MEMORY_BUDGET = 2 << 30  # bytes that a call may take beside the model, by its own estimate; users are chunked under it
RULE_BYTES = 8  # per item and user: the mask, its order, the counts and the tables that close prefixes


@dataclass
class RecommendOutput(ModelOutput):
    """
    Ranked items.

    Args:
        item_tokens (`torch.LongTensor` of shape `(batch_size, top_k)`):
            Distinct items, best first, those that share a semantic ID in ascending order; with groups, samples or
            `diversity` in the order that these say. The pad token fills up where fewer than `top_k` items were
            allowed.
        scores (`torch.FloatTensor` of shape `(batch_size, top_k)`): Log-probabilities; `-inf` at the filling.
        paths (`list[list[BeamPath]]`, *optional*): Per user the beams of the items in `item_tokens`.
        pruned (`list[list[BeamPath]]`, *optional*): Per user the best continuations at each step that were not kept.
        num_distinct (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            How many distinct items the beams of each user ended at: of each semantic ID all items that share it.
    """

    item_tokens: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None
    paths: list[list[BeamPath]] | None = None
    pruned: list[list[BeamPath]] | None = None
    num_distinct: torch.LongTensor | None = None


class RecommendMixin(ScoringMixin):
    """
    `recommend()` for models that generate semantic IDs token by token. Same ranked items as `generate()`, computed
    with one encoder pass and one set of cross-attention keys and values per user instead of one per beam.
    """

    default_decoding = "beam"

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
        beams_per_latent: int | None = None,
        latents_per_prefix: int | None = None,
        num_rescored: int = 0,
        level_temperature: Sequence[float] | None = None,
        prior_correction: float = 0.0,
        item_prior: torch.Tensor | None = None,
        num_groups: int = 1,
        group_penalty: float = 0.0,
        diversity: float = 0.0,
        item_embeddings: torch.Tensor | None = None,
        sample_seed: int | None = None,
        memory_budget: int = MEMORY_BUDGET,
        return_paths: bool = False,
    ) -> RecommendOutput:
        """
        The `top_k` best items for each history.

        A model tends to put much probability on the prefixes of popular items, and beams that crowd there leave none
        for the rest of the catalog. `prior_correction` takes a share of each prefix's popularity out of the ranking,
        of beams and of the final list, so that what is unusually likely for *this* user comes up.
        `level_temperature` flattens (above 1) or sharpens the choice of each code. Measured on Amazon 2014 Beauty with
        PSID (`RESULTS.md` of the library): a correction of .4 shows half as much catalog again at equal recall; a
        first level at 0.7 shows a little more at slightly lower recall, above 1 less of both. Choose on validation
        data.

        Three ways to lists that are not ten times the same thing; in all of them scores stay log-probabilities, so
        they do not fall from place to place. `num_groups` with a `group_penalty` divides the beams into groups that
        avoid each other's prefixes; the groups take turns in the list. `diversity` picks, from the items that the
        beams hold, those that are good and unlike the ones picked before, in the order picked; make `num_beams`
        several times `top_k`. `sample_seed` draws items at random instead of the best ones, without replacement.

        Items that share a semantic ID are told apart by rules, by `diversity` with `item_embeddings` and by a sample
        (the probability of the id is divided evenly among them), by nothing else: they have one score, and a prior
        correction is that of all of them together.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`):
                Item tokens, oldest first, padded on either side. Special and unknown tokens are ignored.
            attention_mask (`torch.Tensor`, same shape, *optional*): 1 at items that count; `None` for all.
            top_k (`int`, defaults to 10): Length of the lists, at most `num_items`.
            num_beams (`int`, defaults to 50):
                Width of the search. Widened for the users who would get fewer than `top_k` distinct items.
            latent_aggregation (`str`, defaults to `"max"`):
                Score of an item reached through several latents: that of its best path, or the `"sum"` of the
                probabilities of its paths among the beams.
            exclude_items (`torch.Tensor`, *optional*):
                Items that must not be recommended: item tokens `(n,)` for all users or `(batch_size, n)` padded with
                the pad token, or a boolean mask over items, `(num_items,)` or `(batch_size, num_items)`.
            allow_items (`torch.Tensor`, *optional*):
                The only items that may be recommended, in the same forms, less those excluded; `None` for all. Where
                fewer than `top_k` are left the list is filled up with padding, to the last place if none is.
            beams_per_latent (`int`, *optional*):
                Let every latent keep so many beams, instead of the `num_beams` best of all latents.
            latents_per_prefix (`int`, *optional*):
                Let at most so many latents keep the same codes at each step, so that the beams hold more items.
            num_rescored (`int`, defaults to 0):
                Score so many of the best distinct items again (ids, where items share them), exactly and over all
                latents: 0, or at least `top_k`. Without latents the scores are exact anyway and nothing is done.
            level_temperature (`Sequence[float]` of length `num_levels`, *optional*):
                What the logits of each level are divided by. Scores are log-probabilities under it.
            prior_correction (`float`, defaults to 0.0):
                Share of the log-prior of a prefix (the sum over its items) that is subtracted in ranking. The lists
                are in the order of corrected scores; the scores returned are log-probabilities without it.
            item_prior (`torch.Tensor` of shape `(num_items,)`, *optional*):
                Probability of each item whoever the user is, above zero; normalised to a sum of 1. For example the
                number of its interactions plus one.
            num_groups (`int`, defaults to 1): Groups of beams, at most `num_beams`; see `DiverseGroups`.
            group_penalty (`float`, defaults to 0.0):
                Nats that a prefix costs a group for every beam of an earlier group that took it at this step. With 0
                all groups find the same.
            diversity (`float`, defaults to 0.0):
                From 0, the best items in their order, to 1, the best one and then the least similar ones; see `mmr`.
            item_embeddings (`torch.Tensor` of shape `(num_items, dimension)`, *optional*):
                What `diversity` compares items by, with the cosine; `None` for the share of leading codes in common.
            sample_seed (`int`, *optional*):
                Draw instead of search, see `GumbelTopK`; with at least `top_k` beams per latent. The same seed and
                the same call give the same lists. Noise is drawn for each user, so users with equal histories get
                different lists, and a list depends on the user's place in the batch and on the other users in it.
            memory_budget (`int`, defaults to 2 GiB):
                Bytes by which users are chunked, by the estimate of `decoding_bytes`; at least one at a time.
            return_paths (`bool`, defaults to `False`): Also return the beams behind each item.

        Returns:
            [`RecommendOutput`]

        Raises:
            ValueError: If an argument is out of range or two do not go together.

        Source: Hou et al. 2026, section 4.2 (https://huggingface.co/papers/2605.06331); the search is ours.
        """
        options = SearchOptions(
            top_k=top_k,
            num_beams=num_beams,
            latent_aggregation=latent_aggregation,
            beams_per_latent=beams_per_latent,
            latents_per_prefix=latents_per_prefix,
            num_rescored=num_rescored,
            level_temperature=level_temperature,
            prior_correction=prior_correction,
            num_groups=num_groups,
            group_penalty=group_penalty,
            diversity=diversity,
            item_embeddings=item_embeddings,
            sample_seed=sample_seed,
            memory_budget=memory_budget,
            return_paths=return_paths,
        )
        options.check(self.config, item_prior)
        rules = {"exclude_items": exclude_items, "allow_items": allow_items}
        for name, rule in rules.items():
            check_rule(name, rule, config=self.config, batch_size=len(input_ids))
        penalties = None
        if item_prior is not None:
            penalties = prior_penalties(self.catalog, item_prior, prior_correction)
        per_user, per_beam = self.decoding_bytes(input_ids.shape[1])
        if any(rule is not None for rule in rules.values()):
            per_user += RULE_BYTES * self.config.num_items
        options.prepare(self.config, bytes_per_user=per_user, bytes_per_beam=per_beam, device=input_ids.device)
        outputs = []
        with evaluation_mode(self):
            for rows in options.chunks(len(input_ids), options.beams(self.config)):
                mask = None if attention_mask is None else attention_mask[rows]
                history = self.encode_history(input_ids[rows], mask)
                parts = {name: rule_rows(rule, rows) for name, rule in rules.items()}
                allowed = allowed_items(self.config, **parts, device=history.last_hidden_state.device)
                outputs.append(self._search_users(history, allowed, penalties, options))
        if not outputs:
            return _empty_output(0, options, pad_token_id=self.config.pad_token_id, device=input_ids.device)
        return outputs[0] if len(outputs) == 1 else _concatenate(outputs)

    def _search_users(self, history, allowed, penalties, options) -> RecommendOutput:
        """Search, then search again with twice the beams for the users whose lists are still short."""
        config, batch_size = self.config, len(history.last_hidden_state)
        device = history.last_hidden_state.device
        wanted = torch.full((batch_size,), options.top_k, device=device)
        if allowed is not None:
            wanted = wanted.minimum(allowed.sum(1))
        output = _empty_output(batch_size, options, pad_token_id=config.pad_token_id, device=device)
        pending = [(torch.arange(batch_size, device=device), options.beams(config))]
        while pending:
            users, num_beams = pending.pop()
            chunks = options.chunks(len(users), num_beams)
            if len(chunks) > 1:
                pending += [(users[rows], num_beams) for rows in chunks]
                continue
            is_all = len(users) == batch_size
            part = history
            if not is_all:
                part = HistoryOutput(history.last_hidden_state[users], history.attention_mask[users])
            rules = allowed if is_all else rule_rows(allowed, users)
            tokens, scores, beams = self._search_once(part, rules, penalties, options, num_beams)
            is_short = (scores > -float("inf")).sum(1) < wanted[users]
            is_done = ~is_short if num_beams < options.most_beams(config) else torch.ones_like(is_short)
            done = users[is_done]
            output.item_tokens[done], output.scores[done] = tokens[is_done], scores[is_done]
            output.num_distinct[done] = num_distinct_items(self.catalog, beams)[is_done]
            if options.return_paths:
                paths, pruned = describe_paths(config, self.catalog, beams, tokens)
                for row in is_done.nonzero()[:, 0].tolist():
                    output.paths[int(users[row])], output.pruned[int(users[row])] = paths[row], pruned[row]
            if len(done) < len(users):
                pending.append((users[~is_done], min(2 * num_beams, options.most_beams(config))))
        return output

    def _search_once(
        self, history, allowed, penalties, options, num_beams
    ) -> tuple[torch.Tensor, torch.Tensor, Beams]:
        """Item tokens and scores by one search of a given width, short where it found too few; and its beams."""
        config, selection = self.config, options.selection(self.config)
        beams = beam_search(
            self,
            history,
            num_beams=num_beams,
            selection=selection,
            allowed_items=allowed,
            penalties=penalties,
            level_temperature=options.level_temperature,
            num_pruned=num_beams if options.return_paths else 0,
        )
        if isinstance(selection, DiverseGroups):
            beams = reordered(beams, selection.order, num_latents=config.num_latent_tokens)
        penalty = None if penalties is None else penalties[-1]
        if isinstance(selection, GumbelTopK) and not self.catalog.is_unique:
            items, scores = sampled_items(
                self.catalog,
                beams,
                selection,
                top_k=options.top_k,
                num_latents=config.num_latent_tokens,
                latent_aggregation=options.latent_aggregation,
                allowed=allowed,
            )
        else:
            leaves, scores = rank_ids(
                beams,
                top_k=options.num_pooled(config, num_beams),
                latent_aggregation=options.latent_aggregation,
                penalty=penalty,
                by_place=isinstance(selection, DiverseGroups | GumbelTopK),
            )
            if options.num_rescored and config.num_latent_tokens:
                leaves, scores = self._rescored(history, leaves, scores, penalty, options)
            items, scores = self._listed(leaves, scores, allowed, penalty, options)
        tokens = torch.where(items >= 0, items + config.first_item_token, config.pad_token_id)
        return tokens, scores, beams

    def _rescored(self, history, leaves, scores, penalty, options) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """Ids (B, n), -1 where there is none, in the order of exact scores: all for a diverse list, or `top_k`."""
        path_bytes = self.config.num_decoding_steps * options.bytes_per_beam
        scores = self.score_candidates(
            history,
            self.catalog.item_at(leaves).clamp_min(0),
            latent_aggregation=options.latent_aggregation,
            level_temperature=options.level_temperature,
            chunk_size=max(1, options.memory_budget // (path_bytes * max(1, len(leaves)))),
        ).masked_fill(leaves < 0, -float("inf"))
        ranked = scores if penalty is None else scores - penalty[leaves.clamp_min(0)]
        if options.diversity:
            order = ranked.sort(dim=1, descending=True, stable=True).indices
        else:
            order = ranked.topk(options.top_k).indices
        return leaves.gather(1, order), scores.gather(1, order)

    def _listed(self, leaves, scores, allowed, penalty, options) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """The `top_k` items, -1 where there is none, of ranked ids (B, n): the first ones, or a diverse list."""
        if not options.diversity:
            return list_items(self.catalog, leaves, scores, top_k=options.top_k, allowed=allowed)
        ranked = scores if penalty is None else scores - penalty[leaves.clamp_min(0)]
        items, scores, ranked = list_items(
            self.catalog, leaves, scores, ranked, top_k=leaves.shape[1], allowed=allowed
        )
        return diversify(
            items,
            scores,
            top_k=options.top_k,
            diversity=options.diversity,
            item_codes=self.item_codes,
            item_embeddings=options.item_embeddings,
            ranked=ranked,
        )


def _empty_output(batch_size: int, options: SearchOptions, *, pad_token_id: int, device) -> RecommendOutput:
    shape = (batch_size, options.top_k)
    return RecommendOutput(
        item_tokens=torch.full(shape, pad_token_id, device=device),
        scores=torch.full(shape, -float("inf"), device=device),
        paths=[[] for _ in range(batch_size)] if options.return_paths else None,
        pruned=[[] for _ in range(batch_size)] if options.return_paths else None,
        num_distinct=torch.zeros(batch_size, dtype=torch.long, device=device),
    )


def _concatenate(outputs: list[RecommendOutput]) -> RecommendOutput:
    """The lists of all users, chunk after chunk."""
    return RecommendOutput(
        item_tokens=torch.cat([output.item_tokens for output in outputs]),
        scores=torch.cat([output.scores for output in outputs]),
        paths=None if outputs[0].paths is None else [paths for output in outputs for paths in output.paths],
        pruned=None if outputs[0].pruned is None else [paths for output in outputs for paths in output.pruned],
        num_distinct=torch.cat([output.num_distinct for output in outputs]),
    )


__all__ = ["MEMORY_BUDGET", "RecommendMixin", "RecommendOutput"]
