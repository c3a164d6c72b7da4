"""
An invented world in which siblings in the tree of semantic IDs are liked by different users.

Users belong to two groups. Items come in triples: the first is liked by group A, the third by group B, the second lies
between the two for both. Only who bought what distinguishes the three. In the tree `"siblings"` the items of a triple
share all codes but the last, as items with alike texts do, so a decoder must tell them apart at the last level, by the
user; which last code means which liking differs from triple to triple. In the tree `"aligned"` the very same leaves
are dealt out so that siblings are liked by the same users. Item indices and probabilities are NumPy arrays.

Since the world is known, so is the true probability of every next item, and no data set is too small.

Source: the pattern is that of Hou et al. 2026, theorem 3.5 (https://huggingface.co/papers/2605.06331), which is not
trained there; the world is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax


NUM_LEVELS = 3
TREES = ("siblings", "aligned")


@dataclass(frozen=True)
class SiblingWorld:
    """
    What is true in the world; made by [`make_sibling_world`].

    Attributes:
        triples (`np.ndarray` of shape `(num_triples, 3)`): items liked by group A, by both, by group B.
        probabilities (`np.ndarray` of shape `(2, num_items)`): of each item for a user of group A and of group B.
        codes (`dict[str, np.ndarray]`): semantic IDs `(num_items, 3)` by the name of the tree.
        codebook_size (`int`): number of codes per level.
    """

    triples: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    codes: Mapping[str, NDArray[np.int64]]
    codebook_size: int

    @property
    def num_items(self) -> int:
        """`int`: size of the catalog."""
        return self.probabilities.shape[1]

    def draw_sequences(self, *, num_users: int, length: int, seed: int | Sequence[int]) -> NDArray[np.int64]:
        """
        Items of new users, half of them of each group.

        Given the group the items of a user are independent, so a history determines the group and nothing else.

        Args:
            num_users (`int`):
                Users; the first half, rounded up, is of group A.
            length (`int`):
                Items of each.
            seed (`int` or `list[int]`):
                Seed of the draw.

        Returns:
            `np.ndarray` of shape `(num_users, length)`: item indices.
        """
        totals = np.cumsum(self.probabilities, axis=1)
        draws = np.random.default_rng(seed).random((num_users, length))
        is_second = np.arange(num_users) >= (num_users + 1) // 2
        items = [np.searchsorted(total / total[-1], draws, side="right") for total in totals]
        return np.where(is_second[:, None], items[1], items[0])

    def group_probabilities(self, histories: NDArray[np.integer]) -> NDArray[np.float64]:
        """
        What a history says about the group.

        Args:
            histories (`np.ndarray` of shape `(num_users, length)`):
                Item indices.

        Returns:
            `np.ndarray` of shape `(num_users, 2)`: the exact posterior of both groups, which are equally
                likely before.
        """
        with np.errstate(divide="ignore"):  # an item that a group never takes
            evidence = np.log(self.probabilities)[:, histories].sum(axis=2).T
        return softmax(evidence, axis=1)

    def next_item_probabilities(self, histories: NDArray[np.integer]) -> NDArray[np.float64]:
        """
        The true distribution of the next item.

        Args:
            histories (`np.ndarray` of shape `(num_users, length)`):
                Item indices.

        Returns:
            `np.ndarray` of shape `(num_users, num_items)`
        """
        return self.group_probabilities(histories) @ self.probabilities


def make_sibling_world(
    *,
    num_triples: int = 9,
    num_fillers: int = 8,
    liking: tuple[float, float, float] = (0.6, 0.3, 0.1),
    triple_share: float = 0.5,
    seed: int = 0,
) -> SiblingWorld:
    """
    A world of triples and of fillers that stand elsewhere in the tree.

    Args:
        num_triples (`int`, *optional*, defaults to 9):
            Triples; a multiple of 3, so that siblings of the aligned tree come from different triples.
        num_fillers (`int`, *optional*, defaults to 8):
            Items of each of three kinds: for group A only, for group B only, for both.
        liking (`tuple[float, float, float]`, *optional*, defaults to `(0.6, 0.3, 0.1)`):
            Shares of the three items of a triple for group A, falling; group B has them the other way round.
        triple_share (`float`, *optional*, defaults to 0.5):
            Share of the interactions that are with triples, in (0, 1). The rest is halved between the fillers of the
            user's group and those for both.
        seed (`int`, *optional*, defaults to 0):
            Seed of codes and of the order of the items.

    Raises:
        ValueError: If a size or share is out of range.

    Example:

    ```python
    >>> world = make_sibling_world(num_triples=3, num_fillers=2)
    >>> world.num_items, world.probabilities[:, world.triples[0]].round(3).tolist()
    (15, [[0.1, 0.05, 0.017], [0.017, 0.05, 0.1]])

    ```
    """
    if num_triples < 3 or num_triples % 3:
        raise ValueError(f"`num_triples` must be a multiple of 3 and at least 3, got {num_triples}.")
    if num_fillers < 1:
        raise ValueError(f"`num_fillers` must be at least 1, got {num_fillers}.")
    if len(liking) != 3 or not liking[0] > liking[1] > liking[2] > 0:
        raise ValueError(f"`liking` must be three falling numbers above 0, got {liking}.")
    if not 0 < triple_share < 1:
        raise ValueError(f"`triple_share` must lie in (0, 1), got {triple_share}.")
    random = np.random.default_rng(seed)
    num_items = 3 * (num_triples + num_fillers)
    order = random.permutation(num_items)  # the index of an item carries no information
    triples, fillers = order[: 3 * num_triples].reshape(-1, 3), order[3 * num_triples :].reshape(3, -1)
    shares = np.array(liking) / sum(liking) * triple_share / num_triples
    probabilities = np.zeros((2, num_items))
    for group in (0, 1):
        probabilities[group, triples] = shares if group == 0 else shares[::-1]
        probabilities[group, fillers[[group, 2]]] = (1 - triple_share) / (2 * num_fillers)
    codebook_size = max(num_triples, num_fillers, 4)
    leaves = _triple_codes(num_triples, codebook_size, random)
    codes = np.zeros((num_items, NUM_LEVELS), dtype=np.int64)
    codes[fillers] = _filler_codes(num_fillers, leaves, codebook_size, random)
    # aligned: three prefixes after another hold first items, the next three second ones, and so on
    aligned = triples.reshape(num_triples // 3, 3, 3).transpose(2, 0, 1).reshape(-1, 3)
    trees = {}
    for name, items in zip(TREES, (triples, aligned), strict=True):
        trees[name] = codes.copy()
        trees[name][items] = leaves
    return SiblingWorld(triples, probabilities, trees, codebook_size)


@dataclass(frozen=True)
class PatternReport:
    """
    How well a model knows the world.

    Attributes:
        divergence (`float`): mean Kullback-Leibler divergence of the model from the truth, in nats.
        order (`float`): share of users and triples whose three items are ordered as the user likes them, in the group
            in which it is lower.
        ends (`float`): likewise for the first and third item of the triple alone.
        num_users (`int`): users whose group their history tells; only they are asked for the order.
    """

    divergence: float
    order: float
    ends: float
    num_users: int


def pattern_report(
    log_probs: NDArray[np.floating],
    world: SiblingWorld,
    histories: NDArray[np.integer],
    *,
    least_certainty: float = 0.9,
) -> PatternReport:
    """
    Compare the scores of a model with the truth.

    Args:
        log_probs (`np.ndarray` of shape `(num_users, num_items)`):
            Log-probabilities of the next item.
        world ([`SiblingWorld`]):
            The truth.
        histories (`np.ndarray` of shape `(num_users, length)`):
            What the model read.
        least_certainty (`float`, *optional*, defaults to 0.9):
            How probable the group has to be, given the history, for a user to be asked for the order.

    Raises:
        ValueError: If no user of one of the groups is that certain.

    Example:

    ```python
    >>> world = make_sibling_world(num_triples=3, num_fillers=2)
    >>> histories = world.draw_sequences(num_users=40, length=7, seed=1)
    >>> truth = world.next_item_probabilities(histories)
    >>> report = pattern_report(np.log(truth + 1e-12), world, histories)
    >>> round(report.divergence, 6), report.order, report.ends
    (0.0, 1.0, 1.0)

    ```
    """
    groups = world.group_probabilities(histories)
    divergence = rel_entr(world.next_item_probabilities(histories), np.exp(np.asarray(log_probs, dtype=np.float64)))
    orders, ends = [], []
    for group in (0, 1):
        is_clear = groups[:, group] >= least_certainty
        if not is_clear.any():
            raise ValueError(f"`histories` has no user of group {'AB'[group]} at certainty {least_certainty}.")
        likings = log_probs[is_clear][
            :, world.triples if group == 0 else world.triples[:, ::-1]
        ]  # (users, triples, 3)
        falls = likings[..., :-1] > likings[..., 1:]
        orders.append(float(falls.all(axis=-1).mean()))
        ends.append(float((likings[..., 0] > likings[..., 2]).mean()))
    num_clear = int((groups.max(axis=1) >= least_certainty).sum())
    return PatternReport(float(divergence.sum(axis=1).mean()), min(orders), min(ends), num_clear)


def _triple_codes(num_triples: int, codebook_size: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Leaves `(num_triples, 3, 3)`: a prefix per triple, and of four last codes three different ones in any order."""
    prefixes = np.stack([np.arange(num_triples), random.integers(codebook_size, size=num_triples)], axis=1)
    last = random.permuted(np.tile(np.arange(4), (num_triples, 1)), axis=1)[:, :3]
    return np.concatenate([np.repeat(prefixes[:, None], 3, axis=1), last[..., None]], axis=2)


def _filler_codes(
    num_fillers: int, leaves: NDArray[np.int64], codebook_size: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Codes `(3, num_fillers, 3)` below prefixes that no triple has."""
    numbers = np.arange(codebook_size**NUM_LEVELS)
    is_taken = np.isin(numbers // codebook_size, leaves[:, 0, 0] * codebook_size + leaves[:, 0, 1])
    chosen = random.choice(numbers[~is_taken], size=(3, num_fillers), replace=False)
    return chosen[..., None] // codebook_size ** np.arange(NUM_LEVELS - 1, -1, -1) % codebook_size
