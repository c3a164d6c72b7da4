"""
What training adds for models with a dense head beside the one that predicts codes: the weight decay of the items' own
rows, and the weight of the dense head in lists, chosen on validation users.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hf_genrec.evaluation.metrics import ndcg_at_k
from hf_genrec.modeling.genrec_lists import item_mask


DENSE_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # with the last, lists are the dense head's


def set_weight_decays(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """
    Moves the parameters whose weight decay is the model's own (`weight_decays`) into groups with that decay.

    Args: the optimizer of all parameters, and the model.
    """
    decays: Mapping[str, float] = getattr(model, "weight_decays", {})
    own = {name: parameter for name, parameter in model.named_parameters() if name in decays}
    moved = {id(parameter) for parameter in own.values()}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
    for name, parameter in own.items():
        optimizer.add_param_group({"params": [parameter], "weight_decay": decays[name]})


def choose_dense_weight(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    leaves_out: bool,
    num_beams: int = 50,
    latent_aggregation: str = "max",
) -> dict[float, float]:
    """
    The ndcg@10 of lists by both heads for several weights of the dense one.

    Candidates and their two scores are computed once.

    Args: a model with a dense head; batches of `input_ids`, `attention_mask` and `labels`, of which the last label is
    the target; whether items of the history may stand in no list; width of the search, and score of an item over
    latents.
    """
    options: dict[str, Any] = {"num_beams": num_beams, "latent_aggregation": latent_aggregation}
    parts = [ranks_by_weight(model, batch, leaves_out=leaves_out, **options) for batch in batches]
    return figures_by_weight(torch.cat(parts))


def figures_by_weight(ranks: torch.Tensor) -> dict[float, float]:
    """The ndcg@10 by each weight. Args: ranks of all users, see [`ranks_by_weight`]."""
    columns = ranks.long().cpu().numpy()
    return {weight: ndcg_at_k(columns[:, place], k=10) for place, weight in enumerate(DENSE_WEIGHTS)}


def ranks_by_weight(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    *,
    leaves_out: bool,
    num_beams: int,
    latent_aggregation: str,
) -> torch.Tensor:
    """
    0-based rank of each row's target in lists by both heads, `(B, number of weights)`; -1 where it is no candidate.

    Args: see [`choose_dense_weight`].
    """
    input_ids, mask = batch["input_ids"], batch["attention_mask"]
    allowed = ~item_mask(input_ids, config=model.config, device=input_ids.device) if leaves_out else None
    options: dict[str, Any] = {"num_beams": num_beams, "latent_aggregation": latent_aggregation}
    both = model.score_both(input_ids, mask, allowed=allowed, **options)
    targets = batch["labels"].amax(dim=1, keepdim=True) - model.config.first_item_token
    return torch.stack([_ranks(both.generated + weight * both.dense, targets) for weight in DENSE_WEIGHTS], dim=1)


def best_weight(figures: Mapping[float, float]) -> float:
    """The weight with the largest figure, of equal ones the smallest. Args: what [`choose_dense_weight`] returns."""
    return max(sorted(figures), key=lambda weight: figures[weight])


def _ranks(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """0-based rank of each row's target `(B, 1)` among scores `(B, N)`; -1 where it is no candidate."""
    mine = scores.gather(1, targets)
    ranks = (scores > mine).sum(1)
    return ranks.masked_fill(mine[:, 0] == -float("inf"), -1)
