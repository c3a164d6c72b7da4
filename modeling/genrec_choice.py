"""
Choices that come out the same in whatever pieces and on whatever device they are made: the best of some numbers, and
random numbers.

`torch.topk` leaves open which of several equal values it takes; here the first wins. A generator gives a user other
numbers when users or items are computed in other pieces; here each number is a hash of the seed, a number of the user
and a number of the item.
"""

import torch


GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: the increment of SplitMix64
MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def best_of(
    items: torch.LongTensor,
    scores: torch.FloatTensor,
    *,
    top_k: int,
    allowed: torch.BoolTensor | None = None,
    penalty: torch.Tensor | None = None,
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    The best of some items of each user whose scores are known.

    Takes `scores` (same shape).
    - `items` `(batch_size, n)`: distinct items in ascending order; -1 for none.
    - `allowed` `(batch_size or 1, num_items)`: as in `best_items`.
    - `penalty` `(num_items,)`: as in `best_items`.
    Returns as from `best_items`.

    Example:

    ```python
    >>> items, scores = torch.tensor([[0, 2, 5, -1]]), torch.tensor([[-3.0, -1.0, -1.0, 0.0]])
    >>> best_of(items, scores, top_k=5)[0].tolist()
    [[2, 5, 0, -1, -1]]

    ```
    """
    is_counted, listed = items >= 0, items.clamp_min(0)
    if allowed is not None:
        is_counted = is_counted & allowed.expand(len(items), -1).gather(1, listed)
    ranked = scores if penalty is None else scores - penalty[listed]
    index = first_of_the_best(ranked.masked_fill(~is_counted, -float("inf")), top_k)
    is_none = ~is_counted.gather(1, index)
    missing = (0, top_k - index.shape[1])
    items = items.gather(1, index).masked_fill(is_none, -1)
    scores = scores.gather(1, index).masked_fill(is_none, -float("inf"))
    pad = torch.nn.functional.pad
    return pad(items, missing, value=-1), pad(scores, missing, value=-float("inf"))


def first_of_the_best(values: torch.Tensor, top_k: int) -> torch.LongTensor:
    """
    Positions of the largest values of each row, largest first; of equal ones the first. `torch.topk` leaves open which
    of several equal values it takes, and takes others on another device or in another piece.

    Takes `values` `(num_rows, n)`. Returns `(num_rows, min(top_k, n))`: positions.

    Example:

    ```python
    >>> first_of_the_best(torch.tensor([[2.0, 5.0, 3.0, 5.0, 3.0]]), 3).tolist()
    [[1, 3, 2]]

    ```
    """
    if top_k >= values.shape[1]:
        return values.sort(dim=1, descending=True, stable=True).indices
    largest, index = values.topk(top_k + 1, dim=1)
    last = largest[:, top_k - 1 : top_k]
    is_open = ((largest[:, top_k:] == last) & (last > -float("inf")))[:, 0]  # equal ones stand on both sides
    index = index[:, :top_k]
    if bool(is_open.any()):
        rows, last = values[is_open], last[is_open]
        is_equal = rows == last
        num_left = top_k - (rows > last).sum(1, keepdim=True)  # places for values equal to the last, (num_open, 1)
        is_kept = (rows > last) | (is_equal & (is_equal.cumsum(1, dtype=torch.int32) <= num_left))
        index[is_open] = is_kept.nonzero()[:, 1].view(-1, top_k)
    index = index.sort(dim=1).values
    return index.gather(1, values.gather(1, index).sort(dim=1, descending=True, stable=True).indices)


def hashed(numbers: torch.LongTensor) -> torch.LongTensor:
    """
    Numbers that look random, one for each number.

    Returns the same shape: all 64 bits are used, so half of them are negative. Different numbers give different ones.

    Source: the output function of SplitMix64, Steele et al. 2014 (https://doi.org/10.1145/2660193.2660195).

    Example:

    ```python
    >>> hashed(torch.tensor([0, 1]) + GOLDEN)[0].item() == -2152535657050944081  # 0xE220A8397B1DCDAF
    True

    ```
    """
    numbers = (numbers ^ _shifted(numbers, 30)) * MULTIPLIERS[0]
    numbers = (numbers ^ _shifted(numbers, 27)) * MULTIPLIERS[1]
    return numbers ^ _shifted(numbers, 31)


def user_keys(seed: int, users: torch.LongTensor) -> torch.LongTensor:
    """What the random numbers of each user are made from. `seed`: the seed, in [0, 2**63). Returns the same shape."""
    return hashed(hashed(users * GOLDEN + GOLDEN) ^ seed)


def gumbel_noise(keys: torch.LongTensor, items: torch.LongTensor) -> torch.FloatTensor:
    """
    Standard Gumbel noise. Added to log-probabilities, it makes the items with the largest sums a sample without
    replacement, in the order drawn.

    Takes `items` `(n,)`. `keys` `(num_users,)`: result of `user_keys`. Returns `(num_users, n)`.

    Source: Kool et al. 2019, section 2.2 (https://huggingface.co/papers/1903.06059).

    Example:

    ```python
    >>> noise = gumbel_noise(user_keys(0, torch.arange(2)), torch.arange(50_000))
    >>> torch.allclose(noise.mean(1), torch.tensor(0.5772), atol=0.02)
    True

    ```
    """
    bits = hashed(keys.unsqueeze(-1) + (items + 1) * GOLDEN)
    uniform = (_shifted(bits, 11).double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log().float()


def random_items(keys: torch.LongTensor, num_draws: int, *, num_items: int) -> torch.LongTensor:
    """
    Items drawn uniformly with replacement.

    `keys` `(num_users,)`: result of `user_keys`. Returns `(num_users, num_draws)`: item indices.

    Example:

    ```python
    >>> random_items(user_keys(0, torch.arange(3)), 4, num_items=1).tolist()
    [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]

    ```
    """
    draws = torch.arange(1, num_draws + 1, device=keys.device)
    return _shifted(hashed(keys.unsqueeze(-1) + draws * GOLDEN), 1) % num_items


def _shifted(numbers: torch.LongTensor, num_bits: int) -> torch.LongTensor:
    """To the right, with zeros coming in: `>>` repeats the sign."""
    return (numbers >> num_bits) & ((1 << (64 - num_bits)) - 1)


__all__ = [
    "best_of",
    "first_of_the_best",
    "gumbel_noise",
    "hashed",
    "random_items",
    "user_keys",
]
