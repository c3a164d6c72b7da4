"""
Exact scores by teacher forcing: what a beam search approximates, for all items of a small catalog or for a few.

A model that mixes in `ScoringMixin` supplies `encode_history`, `path_states` and `score_tokens`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .beam_search_genrec import HistoryOutput, token_log_probs


LATENT_AGGREGATIONS = ("max", "sum")


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """
    Without dropout for a while; a model that was in training mode is so again afterwards.

    Args:
        model (`torch.nn.Module`): The model.
    """
    was_training = model.training
    if was_training:  # walking through the modules costs time, so only where it changes something
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


class ScoringMixin:
    """`score_items()`, and the log-probability of every way to write an item."""

    @torch.no_grad()
    def score_items(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        latent_aggregation: str = "max",
        level_temperature: Sequence[float] | None = None,
        chunk_size: int = 1024,
    ) -> torch.FloatTensor:
        """
        Exact log-probability of every item: the oracle that beam search approximates, for small catalogs.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`): Item tokens, oldest first.
            attention_mask (`torch.Tensor`, same shape, *optional*): 1 at items that count; `None` for all.
            latent_aggregation (`str`, defaults to `"max"`): `"max"` or `"sum"` over all latents.
            level_temperature (`Sequence[float]` of length `num_levels`, *optional*): As in `recommend`.
            chunk_size (`int`, defaults to 1024): Items scored at a time.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_items)`: log-probabilities.

        Raises:
            ValueError: If `latent_aggregation` is neither of the two or a temperature is not positive.
        """
        check_latent_aggregation(latent_aggregation)
        check_level_temperature(level_temperature, num_levels=self.config.num_levels)
        if not len(input_ids):
            return torch.zeros(0, self.config.num_items, device=self.item_codes.device)
        items = torch.arange(self.config.num_items, device=self.item_codes.device).expand(len(input_ids), -1)
        with evaluation_mode(self):
            return self.score_candidates(
                self.encode_history(input_ids, attention_mask),
                items,
                latent_aggregation=latent_aggregation,
                level_temperature=level_temperature,
                chunk_size=chunk_size,
            )

    def score_candidates(
        self,
        history: HistoryOutput,
        items: torch.LongTensor,
        *,
        latent_aggregation: str = "max",
        level_temperature: Sequence[float] | None = None,
        chunk_size: int = 1024,
    ) -> torch.FloatTensor:
        """
        Exact log-probabilities of some items of each user, over all latents.

        Args:
            history ([`HistoryOutput`]): Encoded histories, one row per user.
            items (`torch.LongTensor` of shape `(batch_size, num_candidates)`): Item indices, from 0.
            latent_aggregation (`str`, defaults to `"max"`): `"max"` or `"sum"` over all latents.
            level_temperature (`Sequence[float]` of length `num_levels`, *optional*): As in `recommend`.
            chunk_size (`int`, defaults to 1024): Items scored at a time, per user.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_candidates)`
        """
        chunks = []
        for part in items.split(chunk_size, dim=1):
            paths = self._path_scores(history, part, level_temperature)
            chunks.append(paths.amax(0) if latent_aggregation == "max" else paths.logsumexp(0))
        return torch.cat(chunks, dim=1)

    def _path_scores(self, history, items, level_temperature) -> torch.FloatTensor:
        """Log-probability of each way to write each item: `(num_latents or 1, batch_size, num_candidates)`."""
        config, catalog = self.config, self.catalog
        codes = self.item_codes[items].long()
        is_legal = [None] * config.num_levels  # only where the softmax runs over legal tokens
        if config.normalization == "catalog":
            nodes = torch.zeros_like(items)
            for level in range(config.num_levels):
                is_legal[level] = catalog.child_mask(level, nodes)
                nodes = catalog.child(level, nodes, codes[..., level])
        code_tokens = self.semantic_id_tokens(items + config.first_item_token)
        first_step = config.num_decoding_steps - config.num_levels
        paths = []
        for latent in range(max(1, config.num_latent_tokens)):
            tokens, total = code_tokens, 0.0
            if config.num_latent_tokens:
                tokens = torch.nn.functional.pad(code_tokens, (1, 0), value=config.first_latent_token + latent)
            states = self.path_states(tokens, history)
            if config.num_latent_tokens:
                total = token_log_probs(self, states[:, :, 0], 0)[..., latent]
            for level in range(config.num_levels):
                step = first_step + level
                log_probs = token_log_probs(
                    self, states[:, :, step], step, is_legal=is_legal[level], level_temperature=level_temperature
                )
                total = total + log_probs.gather(-1, codes[..., level, None]).squeeze(-1)
            paths.append(total)
        return torch.stack(paths)


def check_latent_aggregation(latent_aggregation: str) -> None:
    """
    Whether it is a known one.

    Args:
        latent_aggregation (`str`): Name of the aggregation.

    Raises:
        ValueError: If it is not.
    """
    if latent_aggregation not in LATENT_AGGREGATIONS:
        raise ValueError(f"`latent_aggregation` must be 'max' or 'sum', got {latent_aggregation!r}.")


def check_level_temperature(level_temperature: Sequence[float] | None, *, num_levels: int) -> None:
    """
    Whether there is a positive temperature for each level.

    Args:
        level_temperature (`Sequence[float]`, *optional*): Temperatures; `None` for 1 everywhere.
        num_levels (`int`): Number of levels.

    Raises:
        ValueError: If not.
    """
    if level_temperature is None:
        return
    if len(level_temperature) != num_levels or not all(0 < value < float("inf") for value in level_temperature):
        raise ValueError(
            f"`level_temperature` must hold a positive number for each of the {num_levels} levels, got "
            f"{level_temperature}."
        )


__all__ = [
    "LATENT_AGGREGATIONS",
    "ScoringMixin",
    "check_latent_aggregation",
    "check_level_temperature",
    "evaluation_mode",
]
