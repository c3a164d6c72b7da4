"""
Random numbers that depend on a seed and on what they are for, not on the order in which they are drawn.

A generator gives a user other numbers when users or items are computed in other pieces, or on another device. Here
each number is a hash of the seed, a number of the user and a number of the item, so it stays the same.
"""

import torch


GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: the increment of SplitMix64
MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def hashed(numbers: torch.LongTensor) -> torch.LongTensor:
    """
    Numbers that look random, one for each number.

    Args:
        numbers (`torch.LongTensor`, any shape): Any numbers.

    Returns:
        `torch.LongTensor`, same shape: all 64 bits are used, so half of them are negative. Different numbers give
        different ones.

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
    """
    What the random numbers of each user are made from.

    Args:
        seed (`int`): The seed, in [0, 2**63).
        users (`torch.LongTensor`, any shape): Numbers of the users.

    Returns:
        `torch.LongTensor`, same shape.
    """
    return hashed(hashed(users * GOLDEN + GOLDEN) ^ seed)


def gumbel_noise(keys: torch.LongTensor, items: torch.LongTensor) -> torch.FloatTensor:
    """
    Standard Gumbel noise. Added to log-probabilities, it makes the items with the largest sums a sample without
    replacement, in the order drawn.

    Args:
        keys (`torch.LongTensor` of shape `(num_users,)`): Result of `user_keys`.
        items (`torch.LongTensor` of shape `(n,)`): Item indices.

    Returns:
        `torch.FloatTensor` of shape `(num_users, n)`

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

    Args:
        keys (`torch.LongTensor` of shape `(num_users,)`): Result of `user_keys`.
        num_draws (`int`): Draws per user.
        num_items (`int`): Size of the catalog.

    Returns:
        `torch.LongTensor` of shape `(num_users, num_draws)`: item indices.

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


__all__ = ["gumbel_noise", "hashed", "random_items", "user_keys"]
