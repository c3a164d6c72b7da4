"""
Which candidates become beams where latents lead to the same items over and over.

A Latte model reaches one item through every latent, so the beams of a plain search may hold few distinct items. Either
selection spends the beams on more of them; which one is better for a model is a question for its validation data.
"""

import torch

from .genrec_beam_search import SearchStep, best_candidates


class QuotaPerLatent:
    """
    Every latent keeps the same number of beams, however probable it is: `num_beams / num_latents`.

    The beams stand latent by latent. A search makes one object and calls it once per step.

    Args:
        num_latents (`int`): Number of latents of the model, at least 1.

    Source: ours.

    Example:

    ```python
    >>> quota = QuotaPerLatent(2)
    >>> first = SearchStep(number=0, depth=-1, nodes=torch.zeros(1, 1), latents=None, children=None)
    >>> quota(torch.tensor([[[-9.0, -1.0]]]), 4, first).tolist()
    [[0, 1]]
    >>> second = SearchStep(number=1, depth=0, nodes=torch.zeros(1, 2), latents=None, children=None)
    >>> quota(torch.tensor([[[-10.0, -9.2, -12.0], [-3.0, -1.5, -1.2]]]), 4, second).tolist()
    [[1, 0, 5, 4]]

    ```
    """

    def __init__(self, num_latents: int):
        if num_latents < 1:
            raise ValueError(f"`num_latents` must be at least 1, got {num_latents}: the model has no latents.")
        self.num_latents = num_latents

    def __call__(self, candidates: torch.FloatTensor, num_beams: int, step: SearchStep) -> torch.LongTensor:
        """
        Args:
            candidates (`torch.FloatTensor` of shape `(B, W, K)`): Cumulative log-probabilities.
            num_beams (`int`): Beams wanted, a multiple of `num_latents`.
            step ([`SearchStep`]): Where the search is.

        Returns:
            `torch.LongTensor` of shape `(B, n)`: flat positions.
        """
        batch_size, num_parents, width = candidates.shape
        if step.depth < 0:
            return torch.arange(width, device=candidates.device).expand(batch_size, -1)
        groups = candidates.view(batch_size, self.num_latents, -1)  # the parents stand latent by latent
        quota = min(num_beams // self.num_latents, groups.shape[-1])
        group_start = torch.arange(0, num_parents * width, groups.shape[-1], device=candidates.device)
        return (groups.topk(quota).indices + group_start.view(1, -1, 1)).flatten(1)


class BestLatentsPerPrefix:
    """
    At every step at most `latents_per_prefix` beams hold the same codes: those of the best latents. The beams this
    frees go to other codes.

    A pool of `num_beams * num_latents / latents_per_prefix` candidates is enough to fill all beams, since a prefix
    stands in it at most once per latent: no full sort. Beams for which no other codes are left take the best of what
    was put aside, so that as many beams as paths still find every path.

    Args:
        num_latents (`int`): Number of latents of the model, at least 1.
        latents_per_prefix (`int`): Beams that may share their codes, at least 1.

    Source: ours.

    Example:

    ```python
    >>> one_each = BestLatentsPerPrefix(2, latents_per_prefix=1)
    >>> nodes = torch.tensor([[7, 8, 7, 8]])  # where the two codes of the two beams lead to
    >>> step = SearchStep(1, 0, torch.zeros(1, 2), torch.tensor([[0, 1]]), lambda index: nodes.gather(1, index))
    >>> candidates = torch.tensor([[[-1.0, -4.0], [-2.0, -3.0]]])
    >>> best_candidates(candidates, 2, step).tolist(), one_each(candidates, 2, step).tolist()
    ([[0, 2]], [[0, 3]])

    ```
    """

    def __init__(self, num_latents: int, *, latents_per_prefix: int):
        if num_latents < 1:
            raise ValueError(f"`num_latents` must be at least 1, got {num_latents}: the model has no latents.")
        if latents_per_prefix < 1:
            raise ValueError(f"`latents_per_prefix` must be at least 1, got {latents_per_prefix}.")
        self.num_latents = num_latents
        self.latents_per_prefix = latents_per_prefix

    def __call__(self, candidates: torch.FloatTensor, num_beams: int, step: SearchStep) -> torch.LongTensor:
        """
        Args:
            candidates (`torch.FloatTensor` of shape `(B, W, K)`): Cumulative log-probabilities.
            num_beams (`int`): Beams wanted.
            step ([`SearchStep`]): Where the search is.

        Returns:
            `torch.LongTensor` of shape `(B, min(num_beams, W * K))`: flat positions.
        """
        if step.depth < 0 or self.latents_per_prefix >= self.num_latents:
            return best_candidates(candidates, num_beams, step)
        pool_size = num_beams * -(-self.num_latents // self.latents_per_prefix)
        pool = best_candidates(candidates, pool_size, step)  # (B, P), best first
        node, by_node = step.children(pool).sort(dim=1, stable=True)
        position = torch.arange(pool.shape[1], device=pool.device).expand_as(pool)
        is_first = torch.nn.functional.pad(node[:, 1:] != node[:, :-1], (1, 0), value=True)
        num_before = position - position.masked_fill(~is_first, 0).cummax(dim=1).values  # better ones of the same node
        is_extra = (num_before >= self.latents_per_prefix) | (node < 0)  # dead ones come last, by their score
        is_extra = torch.zeros_like(is_first).scatter(1, by_node, is_extra)
        order = is_extra.to(torch.uint8).sort(dim=1, stable=True).indices
        return pool.gather(1, order[:, :num_beams])


__all__ = ["BestLatentsPerPrefix", "QuotaPerLatent"]
