"""
What a call of `recommend()` asks for: checks of its arguments, the width of the search, the selection and the memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .genrec_beam_search import Selection, best_candidates
from .genrec_diversity import DiverseGroups, GumbelTopK
from .genrec_scoring import check_latent_aggregation, check_level_temperature
from .genrec_selection import BestLatentsPerPrefix, QuotaPerLatent


SAMPLING_BYTES = 32  # per candidate of a beam: the noise and what is computed from it
SIMILARITY_BYTES = 12  # per pair of items of the pool that a diverse list is picked from

NEUTRAL = {"num_groups": 1, "diversity": 0, "prior_correction": 0, "num_rescored": 0}  # others are off by `None`
EXCLUSIVE = {
    "sample_seed": (
        ("num_groups", "diversity", "prior_correction", "num_rescored", "beams_per_latent", "latents_per_prefix"),
        "a sample comes in the order drawn, from the model as it is",
    ),
    "num_groups": (
        ("prior_correction", "num_rescored", "beams_per_latent", "latents_per_prefix"),
        "groups divide the beams among themselves and take turns in the list",
    ),
}


@dataclass
class SearchOptions:
    """What `recommend` was asked for, beside the histories and the rules, and what the answers cost."""

    top_k: int
    num_beams: int
    latent_aggregation: str
    beams_per_latent: int | None
    latents_per_prefix: int | None
    num_rescored: int
    level_temperature: Sequence[float] | None
    prior_correction: float
    num_groups: int
    group_penalty: float
    diversity: float
    item_embeddings: torch.Tensor | None
    sample_seed: int | None
    memory_budget: int
    return_paths: bool
    bytes_per_user: int = 0
    bytes_per_beam: int = 0
    generator: torch.Generator | None = None

    def check(self, config, item_prior: torch.Tensor | None) -> None:
        """
        Args:
            config: The model's config.
            item_prior (`torch.Tensor`, *optional*): As in `recommend`.

        Raises:
            ValueError: If an option is out of range or two do not go together.
        """
        if not 1 <= self.top_k <= config.num_items:
            raise ValueError(f"`top_k` must lie in [1, {config.num_items}] (the catalog's size), got {self.top_k}.")
        for name in ("num_beams", "beams_per_latent", "latents_per_prefix", "num_groups", "memory_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
            if (
                value is not None
                and name in ("beams_per_latent", "latents_per_prefix")
                and not config.num_latent_tokens
            ):
                raise ValueError(f"`{name}` is for models with latents; this one has `num_latent_tokens=0`.")
        check_latent_aggregation(self.latent_aggregation)
        if self.beams_per_latent is not None and self.latents_per_prefix is not None:
            raise ValueError(
                "`beams_per_latent` and `latents_per_prefix` cannot be combined: the one keeps all latents, the "
                "other the best ones."
            )
        if self.num_rescored and self.num_rescored < self.top_k:
            raise ValueError(
                f"`num_rescored` must be 0 or at least `top_k`, got {self.num_rescored} and {self.top_k}: scores of "
                "items that were re-scored and of others cannot be ranked together."
            )
        check_level_temperature(self.level_temperature, num_levels=config.num_levels)
        if not math.isfinite(self.prior_correction):
            raise ValueError(f"`prior_correction` must be a finite number, got {self.prior_correction}.")
        if bool(self.prior_correction) != (item_prior is not None):
            raise ValueError(
                "`prior_correction` and `item_prior` go together: give both or neither, got "
                f"{self.prior_correction} and {'none' if item_prior is None else 'a prior'}."
            )
        self._check_diverse(config)

    def _check_diverse(self, config) -> None:
        """The part of `check` about groups, samples and re-ranking."""

        def is_set(name: str) -> bool:
            value = getattr(self, name)
            return value is not None and value != NEUTRAL.get(name)

        for name, (others, reason) in EXCLUSIVE.items():
            for other in others:
                if is_set(name) and is_set(other):
                    raise ValueError(f"`{name}` and `{other}` cannot be combined: {reason}.")
        if self.num_groups > self.num_beams:
            raise ValueError(f"`num_groups` must be at most `num_beams`, got {self.num_groups} and {self.num_beams}.")
        if not 0 <= self.group_penalty < float("inf"):
            raise ValueError(f"`group_penalty` must be a finite number of at least 0, got {self.group_penalty}.")
        if self.group_penalty and self.num_groups == 1:
            raise ValueError("`group_penalty` is between groups: give `num_groups` of at least 2 with it.")
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"`diversity` must lie in [0, 1], got {self.diversity}.")
        embeddings, seed = self.item_embeddings, self.sample_seed
        if embeddings is not None and not self.diversity:
            raise ValueError("`item_embeddings` is what `diversity` compares items by: give `diversity` above 0.")
        if embeddings is not None and (embeddings.ndim != 2 or len(embeddings) != config.num_items):
            raise ValueError(
                f"`item_embeddings` must have shape (num_items, dimension) = ({config.num_items}, dimension), got "
                f"{tuple(embeddings.shape)}."
            )
        if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 1 << 63):
            raise ValueError(f"`sample_seed` must be an integer in [0, 2**63), got {seed!r}.")

    def prepare(self, config, *, bytes_per_user: int, bytes_per_beam: int, device: torch.device) -> None:
        """
        What holds for all users of a call: what they take and, of a sample, the source of its noise.

        Args:
            config: The model's config.
            bytes_per_user (`int`): What decoding takes for each user,
            bytes_per_beam (`int`): and for each beam.
            device (`torch.device`): Where the model is.
        """
        self.bytes_per_user, self.bytes_per_beam = bytes_per_user, bytes_per_beam
        if self.sample_seed is not None:
            self.generator = torch.Generator(device).manual_seed(self.sample_seed)
            self.bytes_per_beam += SAMPLING_BYTES * max(config.codebook_size, config.num_latent_tokens)
        if self.diversity:
            num_pooled = self.num_pooled(config, self.beams(config))
            self.bytes_per_user += SIMILARITY_BYTES * num_pooled**2
            if self.item_embeddings is not None:
                self.item_embeddings = self.item_embeddings.to(device)
                self.bytes_per_user += 3 * 4 * num_pooled * self.item_embeddings.shape[1]

    def beams(self, config) -> int:
        """
        Args:
            config: The model's config.

        Returns:
            `int`: Beams to begin with. For a sample at least as many as always hold `top_k` items, since a search
            that is repeated where the list is short would favour samples of which few paths share their item.
        """
        wanted = self.num_beams
        if self.beams_per_latent is not None:
            wanted = self.beams_per_latent * config.num_latent_tokens
        if self.sample_seed is not None:
            wanted = max(wanted, self.top_k * max(1, config.num_latent_tokens))
        return min(wanted, self.most_beams(config))

    def most_beams(self, config) -> int:
        """
        Args:
            config: The model's config.

        Returns:
            `int`: Beams that hold every path, whatever the scores; equal groups must each have so many.
        """
        return self.num_groups * config.num_paths

    def num_pooled(self, config, num_beams: int) -> int:
        """
        Args:
            config: The model's config.
            num_beams (`int`): Beams of the search.

        Returns:
            `int`: Items that the search hands on, to be re-scored, or to be picked from for a diverse list.
        """
        pool = 0
        if self.num_rescored and config.num_latent_tokens:
            pool = min(self.num_rescored, num_beams)
        elif self.diversity:
            pool = self.beams(config)
        return max(self.top_k, min(pool, config.num_items))  # beams hold no more items

    def selection(self, config) -> Selection:
        """
        Args:
            config: The model's config.

        Returns:
            [`Selection`]: One for one search.
        """
        if self.generator is not None:
            return GumbelTopK(self.generator)
        if self.num_groups > 1:
            return DiverseGroups(self.num_groups, self.group_penalty)
        if self.beams_per_latent is not None:
            return QuotaPerLatent(config.num_latent_tokens)
        if self.latents_per_prefix is not None:
            return BestLatentsPerPrefix(config.num_latent_tokens, latents_per_prefix=self.latents_per_prefix)
        return best_candidates

    def chunks(self, num_users: int, num_beams: int) -> list[slice]:
        """
        Args:
            num_users (`int`): Number of users.
            num_beams (`int`): Beams of each.

        Returns:
            `list[slice]`: Rows to be decoded together so that the estimate stays within `memory_budget`; at least one
            user each.
        """
        per_user = self.bytes_per_user + num_beams * self.bytes_per_beam
        size = max(1, self.memory_budget // max(1, per_user))
        return [slice(start, start + size) for start in range(0, num_users, size)]


__all__ = ["SearchOptions"]
