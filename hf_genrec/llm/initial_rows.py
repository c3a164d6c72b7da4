"""
Where the rows of new tokens start: from the rows of the old ones, from the words of the items, from the quantizer.

All on the CPU: it is done once, and the same seed gives the same rows whatever the device of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


SPREAD = 1e-9  # share of the old rows' covariance that new ones are drawn with, as in transformers
RIDGE = 0.1  # share of a centroid's variance that the ridge map pays for


class Rows:
    """
    The rows `(num_tokens, width)` of the old tokens, float32, their mean, and where draws come from.

    Args: see [`SidVocabulary.resize`].
    """

    def __init__(self, values: torch.Tensor, *, seed: int) -> None:
        self.values = values
        self.mean = values.mean(0)
        self.generator = torch.Generator().manual_seed(seed)


def mean_rows(rows: Rows, number: int) -> torch.Tensor:
    """
    Old rows drawn at random, moved to their mean but for a billionth of the variance: `(number, width)`.

    Args: the old rows, and how many draws.
    """
    # old rows drawn at random have the mean and the covariance of the old rows, without a matrix of either
    drawn = torch.randint(len(rows.values), (number,), generator=rows.generator)
    return rows.mean + SPREAD**0.5 * (rows.values[drawn] - rows.mean)


def rows_of_words(rows: Rows, words: Sequence[Sequence[int]], codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """
    Mean row of the words of the items that have a code, each item once: `(num_levels, codebook_size, width)`, NaN for
    codes without any item that has words.

    Args: the old rows, the tokens of each item's text, the codes `(num_items, num_levels)`, and codes per level.
    """
    lengths = torch.tensor([len(text) for text in words])
    flat = torch.tensor([word for text in words for word in text], dtype=torch.long)
    item = torch.arange(len(words)).repeat_interleave(lengths)
    is_old = flat < len(rows.values)
    flat, item = flat[is_old], item[is_old]
    width = rows.values.shape[1]
    sums = torch.zeros(len(words), width, dtype=rows.values.dtype).index_add_(0, item, rows.values[flat])
    counts = item.bincount(minlength=len(words))
    has_words = counts > 0
    items = sums[has_words] / counts[has_words].unsqueeze(1)
    found = []
    for level in codes[has_words].T:
        total = torch.zeros(codebook_size, width, dtype=items.dtype).index_add_(0, level, items)
        found.append(total / level.bincount(minlength=codebook_size).unsqueeze(1))  # 0 / 0 is NaN
    return torch.stack(found)


def rows_of_centroids(rows: Rows, found: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """
    Rows of codes by a linear map from their centroids, fitted level by level to what `rows_of_words` found; levels
    without centroids stay as they are.

    Args: the old rows, `rows_of_words`, and centroids `(levels, codebook_size, dimension)`.
    """
    mapped = found.clone()
    for level, points in enumerate(centroids[: len(found)]):
        is_known = found[level].isfinite().all(-1)
        if not bool(is_known.any()):
            continue
        mean, target = points[is_known].mean(0), found[level][is_known].double().mean(0)
        inputs, outputs = points[is_known] - mean, found[level][is_known] - target
        # the dual form: as many unknowns as codes, whatever the width of the vectors
        kernel = inputs @ inputs.T
        penalty = RIDGE * kernel.diagonal().mean().clamp_min(1e-12)
        weights = torch.linalg.solve(kernel + penalty * torch.eye(len(kernel), dtype=kernel.dtype), outputs)
        mapped[level] = (target + (points - mean) @ inputs.T @ weights).to(found)
    return mapped
