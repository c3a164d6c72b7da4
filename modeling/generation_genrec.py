"""
From a history to ranked items: constrained beam search that reads each user's history once, and exact scoring.

A model that mixes in `RecommendMixin` supplies three things: `encode_history`, `decode_step` and `score_items`.
Scores are log-probabilities, exact sums over the generated tokens, not divided by length. What a probability is
relative to is `config.normalization`: the whole vocabulary, or the tokens that the catalog allows.
"""

from dataclasses import dataclass

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.utils import ModelOutput

from .catalog_genrec import Catalog


@dataclass
class HistoryOutput(ModelOutput):
    """
    Encoded histories, one row per user whatever the number of beams or targets that read them.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_history_tokens, d_model)`): Encoder states.
        attention_mask (`torch.BoolTensor` of shape `(batch_size, num_history_tokens)`): `True` at real tokens.
    """

    last_hidden_state: torch.FloatTensor | None = None
    attention_mask: torch.BoolTensor | None = None


@dataclass
class BeamPath:
    """
    One way through the decoding tree.

    Args:
        latent (`int`, *optional*): Latent chosen first; `None` for models without.
        codes (`list[int]`): Codes so far; shorter than `num_levels` for a prefix that was pruned.
        scores (`list[float]`): Cumulative log-probability after the latent (if any) and after each code.
        item_token (`int`, *optional*): Token of the item the path ends at; `None` for a pruned prefix.
    """

    latent: int | None
    codes: list[int]
    scores: list[float]
    item_token: int | None


@dataclass
class RecommendOutput(ModelOutput):
    """
    Ranked items.

    Args:
        item_tokens (`torch.LongTensor` of shape `(batch_size, top_k)`):
            Distinct items, best first. The pad token fills up where fewer than `top_k` items were allowed.
        scores (`torch.FloatTensor` of shape `(batch_size, top_k)`): Log-probabilities; `-inf` at the filling.
        paths (`list[list[BeamPath]]`, *optional*): Per user the beams of the items in `item_tokens`, best first.
        pruned (`list[list[BeamPath]]`, *optional*): Per user the best continuations at each step that were not kept.
    """

    item_tokens: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None
    paths: list[list[BeamPath]] | None = None
    pruned: list[list[BeamPath]] | None = None


@dataclass
class Beams:
    """Result of `beam_search`: `(batch_size, num_beams)` leaves and scores, the tokens and scores on the way there."""

    leaves: torch.LongTensor  # (B, W), -1 where a beam is dead
    scores: torch.FloatTensor  # (B, W), -inf where a beam is dead
    tokens: torch.LongTensor  # (B, W, num_decoding_steps)
    step_scores: torch.FloatTensor  # (B, W, num_decoding_steps), cumulative
    pruned: list[tuple[torch.LongTensor, torch.FloatTensor]]  # per step: tokens and scores (B, P, step + 1)


class RecommendMixin:
    """
    `recommend()` for models that generate semantic IDs token by token. Same ranked items as `generate()`, computed
    with one encoder pass and one set of cross-attention keys and values per user instead of one per beam.
    """

    @torch.no_grad()
    def recommend(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        top_k: int = 10,
        num_beams: int = 50,
        latent_aggregation: str = "max",
        exclude_items: torch.LongTensor | None = None,
        return_paths: bool = False,
    ) -> RecommendOutput:
        """
        The `top_k` best items for each history.

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
            exclude_items (`torch.LongTensor` of shape `(batch_size, num_excluded)`, *optional*):
                Item tokens that must not be recommended; pad tokens are skipped.
            return_paths (`bool`, defaults to `False`): Also return the beams behind each item.

        Returns:
            [`RecommendOutput`]

        Raises:
            ValueError: If an argument is out of range.

        Source: Hou et al. 2026, section 4.2 (https://huggingface.co/papers/2605.06331); the search is ours.
        """
        config = self.config
        if not 1 <= top_k <= config.num_items:
            raise ValueError(f"`top_k` must lie in [1, {config.num_items}] (the catalog's size), got {top_k}.")
        if num_beams < 1:
            raise ValueError(f"`num_beams` must be at least 1, got {num_beams}.")
        if latent_aggregation not in ("max", "sum"):
            raise ValueError(f"`latent_aggregation` must be 'max' or 'sum', got {latent_aggregation!r}.")
        was_training = self.training
        self.eval()
        try:
            history = self.encode_history(input_ids, attention_mask)
            allowed = None if exclude_items is None else self._allowed_items(exclude_items)
            output = self._search(history, allowed, top_k, num_beams, latent_aggregation, return_paths)
        finally:
            self.train(was_training)
        return output

    def _allowed_items(self, exclude_items: torch.LongTensor) -> torch.BoolTensor:
        config = self.config
        item = exclude_items - config.first_item_token
        is_special = (exclude_items >= 0) & (exclude_items < config.first_latent_token)
        if not bool(((item >= 0) & (item < config.num_items) | is_special).all()):
            raise ValueError("`exclude_items` must hold item tokens, padded with the pad token.")
        spare = torch.where(item >= 0, item, config.num_items)  # special tokens fall into an extra column
        mask = torch.ones(len(item), config.num_items + 1, dtype=torch.bool, device=item.device)
        return mask.scatter(1, spare, False)[:, :-1]

    def _search(self, history, allowed, top_k, num_beams, latent_aggregation, return_paths) -> RecommendOutput:
        """Search, then search again with twice the beams for the users whose lists are still short."""
        config, catalog = self.config, self.catalog
        batch_size, device = len(history.last_hidden_state), history.last_hidden_state.device
        wanted = torch.full((batch_size,), top_k, device=device)
        if allowed is not None:
            wanted = torch.minimum(wanted, allowed.sum(1))
        tokens = torch.full((batch_size, top_k), config.pad_token_id, device=device)
        scores = torch.full((batch_size, top_k), -float("inf"), device=device)
        paths, pruned = [None] * batch_size, [None] * batch_size
        users = torch.arange(batch_size, device=device)
        num_beams = min(num_beams, config.num_paths)
        while len(users):
            part = HistoryOutput(history.last_hidden_state[users], history.attention_mask[users])
            beams = beam_search(
                self,
                part,
                num_beams=num_beams,
                allowed_items=None if allowed is None else allowed[users],
                num_pruned=num_beams if return_paths else 0,
            )
            items, best = rank_items(catalog, beams, top_k=top_k, latent_aggregation=latent_aggregation)
            is_done = (best > -float("inf")).sum(1) >= wanted[users]
            if num_beams >= config.num_paths:
                is_done = torch.ones_like(is_done)
            done = users[is_done]
            tokens[done] = torch.where(items >= 0, items + config.first_item_token, config.pad_token_id)[is_done]
            scores[done] = best[is_done]
            if return_paths:
                for row in is_done.nonzero()[:, 0].tolist():
                    user = int(users[row])
                    paths[user], pruned[user] = describe_paths(config, catalog, beams, row, tokens[user])
            users, num_beams = users[~is_done], min(2 * num_beams, config.num_paths)
        return RecommendOutput(
            item_tokens=tokens,
            scores=scores,
            paths=paths if return_paths else None,
            pruned=pruned if return_paths else None,
        )


def token_range(config, step: int) -> tuple[int, int, int]:
    """
    What may be written at a decoding step.

    Args:
        config: The model's config.
        step (`int`): Number of the step, from 0.

    Returns:
        `tuple[int, int, int]`: first token, number of tokens, and depth in the trie before the step (-1 for a latent).
    """
    if config.num_latent_tokens and step == 0:
        return config.first_latent_token, config.num_latent_tokens, -1
    depth = step - (1 if config.num_latent_tokens else 0)
    return config.first_code_token + depth * config.codebook_size, config.codebook_size, depth


def _gather_beams(values: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """`values` (B, W, ...) of the parent (B, W') of each new beam."""
    index = parents.view(*parents.shape, *[1] * (values.ndim - 2)).expand(*parents.shape, *values.shape[2:])
    return values.gather(1, index)


def beam_search(
    model,
    history: HistoryOutput,
    *,
    num_beams: int,
    allowed_items: torch.BoolTensor | None = None,
    num_pruned: int = 0,
) -> Beams:
    """
    Beam search over the trie; the first step runs with one beam per user, keys and values of the history are shared.

    Args:
        model: A model with `config`, `catalog` and `decode_step`.
        history ([`HistoryOutput`]): Encoded histories.
        num_beams (`int`): Beams kept per user and step.
        allowed_items (`torch.BoolTensor` of shape `(batch_size, num_items)`, *optional*): Items that may be reached.
        num_pruned (`int`, defaults to 0): How many of the best discarded continuations to remember per step.

    Returns:
        [`Beams`]
    """
    config, catalog = model.config, model.catalog
    batch_size, device = len(history.last_hidden_state), history.last_hidden_state.device
    allowed_nodes = None if allowed_items is None else catalog.allowed_nodes(allowed_items)
    scores = torch.zeros(batch_size, 1, device=device)
    nodes = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
    tokens = torch.full((batch_size, 1, 1), config.decoder_start_token_id, device=device)
    step_scores = scores.new_zeros(batch_size, 1, 0)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    pruned = []
    for step in range(config.num_decoding_steps):
        logits = model.decode_step(tokens[..., -1], history, cache)
        start, width, depth = token_range(config, step)
        mask = None if depth < 0 else catalog.child_mask(depth, nodes)
        candidates = scores.unsqueeze(-1) + _log_probs(config, logits, start, width, mask)
        if mask is not None:
            if allowed_nodes is not None:
                _close_prefixes(mask, catalog, depth, nodes, allowed_nodes[depth + 1])
            candidates = candidates.masked_fill(~mask, -float("inf"))
        num_candidates = candidates.shape[1] * width
        kept = min(num_beams, num_candidates)
        top_scores, top = candidates.flatten(1).topk(min(kept + num_pruned, num_candidates))
        parents, choices = top // width, top % width
        new_tokens = torch.cat([_gather_beams(tokens, parents), (start + choices).unsqueeze(-1)], dim=-1)
        new_scores = torch.cat([_gather_beams(step_scores, parents), top_scores.unsqueeze(-1)], dim=-1)
        pruned.append((new_tokens[:, kept:, 1:], new_scores[:, kept:]))
        scores, tokens, step_scores = top_scores[:, :kept], new_tokens[:, :kept], new_scores[:, :kept]
        parents, choices = parents[:, :kept], choices[:, :kept]
        if depth < 0:
            nodes = nodes.expand(-1, kept)
        else:
            nodes = catalog.child(depth, _gather_beams(nodes, parents), choices)
            nodes = nodes.masked_fill(scores == -float("inf"), -1)
        if step + 1 < config.num_decoding_steps:
            num_parents = candidates.shape[1]
            rows = parents + num_parents * torch.arange(batch_size, device=device).unsqueeze(-1)
            cache.self_attention_cache.reorder_cache(rows.flatten())
    return Beams(leaves=nodes, scores=scores, tokens=tokens[..., 1:], step_scores=step_scores, pruned=pruned)


def _log_probs(config, logits: torch.Tensor, start: int, width: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Log-probabilities of the tokens of a step; those of illegal ones mean nothing."""
    block = logits[..., start : start + width]
    if config.normalization == "vocabulary":
        return block - logits.logsumexp(-1, keepdim=True)
    return (block if mask is None else block.masked_fill(~mask, -float("inf"))).log_softmax(-1)


def _close_prefixes(mask, catalog: Catalog, depth: int, nodes, allowed_nodes) -> None:
    """Clear, in place, the codes whose subtree holds no allowed item."""
    user, beam, code = mask.nonzero(as_tuple=True)
    child = catalog.child(depth, nodes[user, beam], code)
    mask[user, beam, code] = allowed_nodes[user, child]


def rank_items(
    catalog: Catalog, beams: Beams, *, top_k: int, latent_aggregation: str
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    Beams to distinct items.

    Args:
        catalog ([`Catalog`]): The trie that `beams` refer to.
        beams ([`Beams`]): Paths, several of which may end at the same item.
        top_k (`int`): Length of the lists.
        latent_aggregation (`str`): `"max"` or `"sum"` over the paths of an item.

    Returns:
        `tuple[torch.LongTensor, torch.FloatTensor]`: item indices and scores, both `(batch_size, top_k)`, best first;
        -1 and `-inf` where the beams hold fewer items.
    """
    order = beams.leaves.argsort(dim=1, stable=True)
    leaves, scores = beams.leaves.gather(1, order), beams.scores.gather(1, order).float()
    group = torch.nn.functional.pad((leaves[:, 1:] != leaves[:, :-1]).long().cumsum(1), (1, 0))
    best = torch.full_like(scores, -float("inf")).scatter_reduce(1, group, scores, "amax")
    if latent_aggregation == "sum":
        excess = (scores - best.gather(1, group)).nan_to_num(nan=-float("inf"), neginf=-float("inf"))
        best = best + torch.zeros_like(scores).scatter_add(1, group, excess.exp()).clamp_min(1).log()
    group_leaf = torch.full_like(leaves, -1).scatter(1, group, leaves)
    best, top = best.topk(min(top_k, best.shape[1]))
    leaf = group_leaf.gather(1, top)
    items = torch.where((leaf >= 0) & (best > -float("inf")), catalog.items_in_order[leaf.clamp_min(0)], -1)
    missing = (0, top_k - best.shape[1])
    return (
        torch.nn.functional.pad(items, missing, value=-1),
        torch.nn.functional.pad(best.masked_fill(items < 0, -float("inf")), missing, value=-float("inf")),
    )


def describe_paths(
    config, catalog: Catalog, beams: Beams, row: int, item_tokens: torch.LongTensor
) -> tuple[list[BeamPath], list[BeamPath]]:
    """
    The beams of one user in words.

    Args:
        config: The model's config.
        catalog ([`Catalog`]): The trie that `beams` refer to.
        beams ([`Beams`]): Result of a search with `num_pruned > 0`.
        row (`int`): The user's row in `beams`.
        item_tokens (`torch.LongTensor` of shape `(top_k,)`): The user's recommended items.

    Returns:
        `tuple[list[BeamPath], list[BeamPath]]`: the paths that end at these items, and the pruned continuations.
    """
    leaves = beams.leaves[row].tolist()
    ends = [int(catalog.items_in_order[leaf]) + config.first_item_token if leaf >= 0 else None for leaf in leaves]
    wanted = set(item_tokens.tolist())
    paths = [
        _path(config, tokens, scores, end)
        for tokens, scores, end in zip(beams.tokens[row].tolist(), beams.step_scores[row].tolist(), ends, strict=True)
        if end in wanted
    ]
    pruned = [
        _path(config, tokens, scores, None)
        for step_tokens, step_scores in beams.pruned
        for tokens, scores in zip(step_tokens[row].tolist(), step_scores[row].tolist(), strict=True)
        if scores[-1] > -float("inf")
    ]
    return paths, pruned


def _path(config, tokens: list[int], scores: list[float], item_token: int | None) -> BeamPath:
    latent = None
    if config.num_latent_tokens:
        latent, tokens = tokens[0] - config.first_latent_token, tokens[1:]
    codes = [token - config.first_code_token - level * config.codebook_size for level, token in enumerate(tokens)]
    return BeamPath(latent=latent, codes=codes, scores=scores, item_token=item_token)


__all__ = [
    "BeamPath",
    "Beams",
    "HistoryOutput",
    "RecommendMixin",
    "RecommendOutput",
    "beam_search",
    "describe_paths",
    "rank_items",
    "token_range",
]
