"""
Groups of recommended items and the item that really came next in, a reward for each recommendation out.

A group is one list: distinct items, best first, as one search finds them. Rewards are tensors of the shape of the
items, `(batch_size, n)`, -1 where there is no item, whatever model wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


REWARDS = ("hit", "rank", "validity", "diversity", "novelty")


def hit(items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    1 at the target, else 0.

    Args: items `(B, n)` and targets `(B,)`, both indices.
    """
    return (items == targets.unsqueeze(1)).float()


def validity(items: torch.Tensor) -> torch.Tensor:
    """
    1 at items of the catalog, 0 where a model wrote something else; always 1 under constrained decoding.

    Args: items `(B, n)`, -1 for what is none.
    """
    return (items >= 0).float()


def rank_penalty(items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    A wrong item is the worse the higher it stands: -1 / log2(rank + 2) over the sum of that over the list. The target
    has 0, and so have all items of a list without it: there nothing says that another order would be better.

    Args: items `(B, n)` and targets `(B,)`, both indices.

    Source: MiniOneRec, Kong et al. 2025 (https://huggingface.co/papers/2510.24431).
    """
    is_hit = items == targets.unsqueeze(1)
    discounts = 1 / torch.arange(2, items.shape[1] + 2, device=items.device).float().log2()
    penalty = -(discounts / discounts.sum()).expand(items.shape)
    return penalty.masked_fill(is_hit | ~is_hit.any(1, keepdim=True) | (items < 0), 0.0)


def diversity(items: torch.Tensor, item_codes: torch.Tensor) -> torch.Tensor:
    """
    How far an item is from the others of its list: the mean share of levels behind the prefix they have in common, in
    [0, 1].

    Args: items `(B, n)`, and the codes of the catalog `(num_items, num_levels)`.
    """
    codes = item_codes[items.clamp_min(0)].long()  # (B, n, L)
    common = (codes.unsqueeze(1) == codes.unsqueeze(2)).long().cumprod(-1).float().mean(-1)  # (B, n, n)
    others = (items >= 0).float().unsqueeze(1).expand(-1, items.shape[1], -1).clone()
    others.diagonal(dim1=1, dim2=2).zero_()
    far = ((1 - common) * others).sum(2) / others.sum(2).clamp_min(1)
    return far.masked_fill(items < 0, 0.0)


def novelty(items: torch.Tensor, item_counts: torch.Tensor) -> torch.Tensor:
    """
    How rare an item is: minus the logarithm of its share of the training interactions, over that of an item that
    occurs once; in [0, 1], 1 where it never occurs.

    Args: items `(B, n)`, and how often each item of the catalog occurs `(num_items,)`.
    """
    counts = item_counts.float()
    rare = counts.sum().clamp_min(2).log()
    values = ((rare - counts.clamp_min(1).log()) / rare).clamp(0, 1)
    return values[items.clamp_min(0)].masked_fill(items < 0, 0.0)


@dataclass(frozen=True)
class RewardSum:
    """
    A weighted sum of rewards.

    Args:
        weights (`dict[str, float]`): By name: `hit`, `rank`, `validity`, `diversity` and `novelty`.
        item_codes (`torch.Tensor` of shape `(num_items, num_levels)`, *optional*): For `diversity`.
        item_counts (`torch.Tensor` of shape `(num_items,)`, *optional*): Training interactions, for `novelty`.

    Raises:
        ValueError: If a name is unknown, there is none, or what it needs is missing.

    Example:

    ```python
    >>> rewards = RewardSum({"hit": 1.0, "rank": 1.0})
    >>> total, parts = rewards(torch.tensor([[4, 7, 2], [4, 7, 2]]), torch.tensor([7, 5]))
    >>> total.round(decimals=2).tolist()
    [[-0.47, 1.0, -0.23], [0.0, 0.0, 0.0]]

    ```
    """

    weights: Mapping[str, float]
    item_codes: torch.Tensor | None = field(default=None, compare=False)
    item_counts: torch.Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.weights) - set(REWARDS)):
            raise ValueError(f"`weights` must name rewards ({', '.join(REWARDS)}), got {', '.join(unknown)}.")
        if not self.weights:
            raise ValueError(f"`weights` must name a reward at least: {', '.join(REWARDS)}.")
        for name, needed in (("diversity", "item_codes"), ("novelty", "item_counts")):
            if name in self.weights and getattr(self, needed) is None:
                raise ValueError(f"The reward {name!r} needs `{needed}`.")

    def __call__(self, items: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum, and each reward by its name. Args: items `(B, n)`, -1 for none, and targets `(B,)`."""
        parts = {name: self._reward(name, items, targets) for name in self.weights}
        return torch.stack([weight * parts[name] for name, weight in self.weights.items()]).sum(0), parts

    def _reward(self, name: str, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if name == "hit":
            return hit(items, targets)
        if name == "rank":
            return rank_penalty(items, targets)
        if name == "validity":
            return validity(items)
        if name == "diversity" and self.item_codes is not None:
            return diversity(items, self.item_codes.to(items.device))
        return novelty(items, torch.as_tensor(self.item_counts, device=items.device))


def parse_weights(text: str) -> dict[str, float]:
    """
    `"hit=1,rank=0.5"` as weights.

    Args: names and weights, separated by commas.

    >>> parse_weights("hit=1, rank=0.5")
    {'hit': 1.0, 'rank': 0.5}
    """
    weights = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = word.partition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"`rewards` must be like hit=1,rank=0.5, got {word!r}.") from None
    return RewardSum(weights, torch.empty(0), torch.empty(0)).weights  # type: ignore[return-value]
