"""
From histories to ranked items: the one `recommend()` of all architectures.

What all share stands here: options, rules, chunks under the memory budget, prior corrections, diverse lists and the
output. A model that mixes in `RecommendMixin` supplies `_rank_batch`, which ranks the items for some users, and
`_ranking_bytes`, what that takes. Scores are log-probabilities. Items with equal scores stand in ascending order,
those that share a semantic ID by popularity where the model knows it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from transformers.utils import ModelOutput

from .genrec_folder import write_manifest
from .genrec_lists import (
    LiveItemsMixin,
    allowed_items,
    check_prior,
    check_rule,
    check_scores,
    diversify,
    first_of_the_best,
    gumbel_noise,
    rule_rows,
    user_keys,
    with_new_items,
)
from .genrec_recommend_config import BeamPath, RecommendConfig, RecommendOutput, check_names


RULE_BYTES = 8  # per item and user: the mask, its order, the counts and the tables that close prefixes
SAMPLING_BYTES = 32  # per candidate of a beam: the noise and what is computed from it
SCORE_BYTES = 24  # per item and user: logit, log-probability, what is ranked, and its place while the best are found
NOISE_BYTES = 44  # and for a sample: hashes, uniform numbers and the noise
SIMILARITY_BYTES = 12  # per pair of items of the pool that a diverse list is picked from


@dataclass
class Ranking:
    """What `_rank_batch` returns; the other fields are those of [`RecommendOutput`], where the model has them."""

    items: torch.LongTensor  # (B, top_k), indices; -1 where there are fewer
    scores: torch.FloatTensor  # (B, top_k); -inf there
    paths: list[list[BeamPath]] | None = None
    pruned: list[list[BeamPath]] | None = None
    num_distinct: torch.LongTensor | None = None
    num_visited: torch.LongTensor | None = None


@dataclass
class UserBatch:
    """Some users of a call: their histories, the items allowed to each (or one row for all) and their first number."""

    input_ids: torch.LongTensor
    attention_mask: torch.Tensor | None
    allowed: torch.BoolTensor | None
    first_user: int
    rules: torch.BoolTensor | None = None  # `allowed` before new items are set apart
    logits: torch.FloatTensor | None = None  # scores of all items, where a model has them already

    def num_wanted(self, top_k: int) -> torch.LongTensor:
        """How long the list of each user should be, `(batch_size,)`: `top_k`, or as many items as are allowed."""
        wanted = torch.full((len(self.input_ids),), top_k, device=self.input_ids.device)
        return wanted if self.allowed is None else wanted.minimum(self.allowed.sum(1))

    def keys(self, seed: int) -> torch.LongTensor:
        """What the random numbers of a sample are made from, see `user_keys`: the seed and each user's number."""
        last = self.first_user + len(self.input_ids)
        return user_keys(seed, torch.arange(self.first_user, last, device=self.input_ids.device))


@dataclass
class RankRequest:
    """What holds for all users of a call."""

    options: RecommendConfig
    config: Any
    item_prior: torch.Tensor | None
    item_embeddings: torch.Tensor | None
    return_paths: bool
    penalty: Any = None  # what `_penalties` made of the prior
    generator: torch.Generator | None = None  # of a sample of beams
    bytes_per_user: int = 0
    bytes_per_beam: int = 0

    def take(self, device: torch.device, *, per_user: int, per_beam: int) -> None:
        """Note the estimates, and add what a sample and a diverse list take; the sample gets its source of noise."""
        options, config = self.options, self.config
        self.bytes_per_user, self.bytes_per_beam = per_user, per_beam
        if options.sample_seed is not None:
            self.generator = torch.Generator(device).manual_seed(options.sample_seed)
            self.bytes_per_beam += SAMPLING_BYTES * max(config.codebook_size, config.num_latent_tokens)
        if options.diversity:
            num_pooled = self.num_pooled()
            self.bytes_per_user += SIMILARITY_BYTES * num_pooled**2
            if self.item_embeddings is not None:
                self.item_embeddings = self.item_embeddings.to(device)
                self.bytes_per_user += 3 * 4 * num_pooled * self.item_embeddings.shape[1]

    @property
    def most_beams(self) -> int:
        """`int`: beams that hold every path, whatever the scores; each group must have so many."""
        return self.options.num_groups * self.config.num_paths

    @property
    def num_beams(self) -> int:
        """
        `int`: beams to begin with. For a sample at least as many as always hold `top_k` items, since a search that is
        repeated where the list is short would favour samples of which few paths share their item.
        """
        wanted = self.options.num_beams
        if self.options.sample_seed is not None:
            wanted = max(wanted, self.options.top_k * max(1, self.config.num_latent_tokens))
        return min(wanted, self.most_beams)

    def num_pooled(self, num_beams: int | None = None) -> int:
        """`int`: items that a search of so many beams hands on, to be re-scored or picked from for a diverse list."""
        pool = 0
        if self.options.num_rescored and self.config.num_latent_tokens:
            pool = min(self.options.num_rescored, self.num_beams if num_beams is None else num_beams)
        elif self.options.diversity:
            pool = self.num_beams
        return max(self.options.top_k, min(pool, self.config.num_items))  # beams hold no more items

    def paths_at_a_time(self, num_users: int) -> int:
        """`int`: paths of each user to score together under the memory budget, at least one."""
        path_bytes = self.config.num_decoding_steps * self.bytes_per_beam
        return max(1, self.options.memory_budget // (path_bytes * max(1, num_users)))

    def chunks(self, num_users: int, num_beams: int | None = None) -> list[slice]:
        """`list[slice]`: users to compute together under the memory budget, at least one."""
        per_user = self.bytes_per_user + (self.num_beams if num_beams is None else num_beams) * self.bytes_per_beam
        size = max(1, self.options.memory_budget // max(1, per_user))
        return [slice(start, start + size) for start in range(0, num_users, size)]

    def best_of_all(
        self,
        scores: torch.FloatTensor,
        *,
        allowed: torch.BoolTensor | None = None,
        penalty: torch.Tensor | None = None,
        noise: torch.FloatTensor | None = None,
        top_k: int | None = None,
    ) -> tuple[torch.LongTensor, torch.FloatTensor, torch.FloatTensor]:
        """
        The best by scores of all items `(B, N)`, of equal ones the lower index first: items, their scores and what
        they were ranked by, `(B, top_k)`, -1 and `-inf` where there are fewer.

        `allowed` `(B or 1, N)`, `penalty` `(N,)` and `noise` `(B, N)` are as in `best_items`; `top_k` is `None` for
        `num_pooled`.
        """
        ranked = scores if penalty is None else scores - penalty
        ranked = ranked if noise is None else ranked + noise
        ranked = ranked if allowed is None else ranked.masked_fill(~allowed, -float("inf"))
        items = first_of_the_best(ranked, self.num_pooled() if top_k is None else top_k)
        scores, ranked = scores.gather(1, items), ranked.gather(1, items)
        is_none = ranked == -float("inf")
        return items.masked_fill(is_none, -1), scores.masked_fill(is_none, -float("inf")), ranked

    def picked(
        self,
        items: torch.LongTensor,
        scores: torch.FloatTensor,
        ranked: torch.FloatTensor,
        *,
        item_codes: torch.Tensor | None,
        has_prefixes: bool = True,
    ) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """The first `top_k` of a pool `(B, n)` in the order of `ranked`; or a diverse list, where one is asked for."""
        if not self.options.diversity:
            return items, scores
        return diversify(
            items,
            scores,
            top_k=self.options.top_k,
            diversity=self.options.diversity,
            item_codes=item_codes,
            item_embeddings=self.item_embeddings,
            ranked=ranked,
            has_prefixes=has_prefixes,
        )


@dataclass
class PredictionOutput(ModelOutput):
    """What a forward pass returns: the loss with labels, else the logits; the loss never holds all of these."""

    loss: torch.FloatTensor | None = None
    # log-probabilities of what follows each history: of codes (B, num_levels, codebook_size), or of items (B, N)
    logits: torch.FloatTensor | None = None


class NoGenerationMixin:
    """For models that rank and write no tokens; `_predicts` is what such a model says of itself."""

    _predicts = "a score for each item"

    @classmethod
    def can_generate(cls) -> bool:
        """`False`: a model that ranks writes no tokens one by one."""
        # Stated outright: the Auto classes mix `GenerationMixin` into remote code that has a `generate`, and fields of
        # the config that are called like options of `generate()` (`temperature`) would then be saved as such.
        return False

    def generate(self, *args, **kwargs):
        """Not for these models. Raises `NotImplementedError` always; use `recommend`."""
        raise NotImplementedError(
            f"{type(self).__name__} predicts {self._predicts} and writes no tokens one by one: call `recommend()` "
            "instead of `generate()`."
        )


class RecommendMixin(LiveItemsMixin):
    """
    `recommend()`, and the [`RecommendConfig`] that stands beside the weights. Comes before `PreTrainedModel` in the
    list of parents.

    A model says in `decodings` how it can find items, its default first, and in `search_options` which options it has
    beside those of all models. Its hooks:

    * `_rank_batch(users, request)`: the [`Ranking`] for a [`UserBatch`]; must work for no users too.
    * `_ranking_bytes(request, history_length)`: bytes that this takes per user and per beam.
    * `_penalties(request)`: what ranking subtracts where there is a prior; of each item unless overridden.
    """

    decodings: ClassVar[tuple[str, ...]] = ("exact",)
    search_options: ClassVar[tuple[str, ...]] = ()
    has_paths: ClassVar[bool] = False
    compiled_parts: ClassVar[tuple[str, ...]] = ()  # attributes, modules or functions, that gain from `torch.compile`
    _recommend_config: RecommendConfig | None = None

    @property
    def default_decoding(self) -> str:
        """`str`: how items are found unless an option says otherwise: `"exact"`, `"graph"` or `"beam"`."""
        return self.decodings[0]

    @property
    def recommend_config(self) -> RecommendConfig:
        """[`RecommendConfig`]: the options of a call without keywords; set another one or change its fields."""
        if self._recommend_config is None:
            self._recommend_config = RecommendConfig()
        return self._recommend_config

    @recommend_config.setter
    def recommend_config(self, config: RecommendConfig) -> None:
        self._recommend_config = config

    @property
    def recommend_options(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: fields of [`RecommendConfig`] that this model knows, the keywords of `recommend()`."""
        shared = ("top_k", "num_beams", "latent_aggregation", "decoding", "prior_correction", "diversity")
        return (*shared, "num_new_items", "new_item_margin", "sample_seed", "memory_budget", *self.search_options)

    def _finish_loading(self, source, where: dict[str, Any]) -> None:
        """The options stand in `recommend_config.json`, where there is one."""
        super()._finish_loading(source, where)
        self.recommend_config = RecommendConfig.from_pretrained(source, **where)
        self.read_removals(source, where)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; also writes `recommend_config.json` and `manifest.json`."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            self.recommend_config.save(save_directory, known=self.recommend_options)
            write_manifest(save_directory)

    @torch.no_grad()
    def recommend(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        exclude_items: torch.Tensor | None = None,
        allow_items: torch.Tensor | None = None,
        item_prior: torch.Tensor | None = None,
        item_embeddings: torch.Tensor | None = None,
        return_paths: bool = False,
        config: RecommendConfig | None = None,
        **options: Any,
    ) -> RecommendOutput:
        """
        The `top_k` best items for each history. Scores are log-probabilities of the model whatever ranks the list.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`):
                Item tokens, oldest first, padded on either side. Special and unknown tokens are ignored; a row
                without items is an empty history, which is answered too.
            attention_mask (`torch.Tensor`, same shape, *optional*): 1 at items that count; `None` for all.
            exclude_items (`torch.Tensor`, *optional*):
                Items that must not be recommended: item tokens `(n,)` for all users or `(batch_size, n)` padded with
                the pad token, or a boolean mask over items, `(num_items,)` or `(batch_size, num_items)`.
            allow_items (`torch.Tensor`, *optional*):
                The only items that may be recommended, in the same forms, less those excluded; `None` for all. Where
                fewer than `top_k` are left the list is filled up with padding, to the last place if none is.
            item_prior (`torch.Tensor` of shape `(num_items,)`, *optional*):
                Probability of each item whoever the user is, above zero, for `prior_correction`; normalised to a sum
                of 1. For example the number of its interactions plus one.
            item_embeddings (`torch.Tensor` of shape `(num_items, dimension)`, *optional*):
                What `diversity` compares items by, with the cosine; `None` for the codes that they have in common.
            return_paths (`bool`, defaults to `False`): Also return the paths behind each item, for models with codes.
            config ([`RecommendConfig`], *optional*): Options of this call; `None` for `self.recommend_config`.
            **options: Fields of [`RecommendConfig`] for this call, such as `top_k=20`; they override the config.

        Returns:
            [`RecommendOutput`]

        Raises:
            TypeError: If there is no such option.
            ValueError: If an option is out of range or two do not go together.
        """
        check_names(options, known=self.recommend_options, owner=type(self).__name__)
        is_tokens = isinstance(input_ids, torch.Tensor) and input_ids.ndim == 2
        if not is_tokens or input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            found = f"a {type(input_ids).__name__}"
            if isinstance(input_ids, torch.Tensor):
                found = f"{input_ids.dtype} of shape {tuple(input_ids.shape)}"
            raise TypeError(
                "`input_ids` must be a tensor of item tokens (integers) of shape (batch_size, history_length), got "
                f"{found}. For lists of item ids see `hf_genrec.Recommender`."
            )
        asked = (config or self.recommend_config).updated(**options)
        request = RankRequest(asked, self.config, item_prior, item_embeddings, return_paths)
        self._check_request(request)
        rules = {"exclude_items": exclude_items, "allow_items": allow_items}
        for name, rule in rules.items():
            check_rule(name, rule, config=self.config, batch_size=len(input_ids))
        device = input_ids.device
        if item_prior is not None:
            request.item_prior = item_prior.to(device).double()
            request.penalty = self._penalties(request)
        per_user, per_beam = self._ranking_bytes(request, input_ids.shape[1])
        if any(rule is not None for rule in rules.values()):
            per_user += RULE_BYTES * self.config.num_items
        request.take(device, per_user=per_user, per_beam=per_beam)
        parts = []
        with evaluation_mode(self):
            for rows in request.chunks(len(input_ids)) or [slice(0, 0)]:
                mask = None if attention_mask is None else attention_mask[rows]
                some_rules = {name: rule_rows(rule, rows) for name, rule in rules.items()}
                allowed = self.allowed_and_open(allowed_items(self.config, **some_rules, device=device))
                users = UserBatch(input_ids[rows], mask, allowed, first_user=rows.start, rules=allowed)
                parts.append(self._rank_with_new(users, request))
                check_scores(parts[-1].scores, type(self).__name__)
        return _output(parts, self.config)

    def _rank_with_new(self, users: UserBatch, request: RankRequest) -> Ranking:
        """
        Items that came after training stand behind others but for a margin: of them only texts are known, and ranked
        with all others they would push these off the lists.
        """
        options, is_new = request.options, self.new_items
        if is_new is None or not is_new.any() or options.sample_seed is not None or options.num_groups > 1:
            return self._rank_batch(users, request)
        rules = torch.ones_like(is_new).unsqueeze(0) if users.rules is None else users.rules
        if isinstance(self, ItemScoresMixin):  # once for both lists
            users.logits = self._users_logits(users)
        old, new = (self._rank_batch(replace(users, allowed=rules & mask), request) for mask in (~is_new, is_new))
        margin = options.new_item_margin * (1.0 if options.decoding == "dense" else 1 + options.dense_weight)
        lists = (old.items, old.scores), (new.items, new.scores)
        items, scores = with_new_items(*lists, places=options.new_places, margin=margin)
        both = replace(old, items=items, scores=scores)
        for name in ("num_distinct", "num_visited"):
            if getattr(old, name) is not None:
                setattr(both, name, getattr(old, name) + getattr(new, name))
        if old.paths is not None:
            listed = map(set, (items + self.config.first_item_token).tolist())
            pairs = zip(old.paths, new.paths, listed, strict=True)
            both.paths = [[path for path in (*a, *b) if path.item_token in kept] for a, b, kept in pairs]
            both.pruned = [[*a, *b] for a, b in zip(old.pruned, new.pruned, strict=True)]
        return both

    def _check_request(self, request: RankRequest) -> None:
        options, num_items, embeddings = request.options, self.config.num_items, request.item_embeddings
        options.check(
            num_items=num_items, known=self.recommend_options, decodings=self.decodings, owner=type(self).__name__
        )
        if request.return_paths and not self.has_paths:
            raise ValueError(f"`return_paths` is for models with codes, which a {type(self).__name__} does not have.")
        if bool(options.prior_correction) != (request.item_prior is not None):
            raise ValueError(
                "`prior_correction` and `item_prior` go together: give both or neither, got "
                f"{options.prior_correction} and {'none' if request.item_prior is None else 'a prior'}."
            )
        if request.item_prior is not None:
            check_prior(request.item_prior, num_items=num_items)
        if embeddings is not None and not options.diversity:
            raise ValueError("`item_embeddings` is what `diversity` compares items by: give `diversity` above 0.")
        if embeddings is not None and (embeddings.ndim != 2 or len(embeddings) != num_items):
            raise ValueError(
                f"`item_embeddings` must have shape (num_items, dimension) = ({num_items}, dimension), got "
                f"{tuple(embeddings.shape)}."
            )

    def _penalties(self, request: RankRequest) -> Any:
        prior = request.item_prior
        return (request.options.prior_correction * (prior.log() - prior.sum().log())).float()


class ItemScoresMixin(RecommendMixin):
    """
    `recommend()` and `score_items()` of models that score every item, so that nothing is searched for.

    A model supplies `item_logits`, `history_bytes` and, for diverse lists, `item_embeddings`.
    """

    def item_logits(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Scores of all items `(batch_size, num_items)`, float32, whose softmax are the probabilities; with gradients
        and, in training mode, dropout.

        Args: see [`ItemTokensMixin.is_item`].
        """
        raise NotImplementedError

    def item_embeddings(self) -> torch.Tensor | None:
        """What `diversity` compares items by, `(num_items, dimension)`, unless a call gives vectors; or `None`."""
        return None

    @torch.no_grad()
    def score_items(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Log-probability of every item to follow each history, `(batch_size, num_items)`; no gradients, no dropout.

        Args: see [`ItemScoresMixin.item_logits`].
        """
        with evaluation_mode(self):
            return self._log_probs(input_ids, attention_mask)

    def _log_probs(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.FloatTensor:
        return self.only_open(self.item_logits(input_ids, attention_mask)).log_softmax(-1)

    def _ranking_bytes(self, request: RankRequest, history_length: int) -> tuple[int, int]:
        if request.options.diversity and request.item_embeddings is None:
            request.item_embeddings = self.item_embeddings()  # there are no codes to compare items by
            if request.item_embeddings is None:
                raise ValueError(
                    f"`diversity` compares items by vectors, which {type(self).__name__} does not have: give "
                    "`item_embeddings`."
                )
        per_item = SCORE_BYTES + (NOISE_BYTES if request.options.sample_seed is not None else 0)
        return self.history_bytes(history_length) + per_item * self.config.num_items, 0

    def _users_logits(self, users: UserBatch) -> torch.FloatTensor:
        """What ranks the lists of some users; of a model whose scores depend on the rules, more than `item_logits`."""
        return self.item_logits(users.input_ids, users.attention_mask)

    def _rank_batch(self, users: UserBatch, request: RankRequest) -> Ranking:
        """Items of equal logits stand in ascending order."""
        logits, noise = self.only_open(self._users_logits(users) if users.logits is None else users.logits), None
        if request.options.sample_seed is not None:
            catalog = torch.arange(self.config.num_items, device=logits.device)
            noise = gumbel_noise(users.keys(request.options.sample_seed), catalog)
        items, _, ranked = request.best_of_all(logits, allowed=users.allowed, penalty=request.penalty, noise=noise)
        scores = logits.log_softmax(1).gather(1, items.clamp_min(0)).masked_fill(items < 0, -float("inf"))
        return Ranking(*request.picked(items, scores, ranked, item_codes=None))


def _output(parts: list[Ranking], config) -> RecommendOutput:
    """The lists of all users, chunk after chunk, as item tokens."""
    joined: dict[str, Any] = {}
    for field in fields(Ranking):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], list):
            joined[field.name] = [row for value in values for row in value]
        elif values[0] is not None:
            joined[field.name] = values[0] if len(values) == 1 else torch.cat(values)
    items = joined.pop("items")
    tokens = torch.where(items >= 0, items + config.first_item_token, config.pad_token_id)
    return RecommendOutput(item_tokens=tokens, **joined)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout for a while; then a model is in the mode that it was in before."""
    was_training = model.training
    if was_training:  # walking through the modules costs time, so only where it changes something
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
