"""
Log-probabilities of the paths of a group in, a loss for each group out: what preference and reward training optimise.

A path is a recommended item as a model writes it; its log-probability is the sum over its tokens. All functions take
tensors `(batch_size, n)`, a row per group, and return losses `(batch_size,)`, differentiable by `log_probs`. They know
nothing of networks: the library's own models and language models use the same ones.
"""

from __future__ import annotations

import torch
from torch.nn import functional


OBJECTIVES = ("grpo", "listwise", "sdpo")


def group_advantages(rewards: torch.Tensor, is_path: torch.Tensor, *, scale: bool = False) -> torch.Tensor:
    """
    Rewards less their mean over the group; 0 where there is no path.

    Args:
        rewards: `(B, n)`.
        is_path (`torch.BoolTensor`, same shape): Where there is a path.
        scale (`bool`, *optional*, defaults to `False`):
            Divide by the standard deviation of the group, as the first GRPO did: a group with one small difference
            then counts as much as one with a hit (https://huggingface.co/papers/2503.20783).
    """
    count = is_path.sum(1, keepdim=True).clamp_min(1)
    mean = (rewards * is_path).sum(1, keepdim=True) / count
    advantages = (rewards - mean) * is_path
    if not scale:
        return advantages
    return advantages / ((advantages**2).sum(1, keepdim=True) / count).sqrt().clamp_min(1e-6)


def kl_divergence(log_probs: torch.Tensor, reference: torch.Tensor, is_path: torch.Tensor) -> torch.Tensor:
    """
    An estimate of how far the model is from the reference model, from the paths of a group: the mean of
    exp(d) - d - 1 with d = log p_reference - log p, which is never negative.

    Args: log-probabilities `(B, n)` by the model and by the reference, and where there is a path.

    Source: Schulman 2020 (http://joschu.net/blog/kl-approx.html).
    """
    distance = (reference - log_probs).masked_fill(~is_path, 0.0).clamp_max(20.0)
    return (distance.exp() - distance - 1).sum(1) / is_path.sum(1).clamp_min(1)


def grpo_loss(log_probs: torch.Tensor, advantages: torch.Tensor, is_path: torch.Tensor) -> torch.Tensor:
    """
    Group-relative policy optimisation with one step per group: the gradient is that of minus the mean of advantage
    times log-probability.

    Args: log-probabilities and advantages `(B, n)`, see [`group_advantages`], and where there is a path.

    Source: Shao et al. 2024 (https://huggingface.co/papers/2402.03300). With one step the ratio to the model that
    wrote the group is 1 and nothing is clipped.
    """
    log_probs = log_probs.masked_fill(~is_path, 0.0)
    ratio = (log_probs - log_probs.detach()).exp()
    return -(ratio * advantages).sum(1) / is_path.sum(1).clamp_min(1)


def listwise_loss(log_probs: torch.Tensor, is_target: torch.Tensor, is_path: torch.Tensor) -> torch.Tensor:
    """
    Minus the log-probability of the target among the paths of its group, whose other members are hard negatives.

    Args: log-probabilities `(B, n)`, which path is the target, one per group, and where there is a path.
    """
    among = log_probs.masked_fill(~is_path, -float("inf")).log_softmax(1)
    return -among.masked_fill(~is_target, 0.0).sum(1)


def sdpo_loss(
    log_probs: torch.Tensor, reference: torch.Tensor, is_target: torch.Tensor, is_path: torch.Tensor, *, beta: float
) -> torch.Tensor:
    """
    Softmax-DPO: the target shall gain more over the reference model than each of several negatives, in one softmax.

    Args:
        log_probs: `(B, n)`, by the model.
        reference: The same by the reference model.
        is_target: Which path is the target, one per group.
        is_path: Where there is a path.
        beta (`float`): How much a gain counts; small values let the model go further.

    Source: Chen et al. 2024 (https://huggingface.co/papers/2406.09215).
    """
    gains = beta * (log_probs - reference).masked_fill(~is_path, 0.0)
    target = gains.masked_fill(~is_target, 0.0).sum(1, keepdim=True)
    negatives = (gains - target).masked_fill(is_target | ~is_path, -float("inf"))
    return functional.softplus(negatives.logsumexp(1))


def with_target(items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Groups that hold their target: where it is missing it takes the last place.

    Args: items `(B, n)` and targets `(B,)`, both indices.

    >>> with_target(torch.tensor([[4, 7], [4, 7]]), torch.tensor([4, 9])).tolist()
    [[4, 7], [4, 9]]
    """
    is_missing = ~(items == targets.unsqueeze(1)).any(1)
    last = torch.where(is_missing, targets, items[:, -1])
    return torch.cat([items[:, :-1], last.unsqueeze(1)], dim=1)
